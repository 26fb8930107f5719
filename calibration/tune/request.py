"""What `tune` can be told, each option once. Imported for its help, so no optuna is."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from ...runtime.errors import RequestError
from ...runtime.loop.engine import EngineOptions
from ...runtime.options import BATCH, SEED, option
from ...runtime.sets.request import RayOptions
from ..pool import PROMPTS
from ..quality.request import FEATURES, REFERENCE

FRESH = 1_000_000_000  # seeds of the search begin so far behind those of the last rung
MOST_IMAGES = 1_000_000  # of a rung
UNITS = {"s": 1.0, "ms": 0.001}


@dataclass(frozen=True)
class Budget:
    """What one image may cost at most: seconds on this machine, or forward passes of the network."""

    most: float
    passes: bool

    def __str__(self) -> str:
        return f"{self.most:g} passes" if self.passes else f"{self.most:g} s"


@dataclass(frozen=True)
class TuneRequest:
    """How to search."""

    engine: tuple[Path, ...] = field(
        metadata=option("--engine", help="Bundle to find programs for; repeat it: its other precisions take part.")
    )
    budget: str | None = field(
        default=None,
        metadata=option(
            "--budget", help="The best program of at most so much: 2.5s or 40ms an image, or 15passes.", metavar="LIMIT"
        ),
    )
    min_quality: float | None = field(
        default=None,
        metadata=option("--min-quality", help="The cheapest program of at most this distance (lower is better)."),
    )
    features: Path | None = field(default=None, metadata=FEATURES)
    reference: Path | None = field(default=None, metadata=REFERENCE)
    prompts: Path | None = field(default=None, metadata=PROMPTS)
    trials: int = field(
        default=200,
        metadata=option("--trials", help="Programs to try; with more, a finished search goes on.", range=(0, 100_000)),
    )
    start: Path | None = field(
        default=None,
        metadata=option("--start", help="tune.json of another search: what it measured takes part in this one."),
    )
    refine: int = field(
        default=40,
        metadata=option(
            "--refine",
            help="Programs to try beside each of the best, their times and guidance moved freely; 0 is none.",
            range=(0, 100_000),
        ),
    )
    rungs: tuple[str, ...] = field(
        default=("32", "200", "2000"),
        metadata=option(
            "--rungs",
            help="Images of a program: at first, of those that look good, and of the best, which get fresh seeds. "
            "[default: 32,200,2000]",
            metavar="A,B,C",
            commas=True,
        ),
    )
    finalists: int = field(
        default=4,
        metadata=option(
            "--finalists", help="Programs of each engine that the last rung measures, with a budget.", range=(1, 1000)
        ),
    )
    baseline: bool = field(
        default=True,
        metadata=option(
            "--baseline/--no-baseline", help="Measure the first bundle's default program, too. [default: yes]"
        ),
    )
    seed: int = field(
        default=0, metadata=option("--seed", help="First seed of the last rung, and of the search.", range=SEED)
    )
    batch: int = field(default=50, metadata=option("--batch", help="Images at a time.", range=BATCH))
    out: Path | None = field(
        default=None,
        metadata=option("--out", help="Folder of the search, its report and its programs. [default: BUNDLE-tune]"),
    )
    write: bool = field(
        default=True,
        metadata=option("--write/--no-write", help="Put the programs into the bundles, too. [default: yes]"),
    )
    ray: RayOptions = RayOptions()
    options: EngineOptions = EngineOptions()

    @property
    def folder(self) -> Path:
        """Where the search lies."""
        return self.out or Path(f"{self.engine[0].absolute().name}-tune")

    @property
    def images(self) -> tuple[int, int, int]:
        """Of the rungs. Raises RequestError."""
        if not all(text.isascii() and text.isdigit() and len(text) < 8 for text in self.rungs):
            raise RequestError(f"--rungs {','.join(self.rungs)}: give numbers of images, such as 32,200,2000")
        rungs = tuple(map(int, self.rungs))
        rising = all(a < b for a, b in zip(rungs, rungs[1:], strict=False))
        if len(rungs) != 3 or not rising or not 2 <= rungs[0] or rungs[-1] > MOST_IMAGES:
            raise RequestError(
                f"--rungs {','.join(self.rungs)}: give three numbers that rise from at least 2, such as 32,200,2000"
            )
        return rungs[0], rungs[1], rungs[2]

    @property
    def limit(self) -> Budget | None:
        return None if self.budget is None else budget_from_text(self.budget)

    def check(self) -> None:
        """Raises RequestError for what cannot be meant, before any file is read."""
        rungs, _ = self.images, self.limit
        if (self.features is None) != (self.reference is None):
            raise RequestError("--features and --reference belong together: give both, or neither")
        if self.min_quality is not None and not self.min_quality > 0:
            raise RequestError(f"--min-quality {self.min_quality:g}: a distance is above 0")
        if self.trials == 0 and self.start is None:
            raise RequestError("--trials 0 is for what another search found: give its --start, too")
        if self.seed + FRESH + rungs[1] + rungs[2] > 2**64:
            raise RequestError(f"--seed {self.seed}: the seeds of a search from there on end above 2**64")


def budget_from_text(text: str) -> Budget:
    """2.5s, 40ms, 15passes -> Budget. Raises RequestError."""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(s|ms|passes)", text.strip())
    if found is None or not float(found[1]) > 0:
        raise RequestError(f"--budget {text}: give seconds (2.5s, 40ms) or forward passes (15passes) of one image")
    number, unit = float(found[1]), found[2]
    if unit == "passes" and number != int(number):
        raise RequestError(f"--budget {text}: passes are whole")
    return Budget(number if unit == "passes" else number * UNITS[unit], unit == "passes")
