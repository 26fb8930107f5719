"""Graphs of equal modules are traced once a session: half of the tests that export differ in schedules and names only.

`torch.onnx.export` makes the same file of the same module, sizes and operator set (tests/export/graphs/test_to_onnx.py
holds that), so a test gets what it would have made itself. A key is everything that tracing sees: each module's
class, `forward` and attributes, and every weight; where it was read from is none of it.
"""

from __future__ import annotations

import hashlib
import marshal
import os
import sys
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

LARGE = 500 << 20  # bytes of weights that are not kept
NOT_TRACED = ("_parameters", "_buffers", "_modules", "name_or_path")  # the first three follow by themselves


def told_of(forward: Any) -> object:
    """What a function does, in words that another process would find, too; its address where it holds on to something.

    Of a decorated one, as transformers' are, it is what the decorator does and what the function itself does.
    """
    code, inner = getattr(forward, "__code__", None), getattr(forward, "__wrapped__", None)
    if inner is not None:
        return marshal.dumps(code), told_of(inner)
    closed = code is None or set(code.co_freevars) - {"__class__"}
    return repr(forward) if closed else marshal.dumps(code)


def key_of(module: Any, inputs: dict[str, Any], *settings: Any) -> str:
    """Digest of a module with its weights, of the example inputs' types and sizes, and of the exporter's settings."""
    import torch

    told = hashlib.sha256(repr(settings).encode())
    for name, part in module.named_modules():
        own = {k: sorted(v) if isinstance(v, set) else v for k, v in vars(part).items() if k not in NOT_TRACED}
        told.update(repr((name, type(part), told_of(type(part).forward), sorted(own.items()))).encode())
        tensors = {k: v for k, v in own.items() if isinstance(v, torch.Tensor)}
        tensors |= dict(part.named_parameters(recurse=False)) | dict(part.named_buffers(recurse=False))
        for key, tensor in tensors.items():
            told.update(repr((key, tensor.dtype, tuple(tensor.shape))).encode())
            told.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    for name, tensor in inputs.items():
        told.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
    return told.hexdigest()


def install(tmp_path_factory: pytest.TempPathFactory) -> None:
    """In every process of a session; nothing where the exporter is not imported: runtime's tests need no PyTorch."""
    write = sys.modules.get("ditedge.export.graphs.write")
    if write is None or hasattr(write.onnx_from_module, "once"):
        return
    import torch

    real, base = write.onnx_from_module, tmp_path_factory.getbasetemp()
    kept = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exports-once"  # one of all processes
    kept.mkdir(exist_ok=True)

    def once(module: Any, inputs: Any, output: Any, dynamic: Any, path: Path, opset: int) -> None:
        found = kept / key_of(module, inputs, output, dynamic, opset)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.onnx, "export", partial(_traced, torch.onnx.export, found))
            real(module, inputs, output, dynamic, path, opset)

    once.once = True  # type: ignore[attr-defined]
    write.onnx_from_module = once
    _registry_once()


def _traced(export: Any, found: Path, module: Any, **settings: Any) -> Any:
    """What `torch.onnx.export` returns: an object with a `model`."""
    import onnx_ir as ir

    if found.exists():
        return SimpleNamespace(model=ir.load(found))
    program = export(module, **settings)
    if sum(tensor.nbytes for tensor in module.state_dict().values()) < LARGE:
        whole = found.with_suffix(f".{os.getpid()}")
        ir.save(program.model, whole)
        os.replace(whole, found)  # another process may read it now
    return program


def _registry_once() -> None:
    """The exporter's table of 500 operators is the same at every export, and reading it takes half a second."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]
