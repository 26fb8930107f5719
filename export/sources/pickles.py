"""Reading an untrusted PyTorch file: tensors, numbers, names and what training scripts keep their settings in.

`weights_only=True` runs no code. The classes allowed besides are stand-ins of ours that keep what the file says
of them: neither omegaconf nor numpy's own unpickling is imported or called.
"""

from __future__ import annotations

import argparse
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...runtime.errors import CheckpointError


class Inert:
    """An object of a class that is known to be harmless; it keeps its state and does nothing."""

    state: Any = None

    def __new__(cls, *_: Any) -> Inert:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _NumpyType(Inert):
    """numpy.dtype: its code ("f8"), and its byte order, which comes later as state."""

    def __new__(cls, code: Any = "", *_: Any) -> _NumpyType:
        made = super().__new__(cls)
        made.code = code  # type: ignore[attr-defined]
        return made  # type: ignore[return-value]


def _numpy_scalar(kind: Any, raw: Any = b"", *_: Any) -> Any:
    """numpy's scalar(dtype, bytes) -> the Python number; an Inert of what is no plain number."""
    code, state = getattr(kind, "code", None), getattr(kind, "state", None)
    order = state[1] if isinstance(state, tuple) and len(state) > 1 else "<"
    if not (isinstance(code, str) and re.fullmatch(r"[bifu][1248]", code) and isinstance(raw, bytes)):
        return Inert()
    dtype = np.dtype(("<" if order not in ("<", ">") else order) + code)
    return np.frombuffer(raw, dtype)[0].item() if len(raw) == dtype.itemsize else Inert()


_OMEGACONF = [
    "base.ContainerMetadata", "base.Metadata", "dictconfig.DictConfig", "listconfig.ListConfig", "nodes.AnyNode",
    "nodes.IntegerNode", "nodes.FloatNode", "nodes.StringNode", "nodes.BooleanNode", "nodes.PathNode",
    "nodes.EnumNode", "nodes.BytesNode", "nodes.ValueNode", "base.UnionNode",
]  # fmt: skip
_PATHS = ["PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"]
_ALLOWED: dict[str, Any] = {
    **{f"omegaconf.{name}": Inert for name in _OMEGACONF},
    **{f"{module}.{name}": Inert for module in ("pathlib", "pathlib._local") for name in _PATHS},
    **{f"numpy.{core}.multiarray.scalar": _numpy_scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": Inert for core in ("core", "_core")},
    **{f"builtins.{name}": Inert for name in ("dict", "list", "tuple", "int", "float", "str", "bool")},
    "numpy.ndarray": Inert,
    "numpy.dtype": _NumpyType,
    "typing.Any": Inert,
    "collections.defaultdict": Inert,
    "argparse.Namespace": argparse.Namespace,
}


def load_pickle(path: Path) -> Any:
    """What torch.save wrote, tensors mapped and not yet read. Runs no code. Raises CheckpointError."""
    allowed = [(stand_in, name) for name, stand_in in _ALLOWED.items()]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of foreign pickles before it refuses them
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap can only be used" not in str(error):
                    raise
                return torch.load(path, map_location="cpu", weights_only=True)  # written before torch 1.6
    except Exception as error:  # a damaged or hostile pickle makes torch raise whatever it likes
        refused = re.search(r"GLOBAL ([\w.]{1,200})", str(error))
        if refused:
            raise CheckpointError(
                f"{path}: refused, it holds an object of {refused[1]} and would run code when read; "
                "save the state dict alone"
            ) from None
        reason = str(error).split("\n")[0][:150]
        raise CheckpointError(f"{path}: not a readable PyTorch checkpoint, perhaps cut short ({reason})") from None


def unwrapped(value: Any) -> Any:
    """The dict in a Namespace or an OmegaConf container, the value in an OmegaConf leaf, else the value itself."""
    if isinstance(value, argparse.Namespace):
        return vars(value)
    if isinstance(value, Inert):  # omegaconf: a container keeps `_content`, a leaf `_val`
        state = value.state if isinstance(value.state, dict) else {}
        return state.get("_content", state.get("_val"))
    return value
