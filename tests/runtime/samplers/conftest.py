"""Where the exact flow of the mixture ends, by very many steps."""

from __future__ import annotations

import numpy as np
import pytest

from ditedge.runtime.samplers import dpm_solver, euler, flow_grid
from tests.runtime.samplers.mixture import END, preserving, sampled


@pytest.fixture(scope="session")
def fine() -> np.ndarray:
    """2,000 steps: what all solvers of the same flow go to."""
    grid = preserving(np.linspace(0.999, END, 2001)[:-1])
    return sampled(dpm_solver(grid, lower_order_final=False), grid)


@pytest.fixture(scope="session")
def fine_flow() -> np.ndarray:
    """The same of a flow."""
    grid = flow_grid(2000)
    return sampled(euler(grid, prediction="flow"), grid)
