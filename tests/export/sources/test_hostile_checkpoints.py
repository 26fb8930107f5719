"""Checkpoints made to take memory, to run code, or to confuse."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ditedge.export import read_checkpoint
from ditedge.runtime.errors import CheckpointError
from tests.export.sources.layouts import EMA, State


def changed(**tensors: Tensor) -> State:
    return {**EMA, **{key.replace("__", "."): value for key, value in tensors.items()}}


HUGE = torch.zeros(1).expand(1, 100_000_000, 48)
HOSTILE: dict[str, tuple[Any, str]] = {
    "one key": (changed(blocks__3000000__attn__qkv__weight=torch.ones(3)), r"no key starts with 'blocks.2.', .*'blocks.3000000.'"),
    "a long number": ({**EMA, f"blocks.{'9' * 400}.x": torch.ones(3)}, "no key starts with 'blocks.2.'"),
    "stride 0": (changed(pos_embed=HUGE), "'pos_embed' has shape .*do not hold it"),
    "a table": (changed(y_embedder__embedding_table__weight=torch.zeros(1).expand(200_000_000, 48)), "do not hold it"),
    "blocks that share": ({**EMA, **{f"blocks.{i}.{key}": EMA["blocks.0.attn.qkv.weight"] for i in range(2, 200)
                                     for key in ("attn.qkv.weight", "mlp.fc1.weight")}}, "do not hold it"),
    "no patch": (changed(x_embedder__proj__weight=torch.ones(48, 4, 0, 0)), r"shape \[48, 4, 0, 0\]"),
    "sparse": (changed(blocks__0__attn__qkv__weight=torch.eye(48).to_sparse()), "is a sparse_coo tensor"),
    "float8": (changed(blocks__0__attn__qkv__weight=torch.ones(144, 48).to(torch.float8_e4m3fn)), "is a float8_e4m3fn tensor"),
    "complex": (changed(blocks__0__attn__qkv__bias=torch.ones(144, dtype=torch.complex64)), "is a complex64 tensor"),
    "meta": (changed(blocks__0__attn__qkv__bias=torch.ones(144, device="meta")), "is a 'meta' tensor"),
    "an odd sinusoid": (changed(t_embedder__mlp__0__weight=torch.ones(48, 63)), "a sinusoid of 63 channels are not those"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_sizes_in_a_file_take_no_memory(tmp_path: Path, case: str) -> None:
    data, complaint = HOSTILE[case]
    torch.save(data, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=complaint):
        read_checkpoint(tmp_path / "c.pt", heads=3)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantised_tensors_are_refused(tmp_path: Path) -> None:
    bias = torch.quantize_per_tensor(torch.ones(144), 0.1, 0, torch.qint8)
    torch.save(changed(blocks__0__attn__qkv__bias=bias), tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="is a quantised tensor"):
        read_checkpoint(tmp_path / "c.pt", heads=3)


def test_float8_safetensors(tmp_path: Path) -> None:
    save_file({key: value.to(torch.float8_e5m2) for key, value in EMA.items()}, tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match="is a float8_e5m2 tensor: save dense ones"):
        read_checkpoint(tmp_path / "c.safetensors", heads=3)


@pytest.mark.parametrize(("option", "largest"), [(600_000, 4096), (0, 4096), (-64, 4096), (100, 4096)])
def test_image_sizes_are_bounded(tmp_path: Path, option: int, largest: int) -> None:
    torch.save({key: value for key, value in EMA.items() if key != "pos_embed"}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=f"--image-size {option} is not a multiple of 16 of at most {largest}"):
        read_checkpoint(tmp_path / "c.pt", heads=3, image_size=option)


def deep(levels: int) -> Any:
    value: Any = EMA
    for _ in range(levels):
        value = {"a": value}
    return value


def test_endless_containers_are_refused(tmp_path: Path) -> None:
    wide: dict[str, Any] = {}
    wide.update({f"k{i}": wide for i in range(50)})
    for name, data in {"deep": deep(40), "cyclic": {"ema": EMA, "x": wide}}.items():
        torch.save(data, tmp_path / f"{name}.pt")
        with pytest.raises(CheckpointError, match="save the state dict alone"):
            read_checkpoint(tmp_path / f"{name}.pt", heads=3)


def test_allowed_classes_stay_inert(tmp_path: Path) -> None:
    """The stand-ins take any arguments and state, call nothing, and numpy's own unpickling is never reached."""
    torch.save({"ema": EMA}, tmp_path / "c.pt")

    class Call:
        def __init__(self, function: Any, *arguments: Any) -> None:
            self.reduced = (function, arguments)

        def __reduce__(self) -> Any:
            return self.reduced

    from numpy._core import multiarray

    odd = [
        Call(multiarray.scalar, np.dtype("O"), b"x" * 8),
        Call(multiarray.scalar, np.dtype("f8"), b"short"),
        Call(multiarray._reconstruct, np.ndarray, (1 << 60,), b"f"),
    ]
    payload = pickle.dumps({"odd": odd, "n": np.float32(1.5), "w": {}}, 2)
    with zipfile.ZipFile(tmp_path / "c.pt") as source, zipfile.ZipFile(tmp_path / "d.pt", "w") as target:
        for item in source.infolist():
            target.writestr(item.filename, payload if item.filename.endswith("data.pkl") else source.read(item))
    from ditedge.export.sources.pickles import Inert, load_pickle

    data = load_pickle(tmp_path / "d.pt")
    assert data["n"] == 1.5 and all(type(value) is Inert for value in data["odd"])
