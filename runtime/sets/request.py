"""What `sample-set` and `merge` can be told, each option once: name, help, range and default beside the field."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..loop.engine import EngineOptions
from ..options import BATCH, BUNDLE_FILE, IMAGES, TRUSTED_KEYS, option
from ..samplers.settings import SamplerSettings

FORMATS = ("png", "npz")
LAYOUTS = ("flat", "class")


@dataclass(frozen=True)
class RayOptions:
    """Who samples, where it is not this process alone."""

    ray: str | None = field(
        default=None,
        metadata=option("--ray", help="Sample by Ray's workers: at this address, auto, or local.", metavar="ADDRESS"),
    )
    workers: int | None = field(
        default=None, metadata=option("--workers", help="Of Ray. [default: as many as fit]", range=(1, 10_000))
    )
    worker_gpus: float = field(default=0.0, metadata=option("--worker-gpus", help="GPUs that each of them takes."))


@dataclass(frozen=True)
class SampleSetRequest:
    """A set, or a shard of one; None means the bundle's default."""

    engine: Path = field(metadata=BUNDLE_FILE)
    count: int = field(metadata=option("--count", help="Images.", range=IMAGES))
    out: Path = field(metadata=option("--out", help="Folder to fill; what it holds of the same set is kept."))
    format: str = field(
        default="png",
        metadata=option("--format", help="A file each, or arrays as guided-diffusion has them.", choices=FORMATS),
    )
    layout: str = field(
        default="flat", metadata=option("--layout", help="PNGs in one folder, or one of each class.", choices=LAYOUTS)
    )
    balanced: bool = field(
        default=False, metadata=option("--balanced", help="As many of each class, in turn. [default: any, by the seed]")
    )
    seed: int = field(default=0, metadata=option("--seed", help="Of image 0; image i has seed + i."))
    shard: str | None = field(
        default=None, metadata=option("--shard", help="Only this part of the set, from 1/n to n/n.", metavar="i/n")
    )
    settings: SamplerSettings = SamplerSettings()
    guidance: float | None = field(
        default=None,
        metadata=option("--guidance", help="Classifier-free guidance scale; 1 is none. [default: the bundle's]"),
    )
    batch: int = field(
        default=16, metadata=option("--batch", help="Images at a time; a set has one batch size.", range=BATCH)
    )
    ray: RayOptions = RayOptions()
    options: EngineOptions = EngineOptions()
    trusted_keys: tuple[Path, ...] = field(default=(), metadata=TRUSTED_KEYS)


@dataclass(frozen=True)
class MergeRequest:
    """Shards that were sampled into folders of their own."""

    out: Path = field(metadata=option("--out", help="Folder of the whole set; may be one of the shards."))
    shards: tuple[Path, ...] = field(
        default=(), metadata=option("--shard", help="A folder of `sample-set`; repeat it.")
    )
