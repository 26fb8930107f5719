"""What a comparison is asked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from ...runtime.loop.engine import EngineOptions
from ...runtime.options import BATCH, IMAGES, SEED, option
from ...runtime.sets.request import RayOptions
from ..pool import PROMPTS

FEATURES = option("--features", help="Feature extractor: .onnx with outputs logits and features.")
REFERENCE = option("--reference", help="Real pictures: .npz (images or arr_0, uint8 [N,h,w,c]) or a folder.")
SAMPLE_SET = option(
    "--sample-set", help="A's pictures, of `sample-set --balanced`: not sampled again. Drift is then of one batch."
)


@dataclass(frozen=True)
class CompareRequest:
    """How to compare; None means A's default. Image i has seed `seed + i` and class or prompt i modulo their number."""

    count: int = field(
        default=64, metadata=option("--count", help="Images; classes or prompts are cycled.", range=IMAGES)
    )
    batch: int = field(default=16, metadata=option("--batch", help="Images at a time.", range=BATCH))
    seed: int = field(
        default=0, metadata=option("--seed", help="Seed of the first image; the next has seed + 1.", range=SEED)
    )
    prompts: Path | None = field(default=None, metadata=PROMPTS)
    sampler: str | None = field(
        default=None, metadata=option("--sampler", help="As in `run`. [default: A's default program]")
    )
    steps: int | None = field(
        default=None, metadata=option("--steps", help="Sampler steps. [default: those of A's default program]")
    )
    guidance: float | None = field(
        default=None, metadata=option("--guidance", help="Classifier-free guidance scale; 1 is none. [default: A's]")
    )
    features: Path | None = field(default=None, metadata=FEATURES)
    reference: Path | None = field(default=None, metadata=REFERENCE)
    sample_set: Path | None = field(default=None, metadata=SAMPLE_SET)
    pictures: int = 8  # of the report
    speed_rounds: int = field(
        default=15,
        metadata=option(
            "--speed-rounds", help="Interleaved timings of one step; 0 measures no speed.", range=(0, 10_000)
        ),
    )
    speed_batch: int = 1
    options_a: EngineOptions = EngineOptions()
    provider_b: str | None = field(
        default=None, metadata=option("--provider-b", help="What computes B. [default: what computes A]")
    )

    ray: RayOptions = RayOptions()

    @property
    def options_b(self) -> EngineOptions:
        return replace(self.options_a, provider=self.provider_b or self.options_a.provider)
