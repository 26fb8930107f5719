"""What `bench` can be told, each option once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..options import BATCH, THREADS, TRUSTED_KEYS, Range, option

REPEATS: Range = (1, 10_000)
SECONDS: Range = (0, 24 * 3600)
STEPS: Range = (0, 1000)


@dataclass(frozen=True)
class BenchSettings:
    """How contenders are measured."""

    batch: int = field(default=1, metadata=option("--batch", help="Images at a time.", range=BATCH))
    threads: int = field(
        default=0,
        metadata=option("--threads", help="CPU threads. [default: the cores that may be used]", range=THREADS),
    )
    spin: bool = field(
        default=False, metadata=option("--spin", help="ONNX Runtime's idle threads wait busily, as with `run --spin`.")
    )
    cuda_graphs: bool = field(
        default=True, metadata=option("--cuda-graph/--no-cuda-graph", help="Plans: replay steps, or enqueue each.")
    )
    repeats: int = field(default=9, metadata=option("--repeats", help="Rounds of turns.", range=REPEATS))
    seconds: int = field(
        default=0,
        metadata=option("--seconds", help="No round begins later, once there are three; 0: no limit.", range=SECONDS),
    )
    guidance: float | None = field(
        default=None, metadata=option("--guidance", help="1 is none. [default: the first bundle's]")
    )
    drift_steps: int = field(
        default=10,
        metadata=option(
            "--drift-steps",
            help="Of the run whose latents are held against the first contender's; 0: none.",
            range=STEPS,
        ),
    )
    at_once: int = field(
        default=8,
        metadata=option(
            "--at-once", help="Contenders in memory together, the first one among them in every group.", range=(2, 100)
        ),
    )


@dataclass(frozen=True)
class BenchRequest:
    """`bench`: bundles, and what runs them."""

    engines: tuple[Path, ...] = field(
        default=(),
        metadata=option("--engine", help="Bundle folder, or a plan in one; repeat it. The first is what others are "
                        "held against."),
    )  # fmt: skip
    providers: tuple[str, ...] = field(
        default=(),
        metadata=option(
            "--provider",
            help="What computes, of every bundle; repeat it: {}. [default: cpu]",
            listed="ditedge.runtime.loop.engines:providers",
        ),
    )
    settings: BenchSettings = BenchSettings()
    every: bool = field(
        default=False,
        metadata=option("--all", help="Make every precision of one float32 bundle, and run each on every engine here."),
    )
    keep: Path | None = field(
        default=None, metadata=option("--keep", help="With --all: folder for those bundles. [default: none is kept]")
    )
    report: Path | None = field(default=None, metadata=option("--report", help="A page with figures (HTML)."))
    trusted_keys: tuple[Path, ...] = field(default=(), metadata=TRUSTED_KEYS)
