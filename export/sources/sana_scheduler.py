"""How Sana's pipelines sample: what their scheduler's config says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...runtime.errors import CheckpointError
from ...runtime.samplers.flow_settings import FlowInfo
from .flow_scheduler import read_flow
from .prompt_checkpoint import Process
from .scheduler_config import read_scheduler_json

GUIDANCE, STEPS, SPRINT_STEPS = 4.5, 20, 2  # of the pipelines
TRAINED = 1000
SHIFT = 3.0  # of Sana's own configs
# Of DPMSolverMultistepScheduler: the only values that `flow-dpm++` has; the defaults of diffusers 0.42 come second.
SOLVER: dict[str, tuple[Any, Any]] = {
    "prediction_type": ("flow_prediction", "epsilon"),
    "use_flow_sigmas": (True, False),
    "algorithm_type": ("dpmsolver++", "dpmsolver++"),
    "solver_type": ("midpoint", "midpoint"),
    "final_sigmas_type": ("zero", "zero"),
    "lower_order_final": (True, True),
    "thresholding": (False, False),
    "use_dynamic_shifting": (False, False),
    "num_train_timesteps": (TRAINED, TRAINED),
}


def process_of_sana(path: Path | None, guided: bool) -> Process:
    """path: of scheduler_config.json, None where there is none. guided: SANA-Sprint. Raises CheckpointError."""
    values = read_scheduler_json(path, CheckpointError) if path is not None else {}
    name = str(values.get("_class_name"))[:60] if isinstance(values, dict) else "nothing"
    known = ["SCMScheduler"] if guided else ["DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler"]
    if path is not None and name not in known:
        raise CheckpointError(f"{path}: '_class_name' is {name!r}, expected {' or '.join(known)}")
    if guided:
        return _process((1.0, 0.0), FlowInfo(), "flow-scm", SPRINT_STEPS, kind="embedded")
    if name == known[1]:
        flow = read_flow(path, FlowInfo(spacing="trained"))
        return _process((float(TRAINED), 0.0), flow, "flow-euler", STEPS)
    for key, (value, default) in SOLVER.items() if path is not None else ():
        if values.get(key, default) != value:
            raise CheckpointError(f"{path}: '{key}' is {str(values.get(key, default))[:40]!r}: a Sana has {value!r}")
    flow = FlowInfo(shift=_shift(path, values, 1.0 if path is not None else SHIFT))
    order = values.get("solver_order", 2)
    if order not in (1, 2, 3):
        raise CheckpointError(f"{path}: 'solver_order' is {str(order)[:40]!r}, not 1, 2 or 3")
    return _process((float(TRAINED), 0.0), flow, "flow-dpm++", STEPS, order)


def _process(
    told: tuple[float, float], flow: FlowInfo, sampler: str, steps: int, order: int = 2, kind: str = "true"
) -> Process:
    sampling = {"sampler": sampler, "steps": steps} | ({"order": order} if order != 2 else {})
    return Process("flow", told, flow=flow, steps=steps, guidance=GUIDANCE, kind=kind, sampling=sampling)


def _shift(path: Path | None, values: dict[str, Any], default: float) -> float:
    shift = values.get("flow_shift", default)
    if type(shift) not in (int, float) or not 0 < shift < 1e4:
        raise CheckpointError(f"{path}: 'flow_shift' is {str(shift)[:40]!r}, not a number above 0")
    return float(shift)
