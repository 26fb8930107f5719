"""Conditions: what the network is told beside the latent, as records of named values. Nobody else knows the names.

Every step of a run has R of them. Tables and loops count them as rows, and the conditioner reads them by its inputs'
names; so a new kind of condition is a function beside `class_conditions`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Conditions = Mapping[str, np.ndarray]  # name -> [N, R]: R records a step


def class_conditions(columns: Mapping[str, np.ndarray], labels: Sequence[int]) -> Conditions:
    """What changes from step to step [N] by name, timestep among it, R labels -> each [N, R] float32 and label [N, R]
    int64: one record a label at every step.
    """
    told = {
        name: np.repeat(column.astype(np.float32)[:, None], len(labels), axis=1) for name, column in columns.items()
    }
    return told | {"label": np.tile(np.array(labels, dtype=np.int64), (len(columns["timestep"]), 1))}


PROMPT = "prompt"  # the condition that is a row of `vector`, of the run's prompts


def prompt_conditions(timesteps: np.ndarray, scalars: Mapping[str, float], prompts: int = 0) -> Conditions:
    """timesteps [N], what the conditioner is told beside them -> timestep and each scalar [N, R] float32.

    prompts: how many an image has, where the conditioner reads their vectors: R of them, and `prompt` [N, R] int64 is
    their places among its own. 0: one record a step, whatever the prompts, which reach the network by another way.
    A model has no inputs of those that it is not told.
    """
    shape = (len(timesteps), max(prompts, 1))
    told = {name: np.full(shape, value, dtype=np.float32) for name, value in scalars.items()}
    conditions = {"timestep": np.repeat(timesteps.astype(np.float32)[:, None], shape[1], axis=1)} | told
    return conditions | ({PROMPT: np.tile(np.arange(prompts, dtype=np.int64), (shape[0], 1))} if prompts else {})


def with_rows(conditions: Conditions, rows: Sequence[int]) -> Conditions:
    """Prompts by their places among a run's, instead of among an image's own: rows of the latter."""
    if PROMPT not in conditions:
        return conditions
    return {**conditions, PROMPT: np.array(rows, dtype=np.int64)[conditions[PROMPT]]}


def with_vectors(told: dict[str, np.ndarray], vectors: np.ndarray | None) -> dict[str, np.ndarray]:
    """What the conditioner reads: `vector` [U, Q], the rows of vectors [P, Q] that its prompts are."""
    if vectors is None:
        return told
    rows = told.pop(PROMPT)
    return told | {"vector": vectors[rows]}


def count(conditions: Conditions) -> int:
    """R."""
    return next(iter(conditions.values())).shape[1]


def of_steps(conditions: Conditions, first: int, last: int) -> dict[str, np.ndarray]:
    """What the conditioner reads for steps first .. last - 1: name -> [(last - first) R]."""
    return {name: values[first:last].reshape(-1) for name, values in conditions.items()}


def shared(images: Sequence[Conditions]) -> tuple[Conditions, list[list[int]]]:
    """The records of several images, each once -> them, sorted, and for each image which of them its own are."""
    columns = [
        [tuple(tuple(values[:, r].tolist()) for values in conditions.values()) for r in range(count(conditions))]
        for conditions in images
    ]
    row = {record: r for r, record in enumerate(sorted({record for own in columns for record in own}))}
    values = {
        name: np.array([record[i] for record in row], dtype=images[0][name].dtype).T for i, name in enumerate(images[0])
    }
    return {name: np.ascontiguousarray(table) for name, table in values.items()}, [
        [row[r] for r in own] for own in columns
    ]
