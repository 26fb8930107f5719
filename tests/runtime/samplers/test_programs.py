"""Programs: the file format, its checks, and the tables against literal formulas."""

from __future__ import annotations

import doctest
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditedge.runtime.errors import ProgramError
from ditedge.runtime.samplers import ddim as ddim_on_grid
from ditedge.runtime.samplers import ddpm as ddpm_on_grid
from ditedge.runtime.samplers import grid_from_timesteps
from ditedge.runtime.samplers.program import NO_BOUND, read_program, write_program
from ditedge.runtime.samplers.schedule import linear_schedule, respaced_timesteps
from ditedge.runtime.samplers.settings import SamplerSettings, make_program, settings_from_made
from tests.conftest import ROOT

SCHEDULE = linear_schedule()
ARRAYS = ("timestep", "x0_from", "log_sigma", "mix", "guidance")


def ddpm(steps: int = 10, **options):
    return make_program(SCHEDULE, SamplerSettings("ddpm", steps, **options), learned_variance=True)


def test_written_programs_read_back_exactly(tmp_path: Path) -> None:
    program = ddpm(clip_x0=True)
    write_program(program, tmp_path / "p.json")
    again = read_program(tmp_path / "p.json")
    for name in ARRAYS:
        assert np.array_equal(getattr(again, name), getattr(program, name)), name
    assert (again.name, again.made, again.x0_bound, again.init) == ("ddpm-10", program.made, 1.0, (0.0, 1.0))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"version": 1}, "version is not 2: make it again"),
        ({"mix": [[[1.0, 0.0]]]}, "mix has shape"),
        ({"timestep": []}, "timestep"),
        ({"log_sigma": [[0.0, float("nan")]] * 10}, "not finite"),
        ({"x0_bound": -1.0}, "x0_bound"),
        ({"init": [0, 3.1e38]}, r"init has a number that is not finite, or not within \+-3e\+38"),
        ({"timestep": [-1e300] * 10}, "timestep has a number"),
        ({"x0_bound": float("inf")}, "x0_bound"),
        ({"init": [float("inf"), 1]}, "not finite"),
        ({"guidance": [1]}, "guidance has shape"),
        ({"timestep": "abc"}, "timestep is not a list of rank 1"),
        ({"made": 3}, "p.json"),
        ({"version": True}, "version"),
        ({"timestep": ["1"] * 10}, "timestep holds something else than numbers"),
        ({"timestep": [True] * 10}, "timestep holds something else than numbers"),
        ({"timestep": [None] * 10}, "timestep holds something else than numbers"),
        ({"guidance": [True] * 10}, "guidance holds something else than numbers"),
        ({"guidance": [1] * 9 + [-0.5]}, "guidance has -0.5, and a factor is not negative"),
        ({"x0_from": [[1.0, 0.0]] * 9 + [[1.0]]}, "x0_from has rows of different lengths"),
        ({"init": 1.0}, "init is not a list of rank 1"),
        ({"init": [1.0]}, "init has shape"),
        ({"guidance": [3e39] * 10}, "guidance has a number that is not finite, or not within"),
        ({"x0_bound": 10**400}, "x0_bound"),
        ({"timestep": [0] * 100_001}, "1 to 100000"),
        ({"mix": [[[0.0] * 67] * 65] * 10}, "65 slots, at most 64"),
    ],
)
def test_malformed_programs_are_refused(tmp_path: Path, change: dict, complaint: str) -> None:
    path = tmp_path / "p.json"
    write_program(ddpm(), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ProgramError, match=complaint):
        read_program(path)


def test_missing_field_is_named(tmp_path: Path) -> None:
    write_program(ddpm(), tmp_path / "p.json")
    data = json.loads((tmp_path / "p.json").read_text())
    del data["mix"]
    (tmp_path / "p.json").write_text(json.dumps(data))
    with pytest.raises(ProgramError, match="'mix' is missing"):
        read_program(tmp_path / "p.json")


@pytest.mark.parametrize("timesteps", ["1", "2", "10", "ddim25", "10,15,20"])
def test_ddpm_is_the_posterior_of_the_forward_process(timesteps: str) -> None:
    """Bayes: q(x_s | x_t, x_0) from q(x_s | x_0) and q(x_t | x_s), both Gaussian, derived per step in scalars."""
    kept = respaced_timesteps(timesteps)
    program = ddpm_on_grid(grid_from_timesteps(SCHEDULE, kept), variance="fixed-small")
    for i, t in enumerate(kept[:-1]):
        abar_t, abar_s = SCHEDULE.alphas_cumprod[t], SCHEDULE.alphas_cumprod[kept[i + 1]]
        alpha = abar_t / abar_s
        precision = 1 / (1 - abar_s) + alpha / (1 - alpha)
        from_x0 = math.sqrt(abar_s) / (1 - abar_s) / precision
        from_x = math.sqrt(alpha) / (1 - alpha) / precision
        np.testing.assert_allclose(program.mix[i, 0], [from_x, from_x0, 1.0], rtol=1e-11)
        assert math.exp(2 * program.log_sigma[i, 0]) == pytest.approx(1 / precision, rel=1e-11)
    np.testing.assert_allclose(program.mix[-1, 0], [0, 1, 0], atol=1e-15)  # the last step is the x0 estimate, no noise


def test_learned_variance_spans_small_to_large() -> None:
    kept = respaced_timesteps("20")
    grid = grid_from_timesteps(SCHEDULE, kept)
    learned = ddpm_on_grid(grid, variance="learned").log_sigma
    small, large = (ddpm_on_grid(grid, variance=v).log_sigma[:, 0] for v in ("fixed-small", "fixed-large"))
    np.testing.assert_allclose((learned[:, 0] - learned[:, 1])[:-1], small[:-1], rtol=1e-12)  # v = -1
    np.testing.assert_allclose((learned[:, 0] + learned[:, 1])[:-1], large[:-1], rtol=1e-12)  # v = +1


@settings(deadline=None, max_examples=40)
@given(steps=st.integers(2, 1000), eta=st.floats(0, 1))
def test_ddim_keeps_the_marginals(steps: int, eta: float) -> None:
    """If x has signal sqrt(abar) x0 and noise variance 1 - abar, so has the next x at its own abar (Song et al., eq. 9)."""
    kept = respaced_timesteps(str(steps))
    program = ddim_on_grid(grid_from_timesteps(SCHEDULE, kept), eta=eta)
    abar = SCHEDULE.alphas_cumprod[kept]
    following = np.append(abar[1:], 1.0)
    from_x, from_x0, from_noise = program.mix[:, 0, 0], program.mix[:, 0, 1], program.mix[:, 0, 2]
    np.testing.assert_allclose(from_x * np.sqrt(abar) + from_x0, np.sqrt(following), atol=1e-9)
    variance = from_x**2 * (1 - abar) + from_noise * np.exp(2 * program.log_sigma[:, 0])
    np.testing.assert_allclose(variance, 1 - following, atol=1e-9)


def test_clipping_is_a_bound() -> None:
    assert ddpm(clip_x0=True).x0_bound == 1.0 and ddpm().x0_bound == NO_BOUND


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"sampler": "magic"}, "magic"),
        ({"variance": "medium"}, "medium"),
        ({"sampler": "ddim", "eta": -1.0}, "eta -1.0"),
        ({"sampler": "ddim", "eta": float("nan")}, "eta nan"),
        ({"sampler": "ddim", "eta": 5.0}, "eta 5.0"),
        ({"variance": "learned"}, "did not learn"),
        ({"eta": 0.5}, "eta is a setting of ddim, tcd; ddpm has none"),
        ({"sampler": "ddim", "variance": "learned"}, "variance is a setting of ddpm"),
        ({"sampler": "euler", "order": 2}, "order is a setting of"),
        ({"sampler": "dpm++", "order": 4}, "order 4"),
        ({"sampler": "flow-euler"}, "flow-euler"),
        ({"shift": 3.0}, "shift is for flow models"),
        ({"steps": 0}, "steps 0"),
        ({"steps": 1001}, "steps 1001"),
        ({"respacing": "10"}, "give one of them"),
        ({"spacing": "random"}, "spacing 'random'"),
        ({"sigmas": "cosmic"}, "sigmas 'cosmic'"),
        ({"sigmas": "karras", "spacing": "leading"}, "spacing and sigmas"),
        ({"guidance_interval": (2.0, 1.0)}, "guidance interval"),
    ],
)
def test_bad_settings_name_the_value(options: dict, complaint: str) -> None:
    settings = SamplerSettings(**({"sampler": "ddpm", "steps": 10} | options))
    with pytest.raises(ProgramError, match=complaint):
        make_program(SCHEDULE, settings, learned_variance=False)


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": "ddpm", "respacing": "10,15,20"},
        {"sampler": "ddim", "eta": 0.3, "clip_x0": True, "spacing": "trailing"},
        {"sampler": "dpm++", "order": 3, "sigmas": "karras"},
        {"sampler": "unipc", "guidance_interval": (0.3, 5.0)},
        {"sampler": "heun"},
        {"sampler": "tcd"},
    ],
)
def test_a_program_is_made_again_from_what_it_says_of_itself(options: dict) -> None:
    settings = SamplerSettings(**({"steps": None if "respacing" in options else 12} | options))
    program = make_program(SCHEDULE, settings, learned_variance=True)
    again = make_program(SCHEDULE, settings_from_made(json.loads(json.dumps(program.made))), learned_variance=True)
    for name in ARRAYS:
        assert np.array_equal(getattr(again, name), getattr(program, name)), name
    assert (again.name, again.made, again.x0_bound) == (program.name, program.made, program.x0_bound)
    assert list(again.made) == list(program.made)  # a picture has it as text, and `run --like` writes the same file


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"sampler": "ddim"}, "sampler 'ddim' is not one of flow-euler, flow-heun"),
        ({"spacing": "leading"}, "spacing is for diffusion models"),
        ({"steps": 0}, "steps 0"),
        ({"shift": -1.0}, "shift -1"),
    ],
)
def test_bad_settings_of_a_flow(options: dict, complaint: str) -> None:
    settings = SamplerSettings(**({"sampler": "flow-euler", "steps": 4} | options))
    with pytest.raises(ProgramError, match=complaint):
        make_program(None, settings, learned_variance=False, prediction="flow-to-data", timestep_range=(0.0, 1.0))


def test_a_flow_walks_its_straight_path() -> None:
    """With the true velocity of one image, x0 - noise, every Euler step lands on t x0 + (1 - t) noise; t is what is told."""
    settings = SamplerSettings("flow-euler", 5, shift=2.0)
    program = make_program(None, settings, learned_variance=False, prediction="flow-to-data", timestep_range=(0.0, 1.0))
    x0, noise = 0.7, -1.3
    x = noise
    for i in range(program.steps):
        t = program.timestep[i]
        assert x == pytest.approx(t * x0 + (1 - t) * noise)
        a, b = program.x0_from[i]
        x = program.mix[i, 0] @ [x, a * x + b * (x0 - noise), 0.0]
    assert program.timestep[0] == 0.0 and x == pytest.approx(x0)


def test_every_sampler_makes_a_program_by_its_name() -> None:
    from ditedge.runtime.samplers import SAMPLERS

    for name in SAMPLERS:
        steps = 1 if name == "dmd" else 8
        if name.startswith(("edm", "mean")):
            prediction = "edm" if name.startswith("edm") else "mean-flow"
            program = make_program(None, SamplerSettings(name, 8), learned_variance=False, prediction=prediction)
            assert (program.interval is None) == (prediction == "edm")
        elif not name.startswith("flow"):
            program = make_program(SCHEDULE, SamplerSettings(name, steps), learned_variance=True)
        else:
            continue
        assert program.steps == (15 if name.endswith("heun") else steps)


def test_last_step_of_one_draws_no_noise() -> None:
    program = replace(ddpm())
    assert [program.draws_noise(i) for i in range(10)] == [True] * 9 + [False]


def test_the_page_on_adding_a_sampler_runs() -> None:
    page = ROOT / "docs" / "adding-a-sampler.md"
    result = doctest.testfile(str(page), module_relative=False)
    assert result.attempted > 5 and result.failed == 0
