"""Tables: what the step graph reads beside state, noise and modulation, made from (program, label, guidance).

They belong to one image. A batch gathers a row of each image's tables; where its images go through one program in step,
as in `generate`, that is all rows at once, so a device can upload them once and address them by offset. The C++ runtime
makes the same (cpp/src/tables.cpp).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..bundle.manifest import ModelInfo
from ..errors import RequestError
from ..fields import MAX_NUMBER
from ..samplers.program import Program
from .conditions import Conditions, class_conditions, count, prompt_conditions, shared, with_rows
from .prompts import Prompt

STEP_TABLES = ("x0_from", "x0_bound", "log_sigma", "mix")  # the step graph's inputs that have a row for each image


@dataclass(frozen=True)
class Besides:
    """What a model is told beside classes or prompts. vectors: its conditioner reads one of each prompt."""

    scalars: Mapping[str, float] = field(default_factory=dict)  # of `text_info.SCALARS`
    vectors: bool = False


NOTHING = Besides()


@dataclass(frozen=True)
class Mixed:
    """Several classes or prompts that one image is of, each with its weight (Liu et al. 2022, composable diffusion).

    With guidance g the prediction is u + g sum_i w_i (c_i - u), u that of what is guided away from.
    """

    parts: tuple[tuple[int | Prompt, float], ...]  # at least one; variances are the first one's

    @property
    def first(self) -> int | Prompt:
        return self.parts[0][0]


Subject = int | Prompt | Mixed


def parts_of(subject: Subject) -> tuple[tuple[int | Prompt, float], ...]:
    return subject.parts if isinstance(subject, Mixed) else ((subject, 1.0),)


@dataclass(frozen=True)
class ImageTables:
    """The N steps of one image, each with up to V evaluations of the network: of what it is of, and what guides.

    Evaluation v's row among a step's `conditions` is v, or the last where there are fewer.
    """

    conditions: Conditions  # name -> [N, R]; R is 1 or V
    evaluated: np.ndarray  # [N, V] bool; the first always is
    weights: np.ndarray  # [N, V, O] float32
    x0_from: np.ndarray  # [N, 2] float32
    x0_bound: np.ndarray  # [N] float32
    log_sigma: np.ndarray  # [N, 2] float32
    mix: np.ndarray  # [N, K, K + 2] float32
    prompts: tuple[Prompt, ...] = ()  # V, one of each evaluation; empty: the model takes none

    @property
    def guided(self) -> np.ndarray:
        """[N] bool: more than one evaluation."""
        return np.any(self.evaluated[:, 1:], axis=1)  # type: ignore[no-any-return]

    def at(self, step: int) -> ImageTables:
        """Views: the tables of that step alone."""
        rows = slice(step, step + 1)
        return ImageTables(
            {name: values[rows] for name, values in self.conditions.items()},
            self.evaluated[rows],
            self.weights[rows],
            **{name: getattr(self, name)[rows] for name in STEP_TABLES},
            prompts=self.prompts,
        )


@dataclass(frozen=True)
class Evaluations:
    """Which evaluations a step makes, and how they are weighed: first one of each image, then the second of those that
    have one, and so on.
    """

    sample: np.ndarray  # [E] int64
    condition: np.ndarray  # [E] int64, rows of the step's conditions
    combine: np.ndarray  # [B, E, O] float32
    prompt: np.ndarray | None = None  # [E] int64, rows of the batch's prompts; None: the model takes none

    def of_images(self, images: slice) -> Evaluations:
        """Those of some of the batch's images, in their order."""
        own = (self.sample >= images.start) & (self.sample < images.stop)
        combine = np.ascontiguousarray(self.combine[images][:, own])
        prompt = None if self.prompt is None else self.prompt[own]
        return Evaluations(self.sample[own] - images.start, self.condition[own], combine, prompt)


@dataclass(frozen=True)
class StepTables:
    """The N steps of a batch of B images that are gathered."""

    conditions: Conditions  # name -> [N, R], every record once
    rows_of: list[list[int]]  # by image: which of a step's R records its own are
    evaluations: tuple[Evaluations, ...]  # those that differ: two in most runs with a guidance interval
    evaluations_of: tuple[int, ...]  # [N] which of them a step makes
    x0_from: np.ndarray  # [N, B, 2] float32
    x0_bound: np.ndarray  # [N, B] float32
    log_sigma: np.ndarray  # [N, B, 2] float32
    mix: np.ndarray  # [N, B, K, K + 2] float32
    prompts: tuple[Prompt, ...] = ()  # P of them, each once

    @property
    def steps(self) -> int:
        return len(self.mix)

    @property
    def batch(self) -> int:
        return self.mix.shape[1]

    @property
    def rows(self) -> int:
        """R: rows of modulation that a step has."""
        return count(self.conditions)

    def of_images(self, images: slice) -> StepTables:
        """The same steps of some of the images, which read the same rows of modulation and of prompts."""
        return replace(
            self,
            rows_of=self.rows_of[images],
            evaluations=tuple(some.of_images(images) for some in self.evaluations),
            **{name: getattr(self, name)[:, images] for name in STEP_TABLES},
        )

    def inputs(self, step: int) -> dict[str, np.ndarray]:
        """Views, not copies: what step `step` binds."""
        evaluations = self.evaluations[self.evaluations_of[step]]
        bound = {name: values for name, values in vars(evaluations).items() if values is not None}
        return bound | {name: getattr(self, name)[step] for name in STEP_TABLES}


def image_tables(
    program: Program,
    model: ModelInfo,
    subject: Subject,
    guidance: float,
    away_from: int | Prompt | None = None,
    besides: Besides = NOTHING,
) -> ImageTables:
    """Tables of one image. guidance 1 is none: one evaluation per step, whatever the program says.

    Classifier-free guidance (Ho & Salimans 2022) of strength g weighs the evaluation of the subject, a class or a
    prompt, with g and the other one with 1 - g in the first `guided_channels` channels, with 1 and 0 in every other
    one. A step of factor f (the program's `guidance`) takes 1 + f (g - 1) for g. Of a `Mixed` each part has g times
    its weight, and the other one what is missing from 1.
    away_from: the class or prompt to guide away from; None is the null class.
    besides: what else the conditioner is told.
    Raises RequestError when guidance is asked of a model without null class and there is nothing to guide away from,
    and for a program that does not say how far its steps go, where the model is to be told.
    """
    parts = parts_of(subject)
    evaluated, weights = _evaluated(program, model, guidance, [weight for _, weight in parts])
    baseline = model.null_class if away_from is None else away_from
    if evaluated[:, -1].any() and baseline is None:
        raise RequestError(
            f"guidance {guidance:g} needs a null class, and this model was trained without label dropout: "
            "use 1, or give a class to guide away from"
        )
    subjects = [part for part, _ in parts]
    if baseline is not None and evaluated[:, -1].any():
        subjects.append(baseline)
    labels = [label for label in subjects if not isinstance(label, Prompt)]
    prompts = tuple(prompt for prompt in subjects if isinstance(prompt, Prompt))
    own = prompt_conditions(program.timestep, besides.scalars, len(prompts) if besides.vectors else 0)
    return ImageTables(
        conditions=own if prompts else class_conditions(_columns(program, model, besides), labels),
        evaluated=evaluated[:, : len(subjects)],
        weights=weights[:, : len(subjects)],
        x0_from=program.x0_from.astype(np.float32),
        x0_bound=np.full(program.steps, program.x0_bound, dtype=np.float32),
        log_sigma=program.log_sigma.astype(np.float32),
        mix=program.mix.astype(np.float32),
        prompts=prompts,
    )


def _columns(program: Program, model: ModelInfo, besides: Besides) -> dict[str, np.ndarray]:
    """What a conditioner of classes is told at every step, beside the class: each [N]."""
    columns = {"timestep": program.timestep}
    columns |= {name: np.full(program.steps, value) for name, value in besides.scalars.items()}
    if model.prediction != "mean-flow":
        return columns
    if program.interval is None:
        raise RequestError(
            f"program '{program.name}' does not say how far its steps go ('interval'), which this model is told: make "
            "one with sampler mean-flow"
        )
    return columns | {"interval": program.interval}


def _evaluated(
    program: Program, model: ModelInfo, guidance: float, parts: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """evaluated [N, V] bool and weights [N, V, O] float32 of the parts and, last, of what they are guided away from.

    Raises RequestError for guidance beyond MAX_NUMBER, and where a weight is more than float32 holds.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        strength = np.where(program.guidance == 1, guidance, 1 + program.guidance * (guidance - 1))
        guided = (program.guidance != 0) & (guidance != 1.0)
        strength = np.where(guided, strength, 1.0)
        columns = np.stack([*(strength * part for part in parts), 1 - strength * sum(parts)], axis=1)
        wanted = columns.astype(np.float32)
    if not abs(guidance) <= MAX_NUMBER or not np.isfinite(wanted).all():
        raise RequestError(f"guidance {guidance:g} is not a number up to 3e38")
    evaluated = wanted != 0
    evaluated[:, 0] = True
    evaluated[:, -1] |= guided
    weights = np.zeros((*wanted.shape, model.out_channels), dtype=np.float32)
    weights[:, 0] = 1
    weights[..., : model.guided_channels] = np.where(evaluated, wanted, 0)[..., None]
    return evaluated, weights


def gather(images: Sequence[ImageTables]) -> StepTables:
    """A batch of images with as many steps and slots each: row n of one beside row n of the others."""
    prompts = tuple(dict.fromkeys(prompt for image in images for prompt in image.prompts))
    row_of = {prompt.key: row for row, prompt in enumerate(prompts)}
    places = [[row_of[prompt.key] for prompt in image.prompts] for image in images]
    conditions, rows = shared([with_rows(image.conditions, own) for image, own in zip(images, places, strict=True)])
    distinct: dict[bytes, int] = {}
    evaluations: list[Evaluations] = []
    evaluations_of: list[int] = []
    for step in range(len(images[0].mix)):
        key = b"".join(image.evaluated[step].tobytes() + image.weights[step].tobytes() for image in images)
        if key not in distinct:
            distinct[key] = len(evaluations)
            evaluations.append(_evaluations([image.at(step) for image in images], rows, row_of))
        evaluations_of.append(distinct[key])
    return StepTables(
        conditions,
        rows,
        tuple(evaluations),
        tuple(evaluations_of),
        **{name: np.stack([getattr(image, name) for image in images], axis=1) for name in STEP_TABLES},
        prompts=prompts,
    )


def _evaluations(images: Sequence[ImageTables], rows: list[list[int]], row_of: Mapping[str, int]) -> Evaluations:
    """Of one step. rows: by image, its conditions' places among the batch's; row_of: those of prompts, by key."""
    made = [(0, b) for b in range(len(images))]
    most = max(image.evaluated.shape[1] for image in images)
    made += [
        (v, b)
        for v in range(1, most)
        for b, image in enumerate(images)
        if v < image.evaluated.shape[1] and image.evaluated[0, v]
    ]
    combine = np.zeros((len(images), len(made), images[0].weights.shape[2]), dtype=np.float32)
    for e, (v, b) in enumerate(made):
        combine[b, e] = images[b].weights[0, v]
    prompts = [images[b].prompts[v] for v, b in made if images[b].prompts]
    return Evaluations(
        np.array([b for _, b in made], dtype=np.int64),
        np.array([rows[b][min(v, len(rows[b]) - 1)] for v, b in made], dtype=np.int64),
        combine,
        np.array([row_of[prompt.key] for prompt in prompts], dtype=np.int64) if prompts else None,
    )


def step_tables(
    program: Program,
    model: ModelInfo,
    subjects: Sequence[Subject],
    guidance: float,
    away_from: Sequence[int | Prompt | None] | None = None,
    besides: Besides = NOTHING,
) -> StepTables:
    """Tables of a batch of images of one program, subject by subject."""
    others = away_from or [None] * len(subjects)
    pairs = zip(subjects, others, strict=True)
    return gather([image_tables(program, model, subject, guidance, other, besides) for subject, other in pairs])
