"""Timestep lists against facebookresearch/DiT's own (tests/golden/timesteps.json)."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from ditedge.runtime.errors import ProgramError
from ditedge.runtime.samplers.schedule import linear_schedule, respaced_timesteps
from tests.conftest import GOLDEN

RECORDED = json.loads((GOLDEN / "timesteps.json").read_text())


@pytest.mark.parametrize("respacing", RECORDED)
def test_timesteps_are_identical(respacing: str) -> None:
    assert respaced_timesteps(respacing).tolist() == RECORDED[respacing]


@pytest.mark.parametrize(
    "respacing",
    ["0", "1001", "ddim0", "ddim7x", "", "10,", "-5", "a,b", "600,600", "ddim999", "ddim50+20", "ddim50+", "１"],
)
def test_bad_respacing_names_the_value(respacing: str) -> None:
    with pytest.raises(ProgramError, match=re.escape(respacing) or "respacing ''"):
        respaced_timesteps(respacing)


def test_linear_schedule_is_ddpms() -> None:
    schedule = linear_schedule()
    product = 1.0
    for i in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * i / 999)
        assert schedule.alphas_cumprod[i] == pytest.approx(product, rel=1e-12)
    assert schedule.alphas_cumprod.dtype == np.float64 and schedule.steps == 1000
