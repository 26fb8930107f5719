"""How far a program's pictures are from the reference: sampled, seen through features, never guessed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from ...runtime.loop.noise import SeededNoise
from ...runtime.loop.session import Session
from ...runtime.report import Report, silent
from ...runtime.samplers.program import Program
from ..pool import Pool
from ..quality.distances import Moments, accuracy, frechet_of_moments, kernel_distance, moments_of
from ..quality.pictures import picture_graph

GROUPS = 20  # of images, each left out once: the noise of a distance

Seen = tuple[np.ndarray | None, np.ndarray]  # logits [n, classes], features [n, F]


@dataclass(frozen=True, eq=False)
class Asked:
    """A batch: images `first` .. `first + size - 1` of a program on a bundle (its folder); image i has `seed + i`."""

    bundle: Path
    program: Program
    seed: int
    first: int
    size: int

    def __str__(self) -> str:
        return f"of {self.size} images"


Sample = Callable[[Sequence[Asked]], Iterator[np.ndarray]]  # each as `sampled` makes it, in their order


@dataclass(frozen=True)
class Measured:
    """A program's pictures against the reference.

    noise: standard error of the distance from one set of seeds to another (jackknife over groups of images).
    accuracy: share of pictures that the classifier takes for their class; None: there are no classes, or none is given.
    """

    images: int
    distance: float  # Frechet
    noise: float
    kernel: float
    accuracy: float | None


@dataclass
class Drawn:
    """Pictures of one program, as features: a rung adds to those that are there."""

    logits: list[np.ndarray] = field(default_factory=list)
    features: list[np.ndarray] = field(default_factory=list)

    @property
    def images(self) -> int:
        return sum(map(len, self.features))


@dataclass(frozen=True)
class Judge:
    """pool: what the pictures are of. see: pictures uint8 [n, h, w, c] -> features. reference: features [m, F].

    sample: who samples batches; None: this process.
    """

    pool: Pool
    see: Callable[[np.ndarray], Seen]
    reference: np.ndarray
    batch: int
    report: Report = silent
    sample: Sample | None = None

    @cached_property
    def moments(self) -> Moments:
        """Of the reference, which is far larger than what is held against it."""
        return moments_of(self.reference)

    def draw(self, session: Session, program: Program, seed: int, count: int, drawn: Drawn) -> bool:
        """Adds pictures until there are `count`; the first has seed `seed` -> whether all were finite."""
        folder, firsts = session.bundle.folder.absolute(), range(drawn.images, count, self.batch)
        asked = [Asked(folder, program, seed, first, min(self.batch, count - first)) for first in firsts]
        here = (sampled(session, self.pool, batch) for batch in asked)
        for images in here if self.sample is None else self.sample(asked):
            if not len(images):
                return False
            logits, features = self.see(images)
            if logits is not None:
                drawn.logits.append(logits)
            drawn.features.append(features)
            if count > 4 * self.batch:
                self.report(f"{program.name or 'a program'}: {count} pictures", drawn.images, count)
        return True

    def distance(self, drawn: Drawn) -> float:
        """Frechet distance as far as it does not depend on the number of pictures: what few of them are compared by."""
        return endless_distance(np.concatenate(drawn.features), self.moments)

    def measured(self, drawn: Drawn) -> Measured:
        """All figures, with their noise."""
        features = np.concatenate(drawn.features)
        return Measured(
            images=len(features),
            distance=self._frechet(features),
            noise=jackknife(lambda kept: self._frechet(features[kept]), len(features)),
            kernel=kernel_distance(features, self.reference)[0],
            accuracy=self._accuracy(drawn),
        )

    def _frechet(self, features: np.ndarray) -> float:
        return frechet_of_moments(moments_of(features), self.moments)

    def _accuracy(self, drawn: Drawn) -> float | None:
        if not drawn.logits or not isinstance(self.pool.of[0], int):
            return None
        return accuracy(np.concatenate(drawn.logits), np.array(self.pool.cycled(0, drawn.images)))


def endless_distance(features: np.ndarray, reference: Moments, halvings: int = 3) -> float:
    """The Frechet distance of endlessly many pictures, from n: 2 d(n) - d(n / 2), as it falls with 1 / n.

    Chong & Forsyth 2020, "Effectively Unbiased FID". A distance of few pictures is too large by what their features
    vary, and so it prefers programs whose pictures are all alike: strong guidance wins by it at 32 pictures, and loses
    at 2,000. features [n, F]; may be below 0.
    """
    rng, count = np.random.default_rng(0), len(features)
    orders = [rng.permutation(count) for _ in range(halvings)]
    halves = [half for order in orders for half in (order[: count // 2], order[count // 2 :]) if len(half) > 1]
    whole = frechet_of_moments(moments_of(features), reference)
    if not halves:
        return whole
    half = float(np.mean([frechet_of_moments(moments_of(features[some]), reference) for some in halves]))
    return 2 * whole - half


def sampled(session: Session, pool: Pool, batch: Asked) -> np.ndarray:
    """uint8 [size, h, w, 1 or 3]; empty where any latents are not finite."""
    latents = latents_of(session, pool, batch.program, batch.seed, batch.first, batch.size)
    return pictures(session, latents) if np.isfinite(latents).all() else np.empty(0, np.uint8)


def latents_of(session: Session, pool: Pool, program: Program, seed: int, first: int, size: int) -> np.ndarray:
    """[size, C, H, W] float32 of images `first` .. `first + size - 1`, of which image i has seed `seed + i`."""
    noise = SeededNoise([seed + first + i for i in range(size)], session.bundle.manifest.model.latent_shape)
    guidance = session.bundle.manifest.defaults.guidance
    return pool.latents(session, program, pool.cycled(first, size), guidance, noise)


def pictures(session: Session, latents: np.ndarray) -> np.ndarray:
    """uint8 [n, h, w, 1 or 3]: by the decoder, or by the preview of a bundle without one."""
    return session.images(latents) if picture_graph(session.bundle) == "decoder" else session.preview(latents)


def jackknife(figure: Callable[[np.ndarray], float], count: int, groups: int = GROUPS) -> float:
    """Standard error of a figure of `count` samples, by leaving each of `groups` groups out once (Efron 1982).

    figure: of a mask [count] of samples that stay. A group is a run of them, in which classes come as often as in all.
    """
    groups = min(groups, count)
    group = np.arange(count) * groups // count
    values = np.array([figure(group != i) for i in range(groups)])
    return float(np.sqrt((groups - 1) / groups * np.sum((values - values.mean()) ** 2)))


def program_key(program: Program) -> str:
    """What a program does, whatever it is called: to measure nothing twice."""
    digest = hashlib.sha256()
    for name in ("timestep", "x0_from", "log_sigma", "mix", "guidance", "interval"):
        column = getattr(program, name)
        digest.update(b"" if column is None else np.ascontiguousarray(column, dtype=np.float64).tobytes())
    return digest.hexdigest()[:24]
