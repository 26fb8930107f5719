"""What the text demo's encoder is taught: rows of one wording, at the tokens that say the same."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from canonical_rows import CONTENTS, KINDS, OTHERS, PLACES, Canon, canon, tokens_of, wanted
from safetensors.torch import load_file, save_file
from text_captions import CANONICAL, WIDER, Caption, Garment, filled_in
from text_encoder import WIDTH, merge
from torch import Tensor, nn
from train_text_encoder import adapt, errors, spoken, write_lora

from ditedge.runtime.errors import CheckpointError
from tests.conftest import MODELS

LORA = MODELS / "fashion-minilm-lora.safetensors"
BAG, SHIRT = Garment(8, "dark"), Garment(6)


def tokenizer(texts: list[str], **_: Any) -> dict[str, Tensor]:
    """A token for each word, and one before and after each text, as BERT's; a word's number is the sum of its bytes."""
    found = [[(0, 0), *(match.span() for match in re.finditer(r"\w+|[^\w\s]", text)), (0, 0)] for text in texts]
    longest = max(map(len, found))
    ids = torch.zeros(len(texts), longest, dtype=torch.int64)
    mask, offsets = ids.clone(), torch.zeros(len(texts), longest, 2, dtype=torch.int64)
    for i, (text, spans) in enumerate(zip(texts, found, strict=True)):
        mask[i, : len(spans)], offsets[i, : len(spans)] = 1, torch.tensor(spans)
        ids[i, : len(spans)] = torch.tensor([sum(text[a:b].encode()) % 997 for a, b in spans])
    return {"input_ids": ids, "attention_mask": mask, "offset_mapping": offsets}


def encoder(input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
    """A row of numbers for each token, the same wherever it stands."""
    rows = torch.randn(997, WIDTH, generator=torch.Generator().manual_seed(0))
    return SimpleNamespace(last_hidden_state=rows[input_ids])


@pytest.fixture(scope="module")
def taught() -> Canon:
    return canon(encoder, tokenizer)


def caption_with(sentence: str, said: list[str], garments: tuple[Garment, ...]) -> Caption:
    text, spans = filled_in(sentence, said)
    return Caption(text, garments, spans)


def test_what_is_said_of_a_garment_is_found_in_the_text() -> None:
    made = caption_with("{right}, and left of it {left}", ["a bag", "a shirt"], (BAG, SHIRT))
    assert made.text == "a shirt, and left of it a bag"
    assert [made.text[begin:end] for begin, end in made.spans] == ["a bag", "a shirt"]
    _, owners = tokens_of(tokenizer, [made, Caption("", ())])
    assert owners[0].tolist() == [-1, 1, 1, -1, -1, -1, -1, -1, 0, 0, -1]
    assert owners[1].tolist() == [-1, -1, *[-2] * 9]


def test_the_last_words_of_garments_become_those_of_the_canonical_caption(taught: Canon) -> None:
    """Canonical: "a black purse to the left, a collared shirt to the right"."""

    def row(word: str) -> Tensor:
        return encoder(tokenizer([word])["input_ids"], None).last_hidden_state[0, 1]

    made = caption_with("{right}, and left of it {left}", ["dark bag", "some very plain shirt"], (BAG, SHIRT))
    encoded, owners = tokens_of(tokenizer, [made])
    found = wanted([made], owners, taught)
    place = made.text.replace(",", " ,").split().index
    expected = {"bag": "purse", "dark": "black", "shirt": "shirt", "plain": "collared", "very": "a", "some": "a"}
    for word, other in expected.items():
        torch.testing.assert_close(found.rows[0, place(word) + 1], row(other))
    torch.testing.assert_close(found.rows[0, -1], row(""))  # the last token is the last one's
    torch.testing.assert_close(found.weights.sum(), torch.tensor(2 + OTHERS))
    at = (found.ends[0] >= 0).nonzero()[:, 0].tolist()
    assert at == [place("shirt") + 1, place("bag") + 1]
    assert found.ends[0, at].tolist() == [len(KINDS) + KINDS.index(SHIRT), KINDS.index(BAG)]
    assert encoded.keys() == {"input_ids", "attention_mask"}


def test_one_garment_stands_alone_and_no_words_stay_what_they_are(taught: Canon) -> None:
    made = caption_with("a photo of {}", ["a shirt"], (SHIRT,))
    _, owners = tokens_of(tokenizer, [made, Caption("", ())])
    found = wanted([made, Caption("", ())], owners, taught)
    assert found.ends[0].max() == PLACES.index("alone") * len(KINDS) + KINDS.index(SHIRT)
    silent = encoder(tokenizer([""])["input_ids"], None).last_hidden_state[0]
    torch.testing.assert_close(found.rows[1, :2], silent[:2])
    assert len(taught.rows) == len(CONTENTS) and (found.weights[1, 2:] == 0).all()


def test_the_error_is_of_what_is_wanted(taught: Canon) -> None:
    made = caption_with("{left} and {right}", ["a bag", "a shirt"], (BAG, SHIRT))
    _, owners = tokens_of(tokenizer, [made])
    found = wanted([made], owners, taught)
    right, none = errors(found.rows, found, taught), errors(torch.zeros_like(found.rows), found, taught)
    assert right[0] == 0 and (none > right).all()
    swapped = found.rows.flip(1)
    assert errors(swapped, found, taught)[0] > 0.5


def test_others_speak_with_other_articles_and_none_of_the_canonical_wording_is_lost() -> None:
    wider = spoken(WIDER)
    assert set(WIDER.two) < set(wider.two) and {"a", "the", "one", ""} == set(wider.articles)
    for nouns, canonical in zip(WIDER.nouns, CANONICAL.nouns, strict=True):
        assert set(canonical) <= set(nouns)  # the DiT was trained with it


class Layers(nn.Module):
    """Named as the parts of a BertModel."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList([nn.ModuleDict({"query": nn.Linear(6, 4)})])})


def test_a_lora_that_was_written_is_merged(tmp_path: Path) -> None:
    """What is merged computes what was trained."""
    torch.manual_seed(0)
    model, x = Layers(), torch.randn(3, 6)
    folder, weights = tmp_path / "minilm", tmp_path / "minilm" / "text_encoder" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    save_file(model.state_dict(), weights)
    adapted = adapt(model, 2, 0.0)
    nn.init.normal_(adapted["encoder.layer.0.query"].up)
    write_lora(adapted, tmp_path / "lora.safetensors")
    merged = load_file(
        merge(folder, tmp_path / "lora.safetensors", tmp_path / "out") / "text_encoder/model.safetensors"
    )
    layer = adapted["encoder.layer.0.query"]
    expected = layer(x)
    found = x @ merged["encoder.layer.0.query.weight"].T + merged["encoder.layer.0.query.bias"]
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)  # float16 in the file
    assert (found - layer.linear(x)).abs().max() > 0.1
    with pytest.raises(CheckpointError, match="LoRA of another model"):
        merge(folder, LORA, tmp_path / "other")


def test_the_shipped_lora_is_of_every_linear_layer() -> None:
    layers = {key.rsplit(".", 2)[0] for key in load_file(LORA)}
    assert len(layers) == 6 * 6 and LORA.stat().st_size < 2e6
