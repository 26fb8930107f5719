"""Samplers of distilled models whose pipelines do more than call a scheduler: SCM's of SANA-Sprint, and one-step DMD."""

from __future__ import annotations

import importlib

import diffusers
import numpy as np
import pytest
import torch

from ditedge.export.schedulers.probe import program_from_scheduler
from ditedge.runtime.errors import ProgramError
from ditedge.runtime.samplers.program import check_program
from ditedge.runtime.samplers.schedule import Schedule
from ditedge.runtime.samplers.settings import SamplerSettings, make_program
from tests.export.schedulers.by_diffusers import Wide, diffusers_warnings
from tests.runtime.samplers.trajectories import LINEAR, TOLERANCE, network, noises, replay

pytestmark = diffusers_warnings


def scm_trajectory(monkeypatch: pytest.MonkeyPatch, steps: int) -> np.ndarray:
    """What SanaSprintPipeline's network sees before each step, then its sample: its loop in float64. [N + 1, SIZE]"""
    module = importlib.import_module(diffusers.SCMScheduler.__module__)
    monkeypatch.setattr(module, "torch", Wide(torch))
    scheduler = diffusers.SCMScheduler()
    scheduler.set_timesteps(steps, intermediate_timesteps=1.3 if steps == 2 else None)
    scheduler.timesteps = scheduler.timesteps.double()
    z, *noise = (torch.from_numpy(row) for row in noises(steps + 1))
    data = scheduler.config.sigma_data
    x, seen, x0 = z * data, [], z
    for i, t in enumerate(scheduler.timesteps[:-1]):
        monkeypatch.setattr(module, "randn_tensor", lambda *_, i=i, **__: noise[i])
        s = torch.sin(t) / (torch.cos(t) + torch.sin(t))
        size = torch.sqrt(s**2 + (1 - s) ** 2)
        given = x / data * size
        seen.append(given.numpy())
        out = torch.from_numpy(network(seen[-1], float(s), "flow"))
        out = ((1 - 2 * s) * given + (1 - 2 * s + 2 * s**2) * out) / size * data
        x, x0 = scheduler.step(out, t, x, return_dict=False)
    return np.array([*seen, (x0 / data).numpy()])


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10])
def test_scm_is_sana_sprints(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    settings = SamplerSettings("flow-scm", steps)
    program = make_program(None, settings, learned_variance=False, prediction="flow", timestep_range=(1.0, 0.0))
    check_program(program)
    expected, found = scm_trajectory(monkeypatch, steps), replay(program, "flow")
    error = np.abs(found - expected).max(axis=1) / np.abs(expected).max(axis=1)
    assert error.max() < TOLERANCE


def test_dmd_is_ddpms_only_step_at_timestep_400() -> None:
    """As PixArt-sigma's app/app_pixart_dmd.py has it: the pipeline with DDPMScheduler and timesteps=[400]."""
    program = make_program(LINEAR, SamplerSettings("dmd", 1), learned_variance=False)
    scheduler = diffusers.DDPMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False)
    scheduler.set_timesteps(timesteps=[400])
    z = noises(2)[0]
    output, x = (torch.from_numpy(values)[None, None] for values in (network(z, 400.0, "epsilon"), z))
    generator = torch.Generator().manual_seed(0)
    expected = scheduler.step(output, torch.tensor(400), x, generator=generator, return_dict=False)[0][0, 0]
    assert program.timestep.tolist() == [400] and not program.draws_noise(0)
    np.testing.assert_allclose(replay(program, "epsilon")[-1], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("schedule", "settings", "complaint"),
    [
        (LINEAR, SamplerSettings("lcm", 51), "51 steps: a distilled model takes 1 to 50"),
        (
            LINEAR,
            SamplerSettings("lcm", 4, spacing="trailing"),
            "lcm visits its own timesteps: give steps, and no spacing of them",
        ),
        (LINEAR, SamplerSettings("tcd", 4, eta=1.5), "eta 1.5 of tcd is not between 0"),
        (LINEAR, SamplerSettings("dmd", 2), "dmd takes one step: give steps 1, not 2"),
        (LINEAR, SamplerSettings("lcm", 4, eta=0.5), "eta is a setting of ddim, tcd; lcm has none"),
        (LINEAR, SamplerSettings("flow-dpm++", 4), "'flow-dpm\\+\\+' is not one of"),
        (None, SamplerSettings("flow-scm", 4, shift=3.0), "shift is no setting of flow-scm"),
        (None, SamplerSettings("flow-dpm++", 4, shift=0.0), "a shift above 0"),
        (None, SamplerSettings("lcm", 4), "'lcm' is not one of flow-euler"),
    ],
)
def test_settings_that_do_not_fit(schedule: Schedule | None, settings: SamplerSettings, complaint: str) -> None:
    prediction, told = ("flow", (1.0, 0.0)) if schedule is None else ("epsilon", (999.0, 0.0))
    with pytest.raises(ProgramError, match=complaint):
        make_program(schedule, settings, learned_variance=False, prediction=prediction, timestep_range=told)


def test_scms_scheduler_alone_is_no_sampler() -> None:
    with pytest.raises(ProgramError, match="`run --sampler flow-scm`"):
        program_from_scheduler({"_class_name": "SCMScheduler"}, 2)
