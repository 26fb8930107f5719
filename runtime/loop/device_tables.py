"""What a run on a device depends on: its shape, its steps in segments, and its tables as the records of one arena."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from .conditions import Conditions, with_vectors
from .tables import STEP_TABLES, Evaluations, StepTables

SEGMENT = 4  # steps of one CUDA graph at most
AHEAD = 2 * SEGMENT  # steps that are enqueued at most: what a cancel waits for

Record = dict[str, np.ndarray]  # arrays that lie side by side


@dataclass(frozen=True)
class RunShape:
    """What buffers and graphs depend on."""

    steps: int
    evaluations: tuple[int, ...]  # E of each of the steps' `Evaluations`
    batch: int
    slots: int
    rows: int
    latent: tuple[int, ...]  # C, H, W
    prompts: int  # P, 0: the model takes none

    @property
    def places(self) -> int:
        """Steps that a segment has at most."""
        return min(SEGMENT, self.steps)


def run_shape(tables: StepTables, latent: tuple[int, ...]) -> RunShape:
    """latent: C, H, W."""
    evaluations = tuple(len(some.sample) for some in tables.evaluations)
    slots = tables.mix.shape[2]
    return RunShape(tables.steps, evaluations, tables.batch, slots, tables.rows, latent, len(tables.prompts))


@dataclass(frozen=True)
class Segment:
    """Steps first .. last - 1, each with as many evaluations, enqueued together."""

    first: int
    last: int
    evaluations: int  # E
    looked_at: bool  # whether the state after the last one is to be copied to the host

    @property
    def graph(self) -> tuple[int, int, int]:
        """Segments with the same one run the same kernels on the same addresses."""
        return self.last - self.first, self.evaluations, self.first % 2


def segments(tables: StepTables, looks: Callable[[int], bool]) -> Iterator[Segment]:
    """The steps in order. looks: whether somebody looks at the state after n steps (1 .. N)."""
    counts = [len(tables.evaluations[index].sample) for index in tables.evaluations_of]
    first = 0
    for last in range(1, tables.steps + 1):
        looked_at = looks(last)
        if looked_at or last - first == SEGMENT or last == tables.steps or counts[last] != counts[first]:
            yield Segment(first, last, counts[first], looked_at)
            first = last


def step_record(tables: StepTables, step: int) -> Record:
    return {name: getattr(tables, name)[step] for name in STEP_TABLES}


def evaluations_record(some: Evaluations) -> Record:
    return {name: table for name, table in vars(some).items() if table is not None}


def call_record(conditions: Conditions, vectors: np.ndarray | None, first: int, count: int) -> Record:
    """What the conditioner reads for steps first .. first + count - 1; those after the last are copies of it.

    vectors: [P, Q] of the prompts, where it reads them.
    """
    chosen = np.minimum(np.arange(first, first + count), len(next(iter(conditions.values()))) - 1)
    return with_vectors({name: values[chosen].reshape(-1) for name, values in conditions.items()}, vectors)


def records_of(
    tables: StepTables, vectors: np.ndarray | None, latent: tuple[int, ...], steps_per_call: int
) -> dict[str, Record]:
    """Every array that graphs read but state, noise, modulation and what is made of prompts.

    "step/n" are the tables of step n, "evaluations/i" those of evaluations i, "call/c" what call c of the conditioner
    reads, of `steps_per_call` steps x R rows. "silence" is noise of zeros.
    """
    records = {f"step/{step}": step_record(tables, step) for step in range(tables.steps)}
    records |= {f"evaluations/{index}": evaluations_record(some) for index, some in enumerate(tables.evaluations)}
    for call in range(-(-tables.steps // steps_per_call)):
        records[f"call/{call}"] = call_record(tables.conditions, vectors, call * steps_per_call, steps_per_call)
    return records | {"silence": {"noise": np.zeros((tables.batch, *latent), dtype=np.float32)}}
