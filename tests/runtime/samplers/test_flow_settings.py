"""How a manifest's `flow` spaces steps: published values, and what makes no sense."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from ditedge.runtime.errors import ProgramError
from ditedge.runtime.samplers.flow_settings import FlowInfo, SizeShift
from ditedge.runtime.samplers.settings import SamplerSettings, make_program, settings_from_made

FLUX = FlowInfo(by_size=SizeShift(base_tokens=256, base_mu=0.5, most_tokens=4096, most_mu=1.15))
SD3 = FlowInfo(shift=3.0, spacing="trained")


def program(flow: FlowInfo | None, steps: int = 4, tokens: int | None = None, **settings: Any) -> Any:
    asked = SamplerSettings(sampler="flow-euler", steps=steps, **settings)
    told = {"learned_variance": False, "prediction": "flow", "timestep_range": (1000.0, 0.0)}
    return make_program(None, asked, **told, flow=flow, tokens=tokens)


def test_a_shift_grows_with_the_picture() -> None:
    """mu .5 at 256 and 1.15 at 4,096 image tokens, and on their line beyond (black-forest-labs/flux, sampling.py)."""
    assert FLUX.shift_of(256, 4) == pytest.approx(math.exp(0.5)) and FLUX.shift_of(4096, 4) == pytest.approx(
        math.exp(1.15)
    )
    assert FLUX.shift_of(9216, 4) == pytest.approx(math.exp(0.5 + 0.65 * (9216 - 256) / 3840))
    sigma, shift = np.array([1.0, 0.75, 0.5, 0.25]), math.exp(1.15)
    np.testing.assert_allclose(
        program(FLUX, tokens=4096).timestep, 1000 * shift * sigma / (1 + (shift - 1) * sigma), rtol=1e-12
    )
    with pytest.raises(ProgramError, match="depend on the picture's size"):
        program(FLUX)


def test_the_last_point_of_training_is_shifted_twice() -> None:
    """Stable Diffusion 3's schedule of 28 steps in diffusers: 1000 first, 8.93 last."""
    found = program(SD3, steps=28).timestep
    last = 3 * 0.001 / 1.002
    assert found[0] == 1000 and found[-1] == pytest.approx(1000 * 3 * last / (1 + 2 * last)) and len(found) == 28


def test_a_program_says_its_shift_and_is_made_again_from_it() -> None:
    for flow, tokens in ((FLUX, 1500), (SD3, None)):
        made = program(flow, tokens=tokens)
        again = settings_from_made(made.made)
        assert again.shift == flow.shift_of(tokens, 4)
        np.testing.assert_array_equal(program(flow, shift=again.shift).mix, made.mix)  # whatever the size
    assert program(None).made.get("shift") is None  # as every flow of classes
    assert program(SD3, shift=1.0).made["shift"] == 1.0


@pytest.mark.parametrize(
    "fields",
    [
        {"most_tokens": 256},
        {"kind": "quadratic"},
        {"base_mu": float("nan")},
        {"few": {"steps": 200, "most_steps": 200, "base_mu": 1.9, "most_mu": 2.3}},
    ],
)
def test_shifts_that_make_no_sense(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SizeShift(**{"base_tokens": 256, "base_mu": 0.5, "most_tokens": 4096, "most_mu": 1.15} | fields)


def test_a_shift_beyond_every_number_is_a_sentence() -> None:
    for flow in (FLUX.by_size, FLUX.by_size.model_copy(update={"kind": "linear", "base_mu": -9.0})):
        with pytest.raises(ProgramError):
            program(FlowInfo(by_size=flow), tokens=1 if flow.kind == "linear" else 1 << 40)
