"""Variants of a bundle for tests: a graph rewritten, the manifest's hashes put right."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper


def variant(bundle: Path, out: Path, edit: Callable[[Path], None] | None = None, file: str = "step.onnx") -> Path:
    """A copy of `bundle` at `out` with edit(path of `file`) applied and the manifest corrected."""
    shutil.copytree(bundle, out)
    if edit is not None:
        edit(out / file)
        rehash(out, file)
    return out


def rehash(bundle: Path, file: str) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    data = (bundle / file).read_bytes()
    manifest["files"][file] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def edit_weights(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """Every float32 matrix of a graph through `change`."""

    def edit(path: Path) -> None:
        model = onnx.load(path)
        for tensor in model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2:
                array = change(numpy_helper.to_array(tensor)).astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        onnx.save(model, path)

    return edit


def rounded(steps: int) -> Callable[[Path], None]:
    """Weights rounded to multiples of their largest entry / steps: a crude quantisation."""
    return edit_weights(lambda w: np.round(w / np.abs(w).max() * steps) * np.abs(w).max() / steps)


def int8(path: Path) -> None:
    """onnxruntime's dynamic int8, per channel, of every MatMul."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(path, path, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True)
