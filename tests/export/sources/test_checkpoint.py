"""Reading checkpoints: what is inferred, and what is refused with the key's name."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ditedge.export import DiT, DiTConfig, read_checkpoint
from ditedge.export.networks.dit import initialize_weights
from ditedge.runtime.errors import CheckpointError
from tests.conftest import GOLDEN

GRAY = GOLDEN / "gray1_cfg" / "model.safetensors"


def save(path: Path, config: DiTConfig) -> Path:
    torch.manual_seed(0)
    model = DiT(config)
    initialize_weights(model)
    save_file(model.state_dict(), path)
    return path


def gray_with(tmp_path: Path, **changes) -> Path:
    """The gray model with keys replaced, or removed where the value is None."""
    state = load_file(GRAY) | changes
    path = tmp_path / "changed.safetensors"
    save_file({key: value for key, value in state.items() if value is not None}, path)
    return path


@pytest.mark.parametrize(
    "config",
    [
        DiTConfig(8, 2, 4, 48, 1, 3, num_classes=17),
        DiTConfig(8, 4, 3, 64, 3, 2, num_classes=1000, learn_sigma=False),
        DiTConfig(16, 8, 1, 32, 2, 4, num_classes=2),
    ],
)
def test_hyper_parameters_come_from_shapes(tmp_path: Path, config: DiTConfig) -> None:
    assert read_checkpoint(save(tmp_path / "m.safetensors", config), heads=config.num_heads).config == config


@pytest.mark.parametrize(("hidden", "depth", "heads"), [(384, 12, 6), (768, 12, 12)])
def test_standard_sizes_know_their_heads(tmp_path: Path, hidden: int, depth: int, heads: int) -> None:
    path = save(tmp_path / "m.safetensors", DiTConfig(4, 2, 4, hidden, depth, heads, num_classes=3))
    assert read_checkpoint(path).config.num_heads == heads


def test_null_class_is_num_classes(tmp_path: Path) -> None:
    path = save(tmp_path / "m.safetensors", DiTConfig(8, 2, 1, 32, 1, 2, num_classes=17))
    assert read_checkpoint(path, heads=2).config.num_classes == 17
    without = read_checkpoint(path, heads=2, null_class=False).config
    assert (without.num_classes, without.null_class) == (18, False)


def test_training_checkpoint_gives_ema_and_arguments(tmp_path: Path) -> None:
    state = load_file(GRAY)
    path = tmp_path / "train.pt"
    arguments = argparse.Namespace(num_classes=11, num_heads=2)
    ema = {key: value + 1 for key, value in state.items()}
    torch.save({"model": state, "ema": ema, "opt": {}, "args": arguments}, path)
    checkpoint = read_checkpoint(path)
    assert torch.equal(checkpoint.weights["x_embedder.proj.bias"], state["x_embedder.proj.bias"] + 1)
    assert (checkpoint.config.num_heads, checkpoint.config.num_classes, checkpoint.config.null_class) == (2, 11, False)


def test_wrapped_half_precision_and_missing_positions(tmp_path: Path) -> None:
    state = load_file(GRAY)
    path = tmp_path / "wrapped.pt"
    torch.save({f"module.{key}": value.half() for key, value in state.items() if key != "pos_embed"}, path)
    weights = read_checkpoint(path, heads=2, image_size=8).weights
    assert all(value.dtype == torch.float32 for value in weights.values())
    torch.testing.assert_close(weights["pos_embed"], state["pos_embed"])


def test_pickles_with_code_are_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "it-ran"

    class Bomb:
        def __reduce__(self):
            return Path.touch, (marker,)

    path = tmp_path / "bomb.pt"
    torch.save({"ema": load_file(GRAY), "extra": Bomb()}, path)
    with pytest.raises(CheckpointError, match="would run code"):
        read_checkpoint(path, heads=2)
    assert not marker.exists()


@pytest.mark.parametrize("layout", ["model.pt", "train_checkpoint.pt", "model.safetensors"])
@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.5, 0.999])
def test_truncated_files_are_refused(tmp_path: Path, layout: str, fraction: float) -> None:
    raw = (GOLDEN / "gray1_cfg" / layout).read_bytes()
    path = tmp_path / layout
    path.write_bytes(raw[: int(len(raw) * fraction)])
    with pytest.raises(CheckpointError, match=layout):
        read_checkpoint(path, heads=2)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"blocks.1.attn.qkv.bias": None}, "key 'blocks.1.attn.qkv.bias' is missing"),
        ({"x_embedder.proj.weight": None}, "key 'x_embedder.proj.weight' is missing"),
        ({"extra.weight": torch.ones(3)}, "key 'extra.weight' is not part of a DiT"),
        ({"blocks.0.mlp.fc1.weight": torch.ones(3, 3)}, r"key 'blocks.0.mlp.fc1.weight' has shape \[3, 3\]"),
        ({"blocks.0.mlp.fc1.bias": torch.full((128,), torch.nan)}, "key 'blocks.0.mlp.fc1.bias' has numbers"),
        ({"blocks.0.mlp.fc1.bias": torch.ones(128, dtype=torch.int64)}, "key 'blocks.0.mlp.fc1.bias' has type"),
        ({"pos_embed": None}, "give --image-size"),
        ({"pos_embed": torch.ones(1, 15, 32)}, "15 positions"),
        ({"final_layer.linear.weight": torch.ones(12, 32)}, "makes 3 channels of 1"),
        ({"y_embedder.embedding_table.weight": torch.ones(5)}, "y_embedder.embedding_table.weight"),
    ],
)
def test_misfits_name_the_key(tmp_path: Path, changes: dict, complaint: str) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        read_checkpoint(gray_with(tmp_path, **changes), heads=2)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [({}, "give --heads N"), ({"heads": 5}, "--heads 5"), ({"heads": 2, "image_size": 16}, "trained for 8")],
)
def test_options_that_do_not_fit(options: dict, complaint: str) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        read_checkpoint(GRAY, **options)


@pytest.mark.parametrize("data", [{}, [], {"a": 1}, torch.ones(3), {"ema": {"x": 3}}])
def test_files_without_a_state_dict(tmp_path: Path, data: object) -> None:
    torch.save(data, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match="no state dict"):
        read_checkpoint(tmp_path / "odd.pt")
