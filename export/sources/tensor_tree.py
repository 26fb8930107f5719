"""The tensors in an untrusted file: where they are in its nested dicts, and whether they are plain numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ...runtime.errors import CheckpointError

MAX_ENTRIES = 1_000_000  # of all dicts and lists together; train.py's file of DiT-XL has 4,000
MAX_DEPTH = 12
MAX_KEY = 500  # characters
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
WRAPPERS = ("module.", "_orig_mod.")  # left in the keys by DistributedDataParallel and torch.compile

Place = tuple[str, ...]  # keys on the way to a dict


def tensors_by_place(data: Any) -> dict[Place, dict[str, Tensor]]:
    """Every dict or list of `data` that holds tensors, in the file's order. Raises CheckpointError if too large."""
    found: dict[Place, dict[str, Tensor]] = {}
    stack: list[tuple[Place, Any]] = [((), data)]
    count = 0
    while stack:
        place, node = stack.pop()
        count += len(node) if isinstance(node, (dict, list, tuple)) else 0
        if count > MAX_ENTRIES or len(place) > MAX_DEPTH:
            raise CheckpointError("nested too deep, or over a million entries: save the state dict alone")
        inner = []
        for key, value in _items(node):
            if isinstance(value, Tensor):
                found.setdefault(place, {})[key] = value
            elif isinstance(value, (dict, list, tuple)):
                inner.append(((*place, key), value))
        stack.extend(reversed(inner))
    return found


def _items(node: Any) -> Iterable[tuple[str, Any]]:
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    return [(str(key), value) for key, value in pairs if isinstance(key, (str, int)) and len(str(key)) <= MAX_KEY]


def check_plain(tensors: dict[str, Tensor], file_bytes: int) -> None:
    """Raises CheckpointError for tensors that are not dense numbers, or larger than the file they come from.

    A few bytes can say that one number is a tensor of 8 GB (stride 0), or one tensor the weight of 10,000 blocks.
    """
    total = 0
    for key, tensor in tensors.items():
        kind = _odd_kind(tensor)
        if kind is not None:
            raise CheckpointError(f"key '{key}' is a {kind} tensor: save dense ones, float32, float16 or bfloat16")
        total += math.prod(tensor.shape) * tensor.element_size()
        if total > file_bytes:
            shape = list(tensor.shape)
            raise CheckpointError(f"key '{key}' has shape {shape}: the file's {file_bytes} bytes do not hold it")


def _odd_kind(tensor: Tensor) -> str | None:
    if tensor.is_nested:
        return "nested"
    if tensor.layout != torch.strided:
        return str(tensor.layout).removeprefix("torch.")
    if tensor.is_quantized:
        return "quantised"
    if tensor.device.type != "cpu":
        return f"'{tensor.device.type}'"
    if tensor.is_complex() or (tensor.is_floating_point() and tensor.dtype not in FLOATS):
        return str(tensor.dtype).removeprefix("torch.")
    return None


def is_average(place: Iterable[str]) -> bool:
    """Whether the names on the way to a tensor say that it is an average over training (EMA)."""
    words = [word for part in place for word in re.split(r"[^A-Za-z]+", part)]
    if any(word.lower() == "online" for word in words):  # ema-pytorch keeps the raw weights inside its own dict
        return False
    return any(word.lower() in ("ema", "averaged", "average", "shadow") or word.endswith("EMA") for word in words)


def without_wrappers(key: str) -> str:
    while key.startswith(WRAPPERS):
        key = key.split(".", 1)[1]
    return key


def listed(names: Iterable[str]) -> str:
    """Up to eight names for a message; characters that a terminal would obey are escaped."""
    names = list(names)
    shown = [repr(name[:80]) if name else "'' (the file's own keys)" for name in names[:8]]
    return ", ".join(shown) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def keys_found(data: Any) -> str:
    if not isinstance(data, dict):
        return f"it holds an object of type {type(data).__name__}"
    return f"keys found: {listed(str(key) for key in data)}" if data else "it is empty"
