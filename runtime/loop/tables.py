"""`step_tables` turns (program, labels, guidance) into the arrays that the step graph reads, all steps at once.

So a device can upload them once and address them by offset. The C++ runtime makes the same (cpp/src/tables.cpp).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..bundle.manifest import ModelInfo
from ..errors import RequestError
from ..samplers.program import Program


@dataclass(frozen=True)
class StepTables:
    """Every input of the step graph but state, noise and modulation, for all N steps of a batch of B.

    Unguided steps run E = B evaluations, guided ones E = 2B (all conditional, then all unconditional).
    `rows` are the (timestep, label) pairs of the conditioner; `condition` indexes them within one step.
    """

    guided: np.ndarray  # [N] bool
    labels: np.ndarray  # [R] int64: distinct labels of the batch, the null class among them when any step is guided
    timestep: np.ndarray  # [N] float32
    sample: np.ndarray  # [2B] int64; the first B are the unguided step's
    condition: np.ndarray  # [2B] int64, rows of `labels`; likewise
    combine_guided: np.ndarray  # [B, 2B, O] float32
    combine_plain: np.ndarray  # [B, B, O] float32
    x0_from: np.ndarray  # [N, B, 2] float32
    x0_bound: np.ndarray  # [B] float32
    log_sigma: np.ndarray  # [N, B, 2] float32
    mix: np.ndarray  # [N, B, K, K + 2] float32

    def inputs(self, step: int) -> dict[str, np.ndarray]:
        """Views, not copies: what step `step` binds."""
        evaluations = len(self.sample) if self.guided[step] else len(self.sample) // 2
        return {
            "sample": self.sample[:evaluations],
            "condition": self.condition[:evaluations],
            "combine": self.combine_guided if self.guided[step] else self.combine_plain,
            "x0_from": self.x0_from[step],
            "x0_bound": self.x0_bound,
            "log_sigma": self.log_sigma[step],
            "mix": self.mix[step],
        }


def step_tables(
    program: Program, model: ModelInfo, labels: list[int], guidance: float, away_from: list[int | None] | None = None
) -> StepTables:
    """Tables of a batch. guidance 1 is none: one evaluation per step, whatever the program says.

    Classifier-free guidance (Ho & Salimans 2022) is a row of `combine`: weight g on the labelled evaluation and 1 - g
    on the unlabelled one for the first `guided_channels` epsilon channels, 1 and 0 for every other channel.
    away_from: per sample, the class to guide away from instead of the null class (a "negative prompt").
    Raises RequestError when guidance is asked of a model without null class and there is no class to guide away from.
    """
    with np.errstate(over="ignore"):
        if not np.isfinite(np.array([guidance, 1 - guidance], dtype=np.float32)).all():
            raise RequestError(f"guidance {guidance:g} is not a finite number in float32")
    guided = program.guided & (guidance != 1.0)
    baselines = [model.null_class if other is None else other for other in away_from or [None] * len(labels)]
    if guided.any() and None in baselines:
        raise RequestError(
            f"guidance {guidance:g} needs a null class, and this model was trained without label dropout: "
            "use 1, or give a class to guide away from"
        )
    batch = len(labels)
    distinct = sorted(set(labels) | {label for label in baselines if label is not None and guided.any()})
    row: dict[int | None, int] = {label: i for i, label in enumerate(distinct)}
    conditional = [row[label] for label in labels]
    unconditional = [row.get(label, 0) for label in baselines]
    plain = np.repeat(np.eye(batch, dtype=np.float32)[:, :, None], model.out_channels, axis=2)
    with_label, without_label = plain.copy(), np.zeros_like(plain)
    with_label[:, :, : model.guided_channels] *= np.float32(guidance)
    without_label[:, :, : model.guided_channels] = (plain * np.float32(1 - guidance))[:, :, : model.guided_channels]

    def per_sample(table: np.ndarray) -> np.ndarray:
        return np.repeat(table.astype(np.float32)[:, None], batch, axis=1)

    return StepTables(
        guided=guided,
        labels=np.array(distinct, dtype=np.int64),
        timestep=program.timestep.astype(np.float32),
        sample=np.tile(np.arange(batch, dtype=np.int64), 2),
        condition=np.array(conditional + unconditional, dtype=np.int64),
        combine_guided=np.concatenate([with_label, without_label], axis=1),
        combine_plain=plain,
        x0_from=per_sample(program.x0_from),
        x0_bound=np.full(batch, program.x0_bound, dtype=np.float32),
        log_sigma=per_sample(program.log_sigma),
        mix=per_sample(program.mix),
    )
