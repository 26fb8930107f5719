"""The text demo's trainer: its captions, what it begins with, and that it trains the network that export reads."""

from __future__ import annotations

import argparse
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from captioned_images import TOKENS, Batch, Data, batch
from confusion import another, confusion, mean_where, other_classes
from fashion_mnist import CLASSES
from pixart_of_dit import initialize, read_teacher
from safetensors.torch import load_file
from text_captions import (
    HELD_OUT,
    TRAINED,
    WIDER,
    Caption,
    Garment,
    Language,
    brightness_groups,
    brightness_of,
    caption,
    caption_of,
)
from text_encoder import WIDTH
from train_text import BRIGHTNESS, CONFIG, Run, by_halves, hint_error, new_run, predicted, with_brightness

from ditedge.export.networks.pixart import PixArt
from ditedge.runtime.loop.verify import relative_error
from tests.conftest import MODELS

START = MODELS / "fashion-dit.safetensors"


@pytest.mark.parametrize("language", [WIDER, HELD_OUT])
def test_captions_say_what_their_garments_are(language: Language) -> None:
    assert len(language.nouns) == len(CLASSES)
    bag, boot = Garment(CLASSES.index("Bag"), "dark"), Garment(CLASSES.index("Ankle boot"))
    for seed in range(300):
        text = caption_of(language, random.Random(seed), (bag, boot)).text
        noun = max(
            (n for n in language.nouns[bag.label] for w in language.words["dark"] if f"{w} {n}" in text), key=len
        )
        other = max((n for n in language.nouns[boot.label] if n in text), key=len)
        begins, ends = zip(*sorted([(text.index(noun), len(noun)), (text.rindex(other), len(other))]), strict=True)
        before, rest = text[: begins[0]], text[begins[0] + ends[0] :]
        assert (text.index(noun) > text.rindex(other)) == right_is_first(before, rest), text


def right_is_first(before: str, rest: str) -> bool:
    """Whether a reader takes the garment that is named first for the right one, by the words before it and after it."""
    return bool(
        re.search(r"(?<!left to )\bright\b(?! of)|\bleft of\b", before)
        or re.match(r" (is )?((on|to) the )?right\b| comes after\b", rest)
        or re.search(r"\bits left\b|\bleft of it\b|\bbeside it, on the left\b", rest)
    )


def test_articles() -> None:
    source = random.Random(1)
    texts = [caption(TRAINED, source, garments).text for garments in (1, 2) for _ in range(300)]
    assert not [text for text in texts for word in ("jeans", "slacks") if f"a {word}" in text]
    assert [text for text in texts if "an ankle boot" in text] and not [text for text in texts if "a ankle" in text]


def test_paraphrases_are_never_in_training() -> None:
    known = {noun for nouns in WIDER.nouns for noun in nouns}
    assert not known & {noun for nouns in HELD_OUT.nouns for noun in nouns}
    trained, held_out = ({bare(each) for each in (*of.one, *of.two)} for of in (WIDER, HELD_OUT))
    assert not trained & held_out
    assert not {word for words in TRAINED.words.values() for word in words} & {
        word for words in HELD_OUT.words.values() for word in words
    }


def bare(sentence: str) -> str:
    """Without articles and punctuation."""
    return " ".join(word for word in re.findall(r"\w+", sentence) if word not in ("a", "an", "the"))


def test_words_of_brightness_mean_the_darkest_and_the_brightest_third() -> None:
    rng = np.random.default_rng(0)
    labels, level = rng.integers(0, 3, 300), rng.integers(40, 250, 300)
    images = np.zeros((300, 8, 8), np.uint8)
    images[:, 2:6, 2:6] = level[:, None, None]
    np.testing.assert_array_equal(brightness_of(images), level)
    groups = brightness_groups(images, labels)
    for label in range(3):
        any_, dark, bright = (level[groups[Garment(label, word)]] for word in (None, "dark", "bright"))
        assert len(dark) == len(bright) == len(any_) // 3
        assert dark.max() <= np.sort(any_)[len(any_) // 3] and bright.min() >= np.sort(any_)[-len(any_) // 3]
        assert set(labels[groups[Garment(label, "dark")]]) == {label}


def started() -> PixArt:
    torch.manual_seed(0)
    model = PixArt(CONFIG)
    initialize(model, START)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def test_it_trains_the_network_that_export_reads() -> None:
    model, generator = started(), torch.Generator().manual_seed(1)
    for parameter in model.parameters():  # cross-attention begins with zeros, which would hide it
        parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    x, hidden = torch.randn(3, 1, 32, 64, generator=generator), torch.randn(3, 5, 384, generator=generator)
    mask, t = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 1, 1, 0]]), torch.tensor([3, 400, 998])
    found = predicted(model, x, t, hidden, mask)
    position = model.position(torch.arange(8.0), torch.arange(16.0))
    expected = model.trunk(x, model.conditioner(t.float()), *model.context(hidden, mask), torch.arange(3), position)
    assert relative_error(found.numpy(), expected.numpy()) < 1e-5


@torch.no_grad()
def test_it_begins_as_the_class_conditional_model_of_no_class() -> None:
    """Not the same function, since adaLN-single has one linear layer for all blocks; but one that sees garments."""
    model, teacher, generator = started(), read_teacher(START), torch.Generator().manual_seed(2)
    x, hidden = torch.randn(8, 1, 32, 32, generator=generator), torch.randn(8, 5, 384, generator=generator)
    t, mask = torch.full((8,), 500), torch.ones(8, 5, dtype=torch.int64)
    found = predicted(model, x, t, hidden, mask)
    expected = teacher(x, t, torch.full((8,), 10))[:, :1]
    assert relative_error(found.numpy(), expected.numpy()) < 0.2  # measured: 0.09


@torch.no_grad()
def test_each_half_is_taught_by_itself() -> None:
    teacher, generator = read_teacher(START), torch.Generator().manual_seed(3)
    x, noise = (torch.randn(2, 1, 32, 64, generator=generator) for _ in range(2))
    t, said = torch.tensor([100, 700]), torch.tensor([[3, 4], [10, 7]])
    drawn = Batch(x, x, said, said, torch.tensor([[False, True], [False, False]]))
    found = with_brightness(by_halves(teacher, x, t, said), drawn, noise)
    for picture, half, label in ((0, 0, 3), (0, 1, 4), (1, 0, 10), (1, 1, 7)):
        place = slice(32 * half, 32 * half + 32)
        alone = teacher(x[picture : picture + 1, :, :, place], t[picture : picture + 1], torch.tensor([label]))
        expected = alone[0, :1]
        if drawn.bright[picture, half]:
            expected = (1 - BRIGHTNESS) * expected + BRIGHTNESS * noise[picture, :, :, place]
        torch.testing.assert_close(found[picture, :, :, place], expected, rtol=1e-4, atol=1e-4)


def test_a_caption_remembers_its_garments() -> None:
    garments = (Garment(3, "dark"), Garment(7))
    made = caption_of(TRAINED, random.Random(0), garments)
    assert isinstance(made, Caption) and made.garments == garments


def test_confusion_is_the_part_of_another_class() -> None:
    generator, plain = torch.Generator().manual_seed(4), torch.zeros(3, 2, dtype=torch.bool)
    other = torch.randn(3, 1, 32, 64, generator=generator)
    for part in (0.0, 0.5, 1.0):
        found = confusion(part * other, other, plain)
        assert abs(found.item() - (part / 1.1) ** 2) < 0.01  # halves of nearly one size: 0.1 of it is added
    across = torch.randn(3, 1, 32, 64, generator=generator)
    assert confusion(across, other, plain) < 0.01


def test_halves_whose_brightness_is_said_are_not_compared_with_the_teacher() -> None:
    """It knows nothing of brightness: only what the other halves do wrong counts."""
    generator, bright = torch.Generator().manual_seed(5), torch.tensor([[True, False], [False, True]])
    other, wrong = torch.randn(2, 1, 32, 64, generator=generator), torch.zeros(2, 1, 32, 64)
    wrong[0, :, :, :32], wrong[1, :, :, 32:] = other[0, :, :, :32], other[1, :, :, 32:]
    assert confusion(wrong, other, bright) == 0 and confusion(wrong, other, ~bright) > 0.5
    assert mean_where(torch.tensor([1.0, 5.0]), torch.tensor([False, False])) == 0

    model, teacher = started(), read_teacher(START)
    run = Run(argparse.Namespace(), model, model, None, teacher, ([], []))  # type: ignore[arg-type]
    here, there = (torch.randn(shape, generator=generator) for shape in ((2, 128, 192), (4, 64, 192)))

    def error(of: torch.Tensor) -> float:
        run.hints[0].append(of), run.hints[1].append(there)
        return hint_error(run, 8, bright).item()

    columns = torch.arange(128) % 16  # of a token's patch
    left_out = here.clone()
    left_out[0, columns < 8], left_out[1, columns >= 8] = 7.0, 7.0
    assert abs(error(here) - error(left_out)) < 1e-6 and abs(error(here) - error(here + 1)) > 0.01


def test_another_class_is_another() -> None:
    said = torch.tensor([[3, 10]] * 500)
    found = another(said)
    assert not (found == said).any() and set(found.flatten().tolist()) == set(range(11))


def test_classes_that_look_alike_are_held_against_each_other() -> None:
    table = other_classes()
    torch.testing.assert_close(table.sum(1), torch.ones(11))
    assert table.diagonal().sum() == 0
    shirts, bag = table[CLASSES.index("Pullover"), [0, 3, 4, 6]], table[CLASSES.index("Bag")]
    torch.testing.assert_close(shirts.sum(), torch.tensor(0.7 + 0.3 * 4 / 10))
    assert bag[bag > 0].unique().numel() == 1


def test_captions_are_drawn_by_their_weights_and_shown() -> None:
    """Two kinds of garments, classes 0 and 1, an image of each; a caption of each pair, whose rows say which it is."""
    torch.manual_seed(7)
    pairs, two = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]), torch.arange(2)
    rows = torch.tensor([0, 100, 200, 300, -100]).half()[:, None, None].expand(-1, TOKENS, WIDTH)
    images = torch.tensor([50, 200], dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 32, 32)
    weights, every = torch.tensor([0.0, 1.0, 3.0, 0.0]), torch.arange(4)
    told, count, lengths = torch.zeros(2, dtype=torch.bool), torch.ones(2, dtype=torch.int64), torch.full((5,), 2)
    drawn = batch(2000, Data(images, rows, lengths, pairs, weights, every, every, two, told, two, two, count), 2)
    number, silent = (drawn.hidden.mean((1, 2)) / 100).round().long(), drawn.said[:, 0] == len(CLASSES)
    assert ((number == -1) == silent).all() and 100 < silent.sum() < 300  # one caption in ten is of no words
    assert set(number[~silent].tolist()) == {1, 2} and 2 < (number == 2).sum() / (number == 1).sum() < 4.5
    shown = (drawn.pictures[:, 0, 16, [0, 32]] > 0).long()
    assert (pairs[number[~silent]] == shown[~silent]).all() and (drawn.said[~silent] == shown[~silent]).all()


def test_training_goes_on_from_weights_of_a_pixart(tmp_path: Path) -> None:
    shipped = MODELS / "fashion-pixart" / "transformer" / "diffusion_pytorch_model.safetensors"
    run = new_run(argparse.Namespace(start=START, weights=shipped, device="cpu", learning_rate=1e-3, out=tmp_path))
    expected = load_file(shipped)
    for model in (run.model, run.ema):
        found = model.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor.float()) for name, tensor in expected.items())
    assert run.step == 0 and all(parameter.requires_grad for parameter in run.model.parameters())
