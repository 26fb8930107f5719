"""The weights of a diffusers folder: one file, or shards with an index; safetensors or .bin; a variant such as fp16.

Names are those of diffusers' `save_pretrained`: diffusion_pytorch_model[.VARIANT].safetensors, or
diffusion_pytorch_model.safetensors.index[.VARIANT].json, whose `weight_map` says in which file
of the folder each tensor lies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ...runtime.errors import CheckpointError
from ...runtime.files import sha256_of_file
from ...runtime.json_files import read_json
from .checkpoint import load_tensors
from .places import STEM, WEIGHTS

KNOWN_VARIANTS = ("", "fp16", "bf16")  # the first that is there is taken
MAX_INDEX_BYTES, MAX_SHARDS = 16 << 20, 1000


@dataclass(frozen=True)
class FolderWeights:
    """The tensors of a folder, the files that were read, and the sentence that says which."""

    tensors: dict[str, Tensor]
    files: tuple[Path, ...]  # the index first, where there is one
    sentence: str


def read_folder_weights(folder: Path, only: str | None = None) -> FolderWeights:
    """The weights in `folder`; only: of this file of it. Float32 comes before variants, safetensors before pickles.

    Raises CheckpointError naming the file, and the key where an index and its shards do not fit.
    """
    names = [only] if only is not None else sorted(file.name for file in folder.iterdir())
    found = {name: match for name in names if (match := WEIGHTS.fullmatch(name))}
    variants = {name: match["variant"] or match["sharded"] or "" for name, match in found.items()}
    known = [variant for variant in KNOWN_VARIANTS if variant in variants.values()]
    if not known and len(set(variants.values())) > 1:
        raise CheckpointError(f"{folder}: weights of several variants, {', '.join(found)}: give --ckpt the file")
    if not found:
        listed = ", ".join(file.name for file in sorted(folder.iterdir())[:5])
        raise CheckpointError(
            f"{folder}: no weights, expected {STEM}.safetensors (or its .index.json and shards); it has {listed}"
        )
    variant = known[0] if known else next(iter(variants.values()))
    name = min(
        (name for name in found if variants[name] == variant),
        key=lambda name: (found[name]["kind"] != "safetensors", not found[name]["index"]),
    )
    why = f" (variant {variant})" if variant else ""
    if not found[name]["index"]:
        return FolderWeights(load_tensors(folder / name), (folder / name,), f"{folder.name}/{name}{why}")
    tensors, files = _shards(folder / name, found[name]["kind"])
    return FolderWeights(tensors, (folder / name, *files), f"{folder.name}/{name}, {len(files)} shards{why}")


def _shards(index: Path, kind: str) -> tuple[dict[str, Tensor], list[Path]]:
    """The tensors of all shards, each of which has exactly what the index says."""
    shard_of = _weight_map(index)
    names = sorted(set(shard_of.values()))
    for name in names:
        if Path(name).name != name or "\\" in name or not name.endswith(f".{kind}"):
            raise CheckpointError(f"{index}: {name[:100]!r} is not the name of a .{kind} file in this folder")
    if len(names) > MAX_SHARDS:
        raise CheckpointError(f"{index}: {len(names)} shards, at most {MAX_SHARDS} are read")
    tensors: dict[str, Tensor] = {}
    for name in names:
        loaded = load_tensors(index.parent / name)
        listed = {key for key, shard in shard_of.items() if shard == name}
        if loaded.keys() != listed:
            key = min(loaded.keys() ^ listed)
            where = "is not in it" if key in listed else f"is in it, and not in {index.name}"
            raise CheckpointError(f"{index.parent / name}: key '{key}' {where}")
        tensors |= loaded
    return tensors, [index.parent / name for name in names]


def _weight_map(index: Path) -> dict[str, str]:
    values = read_json(index, MAX_INDEX_BYTES, CheckpointError)
    shards = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise CheckpointError(f"{index}: key 'weight_map' is missing, or does not name a file for every tensor")
    return shards


def sha256_of_files(folder: Path, files: Iterable[Path]) -> str:
    """One hash for several files: of the lines "sha256  name" of each, the names as seen from `folder`."""
    lines = sorted(f"{sha256_of_file(file)}  {file.relative_to(folder).as_posix()}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
