"""Conditions: what the network is told beside the latent, as records of named values. Nobody else knows the names.

Every step of a run has R of them. Tables and loops count them as rows, and the conditioner reads them by its inputs'
names; so a new kind of condition is a function beside `class_conditions`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Conditions = Mapping[str, np.ndarray]  # name -> [N, R]: R records a step


def class_conditions(timesteps: np.ndarray, labels: Sequence[int]) -> Conditions:
    """timesteps [N], R labels -> timestep [N, R] float32 and label [N, R] int64: one record a label at every step."""
    return {
        "timestep": np.repeat(timesteps.astype(np.float32)[:, None], len(labels), axis=1),
        "label": np.tile(np.array(labels, dtype=np.int64), (len(timesteps), 1)),
    }


def prompt_conditions(timesteps: np.ndarray, size: tuple[int, int]) -> Conditions:
    """timesteps [N], (height, width) in pixels -> timestep, height and width [N, 1] float32.

    One record a step, whatever the prompts: those reach the network by another way. A model that is not told its
    picture's size has no such inputs.
    """
    told = {"height": size[0], "width": size[1]}
    return {"timestep": timesteps.astype(np.float32)[:, None]} | {
        name: np.full((len(timesteps), 1), pixels, dtype=np.float32) for name, pixels in told.items()
    }


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
