"""Every sampler as a table. `SAMPLERS[name](grid, prediction=..., **options) -> Program`; numpy only.

A new sampler is one function in one file of this folder and one line below: docs/adding-a-sampler.md.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from .adams import deis, lms
from .ancestral import ddim, ddpm
from .distilled import consistency, dmd, lcm, tcd
from .dpm_solver import dpm_solver
from .edm import edm_grid
from .euler import euler, euler_ancestral, heun
from .flow import flow_grid, flow_grid_diffusers, flow_grid_dpm, flow_grid_from_sigmas, flow_heun, flow_sde
from .grid import PREDICTIONS, Grid, grid_from_sigmas, grid_from_timesteps, sigmas_at, timesteps_at, x0_from
from .guidance import step_sigmas, with_guidance_interval
from .mean_flow import mean_consistency, mean_flow
from .program import Program
from .searched import flow_searched, searched
from .unipc import unipc

SAMPLERS: dict[str, Callable[..., Program]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "dpm++": dpm_solver,
    "sde-dpm++": partial(dpm_solver, stochastic=True),
    "unipc": unipc,
    "deis": deis,
    "lms": lms,
    "euler": euler,
    "euler-ancestral": euler_ancestral,
    "heun": heun,
    "lcm": lcm,
    "tcd": tcd,
    "dmd": dmd,
    "searched": searched,
    "flow-euler": partial(euler, prediction="flow"),
    "flow-heun": flow_heun,
    "flow-sde": flow_sde,
    "flow-dpm++": partial(dpm_solver, prediction="flow"),
    "flow-scm": consistency,
    "flow-searched": flow_searched,
    "mean-flow": mean_flow,
    "mean-consistency": mean_consistency,
    "edm-euler": partial(euler, prediction="edm"),
    "edm-heun": partial(heun, prediction="edm"),
}

__all__ = [
    "PREDICTIONS",
    "SAMPLERS",
    "Grid",
    "consistency",
    "ddim",
    "ddpm",
    "deis",
    "dmd",
    "dpm_solver",
    "edm_grid",
    "euler",
    "euler_ancestral",
    "flow_grid",
    "flow_grid_diffusers",
    "flow_grid_dpm",
    "flow_grid_from_sigmas",
    "flow_heun",
    "flow_searched",
    "flow_sde",
    "grid_from_sigmas",
    "grid_from_timesteps",
    "heun",
    "lcm",
    "lms",
    "mean_consistency",
    "mean_flow",
    "searched",
    "sigmas_at",
    "step_sigmas",
    "tcd",
    "timesteps_at",
    "unipc",
    "with_guidance_interval",
    "x0_from",
]
