"""Settings that a training run wrote down: where they are found, and what is refused."""

from __future__ import annotations

import argparse
import json
import math
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ditedge.export import read_checkpoint
from ditedge.runtime.errors import CheckpointError
from tests.export.sources.layouts import EMA


def omegaconf_pickle(monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]) -> Any:
    """An object that is pickled as omegaconf 2.4 pickles `OmegaConf.create(values)`: names, states, back references."""
    for name in ("omegaconf", "omegaconf.base", "omegaconf.nodes", "omegaconf.dictconfig"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))

    def cls(module: str, name: str) -> type:
        made = type(name, (), {"__module__": f"omegaconf.{module}"})
        setattr(sys.modules[f"omegaconf.{module}"], name, made)
        return made

    metadata, container_metadata = cls("base", "Metadata"), cls("base", "ContainerMetadata")
    node, config = cls("nodes", "AnyNode"), cls("dictconfig", "DictConfig")

    def made(kind: type, **state: Any) -> Any:
        instance = kind()
        instance.__dict__.update(state)
        return instance

    def create(values: Any, parent: Any) -> Any:
        if not isinstance(values, dict):
            return made(node, _metadata=made(metadata, ref_type=Any, key="k"), _parent=parent, _val=values)
        about = made(container_metadata, ref_type=Any, object_type=dict, key_type=Any)
        whole = made(config, _metadata=about, _parent=parent)
        whole.__dict__["_content"] = {key: create(value, whole) for key, value in values.items()}
        return whole

    return create(values, None)


SETTINGS = {"num_classes": 6, "model": {"num_heads": 3, "mlp_ratio": 2.5, "name": "dit"}, "optimizer": {"depth": 99}}


@pytest.mark.parametrize(
    "kind", ["namespace", "dict", "omegaconf", "args.json", "config.yaml", "hydra", "hparams.yaml"]
)
def test_settings_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """6 rows and 6 classes: no null class. 3 heads: said nowhere else."""
    inside: dict[str, Callable[[], Any]] = {
        "namespace": lambda: argparse.Namespace(**SETTINGS, save_dir=Path("x")),
        "dict": lambda: {**SETTINGS, "num_classes": np.int64(6)},
        "omegaconf": lambda: omegaconf_pickle(monkeypatch, SETTINGS),
    }
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    data = {"ema": EMA, "hyper_parameters": {"lr": 1e-4}}
    torch.save(data | ({"args": inside[kind]()} if kind in inside else {}), folder / "0400000.pt")
    if kind == "args.json":
        (tmp_path / "run" / kind).write_text(json.dumps(SETTINGS))
    elif kind == "hydra":
        (tmp_path / "run" / ".hydra").mkdir()
        (tmp_path / "run" / ".hydra" / "config.yaml").write_text("num_classes: 6\nmodel:\n  num_heads: 3\n")
    elif kind not in inside:
        (tmp_path / "run" / kind).write_text(
            "args: !!python/object:argparse.Namespace\n  num_classes: 6\n  num_heads: 3\n"
        )
    for name in [name for name in sys.modules if name.startswith("omegaconf")]:
        monkeypatch.delitem(sys.modules, name)
    checkpoint = read_checkpoint(folder / "0400000.pt")
    assert (checkpoint.config.num_heads, checkpoint.config.num_classes, checkpoint.config.null_class) == (3, 6, False)
    origin = {"hydra": ".hydra/config.yaml"}.get(kind, "'args' of the file" if kind in inside else kind)
    assert checkpoint.notes[1] == (
        f"settings: 3 heads ({origin}: num_heads 3), 6 classes without a null class ({origin}: num_classes 6)"
    )


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"num_heads": 5}, "num_heads 5 does not divide the width 48"),
        ({"depth": 3}, "depth 3 contradicts the weights, whose shapes say 2"),
        ({"hidden_size": 64}, "hidden_size 64 contradicts .* say 48"),
        ({"model": {"patch_size": (4, 4)}}, "patch_size 4 contradicts .* say 2"),
        ({"mlp_ratio": 4}, r"mlp_ratio 4.0 contradicts .* say 2.5"),
        ({"num_classes": 1000}, "num_classes 1000 contradicts .* say 6, or 5 and a null class"),
        ({"image_size": 256}, "image_size 256 contradicts .* say 64"),
        ({"learn_sigma": False}, "learn_sigma False contradicts .* say True"),
        ({"num_heads": "many"}, "num_heads is 'many', expected a whole number"),
        ({"num_heads": 10**600}, "num_heads is out of any range"),
        ({"mlp_ratio": math.nan}, "mlp_ratio is out of any range"),
    ],
)
def test_settings_that_contradict_the_shapes_are_refused(tmp_path: Path, settings: dict, complaint: str) -> None:
    torch.save({"ema": EMA, "args": settings}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=f"'args' of the file: {complaint}"):
        read_checkpoint(tmp_path / "c.pt", heads=None if "num_heads" in settings else 3)


@pytest.mark.parametrize(
    ("settings", "null_class"), [({}, True), ({"class_dropout_prob": 0.0}, False), ({"cfg_prob": 0.1}, True)]
)
def test_the_null_class_follows_the_settings(tmp_path: Path, settings: dict, null_class: bool) -> None:
    torch.save({"ema": EMA, "args": settings}, tmp_path / "c.pt")
    assert read_checkpoint(tmp_path / "c.pt", heads=3).config.null_class == null_class
    assert read_checkpoint(tmp_path / "c.pt", heads=3, null_class=not null_class).config.null_class != null_class


def test_the_size_of_missing_positions_is_recorded(tmp_path: Path) -> None:
    state = {key: value for key, value in EMA.items() if key != "pos_embed"}
    torch.save({"ema": state, "args": {"image_size": 64}}, tmp_path / "c.pt")
    assert read_checkpoint(tmp_path / "c.pt", heads=3).config.input_size == 8


@pytest.mark.parametrize(
    "text",
    [
        "a: [1, 2",
        "a: " + "[" * 5000,
        "x" * 300_000,
        "num_heads: " + "9" * 5000,
        "\x00",
    ],
)
def test_a_settings_file_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    torch.save(EMA, tmp_path / "c.pt")
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(CheckpointError, match="config.yaml: .*move it away"):
        read_checkpoint(tmp_path / "c.pt", heads=3)


def test_settings_that_are_tensors_are_none(tmp_path: Path) -> None:
    torch.save(
        EMA | {"args": {"num_heads": 3, "depth": [torch.ones(2)] * 2, "image_size": torch.ones(3)}}, tmp_path / "c.pt"
    )
    assert read_checkpoint(tmp_path / "c.pt").config.num_heads == 3


def test_yaml_runs_nothing_and_does_not_grow(tmp_path: Path) -> None:
    torch.save(EMA, tmp_path / "c.pt")
    bomb = "a0: &a0 {" + ", ".join(f"k{i}: 1" for i in range(20)) + "}\n"
    bomb += "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 20)}]}}\n" for i in range(1, 12))
    marker = tmp_path / "it-ran"
    code = f"x: !!python/object/apply:os.mkdir ['{marker}']\nnum_heads: 3\n"
    (tmp_path / "config.yaml").write_text(bomb + code)
    assert read_checkpoint(tmp_path / "c.pt").config.num_heads == 3
    assert not marker.exists()
