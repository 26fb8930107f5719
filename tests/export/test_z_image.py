"""Z-Image's network, graphs and tokenizer against diffusers' own classes; its pipeline: test_joint_families.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ditedge.export.graphs.write import GRAPH_TOLERANCE, write_specs
from ditedge.export.graphs.write_text import _specs
from ditedge.export.networks.z_image import ZImage, ZImageConfig
from ditedge.export.options import ExportOptions
from ditedge.export.sources.families import family_of
from ditedge.export.sources.prompt_checkpoint import PromptCheckpoint
from ditedge.export.sources.text_folder import TextFolder
from ditedge.runtime.errors import CheckpointError
from ditedge.runtime.loop.verify import relative_error
from tests.export.joint_pipelines import CHANNELS, HEAD, HEADS, SIDE, T5_WIDTH, qwen_tokenizer, z_image_transformer

TOKENS = 96
CONFIG = ZImageConfig(SIDE, CHANNELS, CHANNELS, HEADS, HEAD, 2, 1, T5_WIDTH, (4, 6, 6), tokens=TOKENS)


def network() -> tuple[Any, ZImage]:
    reference = z_image_transformer()
    model = ZImage(CONFIG)
    model.load_state_dict(reference.state_dict())
    return reference, model.eval()


def read(folder: Path) -> PromptCheckpoint:
    found = family_of(folder)
    assert found is not None
    return found(folder)


@pytest.mark.parametrize(
    ("sides", "filling"), [((10, 14), 29), ((16, 16), 0), ((2, 2), 31)], ids=["29 fill up", "none", "31"]
)
@torch.no_grad()
def test_it_is_diffusers_own(sides: tuple[int, int], filling: int) -> None:
    """Prompts of a batch have 5, 40 and 64 tokens, which are filled up to 32, 64 and 64 of 96."""
    (reference, model), lengths = network(), (5, 40, 64)
    (height, width), random = sides, torch.Generator().manual_seed(1)
    assert -(height * width // 4) % 32 == filling
    x, rows = (torch.randn(3, *shape, generator=random) for shape in ((CHANNELS, *sides), (TOKENS, T5_WIDTH)))
    timestep = torch.tensor([1000.0, 500.0, 3.0])
    expected = reference(
        list(x[:, :, None]), (1000 - timestep) / 1000, [own[:n] for own, n in zip(rows, lengths, strict=True)]
    ).sample
    mask = (torch.arange(TOKENS) < torch.tensor(lengths)[:, None]).long()
    context, bias = model.context(rows, mask)
    position = model.position(torch.arange(height / 2), torch.arange(width / 2))
    found = -model.trunk(x, model.conditioner(timestep), context, bias, torch.arange(3), position)
    assert relative_error(found.numpy(), torch.stack(expected)[:, :, 0].numpy()) < 1e-6


@torch.no_grad()
def test_what_lies_behind_a_prompt_changes_nothing() -> None:
    """Neither the numbers there, nor how many rows: the same prompt in 512."""
    (_, short), long = network(), ZImage(ZImageConfig(**{**vars(CONFIG), "tokens": 512})).eval()
    long.load_state_dict(short.state_dict())
    random, found = torch.Generator().manual_seed(1), []
    x, words = torch.randn(1, CHANNELS, 6, 8, generator=random), torch.randn(1, 9, T5_WIDTH, generator=random)
    for model in (short, long):
        tokens = model.config.tokens
        rows = torch.randn(1, tokens, T5_WIDTH, generator=random)
        rows[:, :9] = words
        context, bias = model.context(rows, (torch.arange(tokens) < 9).long()[None])
        position = model.position(torch.arange(3.0), torch.arange(4.0))
        modulation = model.conditioner(torch.tensor([700.0]))
        found.append(model.trunk(x, modulation, context, bias, torch.tensor([0]), position))
    assert relative_error(found[1].numpy(), found[0].numpy()) < 1e-6


@pytest.mark.parametrize(
    "graphs", [{"context", "position"}, pytest.param({"conditioner", "step"}, marks=pytest.mark.slow)]
)
def test_graphs_are_the_module(tmp_path: Path, graphs: set[str]) -> None:
    """`write_specs` compares each with PyTorch at other sizes than those it was traced with: pictures of 40 and of 12
    tokens, which are filled up to 64 and to 32."""
    (_, model), told = network(), []
    specs = [spec for spec in _specs(model, False) if spec.name in graphs]
    sizes = {"B": 2, "K": 1, "K+2": 3, "E": 2, "U": 3, "P": 2}
    both = [sizes | {"h": h, "w": w, "2*h": 2 * h, "2*w": 2 * w} for h, w in ((5, 8), (4, 3))]
    opset = ExportOptions().opset
    written = write_specs(specs, (both[0], both[1]), 1000.0, tmp_path, opset, lambda *said: told.append(said[0]))
    assert GRAPH_TOLERANCE == 1e-5 and set(written) == graphs
    assert all(f"checking {name}.onnx against PyTorch" in told for name in graphs)


def test_a_prompt_is_what_a_user_says_in_a_chat(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    z_image_transformer().save_pretrained(tmp_path / "transformer")
    own = qwen_tokenizer()
    own.save_pretrained(tmp_path / "tokenizer")
    (use,) = read(tmp_path / "transformer").encoders
    made = Tokenizer.from_str(TextFolder(use, tmp_path / "encoder", tmp_path / "tokenizer", "").tokenizer_json())
    for prompt in ("a red fox", "", " us \n\nUS<|im_end|>us ", "x" * 600):
        said = [{"role": "user", "content": prompt}]
        text = own.apply_chat_template(said, tokenize=False, add_generation_prompt=True, enable_thinking=True)
        assert made.encode(prompt).ids == own(text).input_ids
    made.enable_truncation(512)  # of one that is too long the template stays whole
    cut, after = made.encode("x" * 600).ids, own("<|im_end|>\n<|im_start|>assistant\n").input_ids
    assert len(cut) == 512 and cut[-len(after) - 1 :] == [*own("x").input_ids, *after]


def test_turbo_is_known_by_its_folders_name(tmp_path: Path) -> None:
    for name, expected in (
        ("z", (50, 6.0)),
        ("Z-Image-Turbo", (8, 1.0)),
        ("models--Tongyi-MAI--Z-Image-Turbo/snapshots/04cc4abb", (8, 1.0)),
    ):
        z_image_transformer().save_pretrained(tmp_path / name)
        checkpoint = read(tmp_path / name)
        process = checkpoint.process
        assert (process.steps, process.guidance) == expected
        assert ("Turbo, by the folder's name" in checkpoint.notes[1]) == (expected[0] == 8)
    assert process.flow is not None and (process.flow.shift, process.flow.spacing) == (3.0, "even")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"siglip_feat_dim": 8}, "'siglip_feat_dim': Z-Image Omni, which reads pictures too, is not supported"),
        ({"n_heads": 3}, "'dim' 32 is not a multiple of 'n_heads' 3"),
        ({"axes_dims": [4, 6, 4]}, "'axes_dims' is not three even numbers that add up to 'dim' / 'n_heads'"),
        ({"axes_lens": [64, 512, 512]}, "'axes_lens' has less places than prompts and pictures need"),
        ({"all_patch_size": [2, 4]}, r"'all_patch_size' is \[2, 4\]: a Z-Image has \[2\]"),
        ({"n_layers": 3}, "key 'layers.2.attention"),
    ],
)
def test_what_is_not_read(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    z_image_transformer().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(CheckpointError, match=sentence):
        read(tmp_path)


@pytest.mark.parametrize("pipeline", ["ZImageControlNetPipeline", "ZImageOmniPipeline"])
def test_pipelines_of_more_than_words_are_refused(tmp_path: Path, pipeline: str) -> None:
    z_image_transformer().save_pretrained(tmp_path / "transformer")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    with pytest.raises(CheckpointError, match=f"'_class_name' is '{pipeline}': of Z-Image, ZImagePipeline is read"):
        read(tmp_path)
