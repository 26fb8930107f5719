"""PixArt in one file: PixArt's own checkpoints, and a diffusers transformer's weights alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ditedge.export import ExportOptions, bundle_from_checkpoint
from ditedge.export.sources.families import family_of
from ditedge.export.sources.pixart_file import is_pixart_file, read_pixart_file
from ditedge.runtime.errors import CheckpointError, RequestError
from tests.export.pixart_pipelines import small_transformer


def own_names(network: Any) -> dict[str, torch.Tensor]:
    """A PixArtTransformer2DModel's weights as PixArt's training code saves them, literally."""
    state = dict(network.state_dict())
    linear = lambda ours, theirs: {f"{ours}.{k}": state[f"{theirs}.{k}"] for k in ("weight", "bias")}  # noqa: E731

    def fused(ours: str, theirs: str, parts: str) -> dict[str, torch.Tensor]:
        return {
            f"{ours}.{k}": torch.cat([state[f"{theirs}.to_{part}.{k}"] for part in parts]) for k in ("weight", "bias")
        }

    found = linear("x_embedder.proj", "pos_embed.proj") | linear("t_block.1", "adaln_single.linear")
    found |= linear("y_embedder.y_proj.fc1", "caption_projection.linear_1")
    found |= linear("y_embedder.y_proj.fc2", "caption_projection.linear_2")
    embedders = {"t_embedder": "timestep_embedder"}
    if "adaln_single.emb.resolution_embedder.linear_1.weight" in state:
        embedders |= {"csize_embedder": "resolution_embedder", "ar_embedder": "aspect_ratio_embedder"}
    for ours, theirs in embedders.items():
        found |= linear(f"{ours}.mlp.0", f"adaln_single.emb.{theirs}.linear_1")
        found |= linear(f"{ours}.mlp.2", f"adaln_single.emb.{theirs}.linear_2")
    for i in range(2):
        ours, theirs = f"blocks.{i}", f"transformer_blocks.{i}"
        found[f"{ours}.scale_shift_table"] = state[f"{theirs}.scale_shift_table"]
        found |= fused(f"{ours}.attn.qkv", f"{theirs}.attn1", "qkv")
        found |= fused(f"{ours}.cross_attn.kv_linear", f"{theirs}.attn2", "kv")
        found |= linear(f"{ours}.cross_attn.q_linear", f"{theirs}.attn2.to_q")
        found |= linear(f"{ours}.attn.proj", f"{theirs}.attn1.to_out.0")
        found |= linear(f"{ours}.cross_attn.proj", f"{theirs}.attn2.to_out.0")
        found |= linear(f"{ours}.mlp.fc1", f"{theirs}.ff.net.0.proj") | linear(f"{ours}.mlp.fc2", f"{theirs}.ff.net.2")
    found |= linear("final_layer.linear", "proj_out")
    return found | {"final_layer.scale_shift_table": state["scale_shift_table"]}


def save(folder: Path, tensors: dict[str, torch.Tensor], name: str = "PixArt.pth") -> Path:
    if name.endswith(".safetensors"):
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name)
    else:
        torch.save({"epoch": 3, "state_dict": tensors, "optimizer": {"state": {}}}, folder / name)
    return folder / name


@pytest.mark.parametrize("tokens", [120, 300])
def test_pixarts_own_checkpoints(tmp_path: Path, tokens: int) -> None:
    """Positions say the size of training, the learnt prompt of no words how many tokens, and so which PixArt it is."""
    network = small_transformer(use_additional_conditions=tokens == 120)
    tensors = own_names(network)
    tensors |= {"y_embedder.y_embedding": torch.zeros(tokens, 16), "pos_embed": torch.zeros(1, 16, 24)}
    path = save(tmp_path, tensors)
    family = family_of(path, heads=3)
    assert is_pixart_file(path) and family is not None
    checkpoint = family(path)
    config = checkpoint.config
    assert (config.sample_size, config.tokens, config.told_size) == (8, tokens, tokens == 120)
    assert config.interpolation_scale == (1.0 if tokens == 120 else 8 / 64)
    assert (config.num_heads, config.head_size, config.depth, config.out_channels) == (3, 8, 2, 8)
    theirs = network.state_dict()
    assert checkpoint.weights.keys() == theirs.keys()
    assert all(torch.equal(checkpoint.weights[key], theirs[key]) for key in theirs)


def test_a_diffusers_transformers_weights_alone(tmp_path: Path) -> None:
    network = small_transformer()
    path = save(tmp_path, dict(network.state_dict()), "pixart.safetensors")
    checkpoint = read_pixart_file(path, heads=3, image_size=64)
    assert (checkpoint.config.sample_size, checkpoint.config.tokens) == (8, 300)
    assert any("assumed" in note for note in checkpoint.notes)
    assert all(torch.equal(checkpoint.weights[key], value) for key, value in network.state_dict().items())


def without(*keys: str) -> Any:
    return lambda tensors: {key: value for key, value in tensors.items() if key not in keys}


BAD: dict[str, tuple[Any, dict[str, int], str]] = {
    "no size": (without(), {"heads": 3}, "give --image-size"),
    "no heads": (without(), {"image_size": 64}, "how many heads its width of 24 has: give --heads"),
    "heads that do not divide": (without(), {"heads": 5, "image_size": 64}, "--heads 5 does not divide the width 24"),
    "another size": (
        lambda tensors: tensors | {"pos_embed": torch.zeros(1, 16, 24)},
        {"heads": 3, "image_size": 128},
        "--image-size 128 is not its size of training, the file has positions of 64",
    ),
    "an odd size": (without(), {"heads": 3, "image_size": 60}, "--image-size 60 is not its size of training: not 8 times"),
    "a block cut short": (without("blocks.1.mlp.fc2.bias"), {"heads": 3, "image_size": 64}, "ff.net.2.bias' is missing"),
    "qk-norm": (
        lambda tensors: tensors | {"blocks.0.attn.q_norm.weight": torch.ones(8)},
        {"heads": 3, "image_size": 64},
        "transformer_blocks.0.attn.q_norm.weight' is not part of PixArt",
    ),
    "odd rows": (
        lambda tensors: tensors | {"blocks.0.attn.qkv.bias": torch.ones(71)},
        {"heads": 3, "image_size": 64},
        "not 3 parts of one size",
    ),
    "no patches": (without("x_embedder.proj.weight"), {"heads": 3, "image_size": 64}, "'pos_embed.proj.weight' is missing"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", BAD)
def test_what_shapes_do_not_say_is_asked_for(tmp_path: Path, mistake: str) -> None:
    change, asked, complaint = BAD[mistake]
    path = save(tmp_path, change(own_names(small_transformer())))
    with pytest.raises(CheckpointError, match=complaint) as caught:
        read_pixart_file(path, **asked)
    assert str(path) in str(caught.value)


def test_export_takes_what_a_file_does_not_say_and_no_other_option(tmp_path: Path) -> None:
    path = save(tmp_path, own_names(small_transformer()))
    with pytest.raises(CheckpointError, match="give --image-size"):
        bundle_from_checkpoint(path, tmp_path / "out", ExportOptions(heads=3))
    with pytest.raises(RequestError, match="--guided-channels says nothing of a model that takes prompts"):
        bundle_from_checkpoint(path, tmp_path / "out", ExportOptions(guided_channels=3))
    other = tmp_path / "other.pth"
    torch.save({"x_embedder.proj.weight": torch.zeros(1)}, other)
    (tmp_path / "text.safetensors").write_bytes(b"y_embedder.y_proj.fc1.weight")
    assert not is_pixart_file(other) and family_of(other) is None and family_of(tmp_path / "text.safetensors") is None
