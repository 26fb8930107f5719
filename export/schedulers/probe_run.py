"""A diffusers scheduler in float64 whose network and noise are given. No other file knows diffusers' schedulers.

diffusers hard-codes float32 in its schedulers. Each is therefore run from a private copy of its module in which
`float32` means float64 and `randn_tensor` is ours; diffusers itself stays untouched.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from pydantic import ValidationError

from ...runtime.errors import ProgramError
from ...runtime.samplers.process import ProcessInfo, process_of_schedule, process_without_betas, same_noise
from ...runtime.samplers.program import NO_BOUND
from ...runtime.samplers.schedule import ScheduleInfo, schedule_from_info
from ..sources.scheduler_config import BETAS, PREDICTIONS


@dataclass(frozen=True)
class Step:
    """What the network is asked in one step."""

    index: int
    timestep: float
    seen: np.ndarray  # [B] the scaled sample
    x0_from: tuple[float, float]  # x0 = a seen + b prediction


class ForeignScheduler:
    """A scheduler config and a number of steps, to be run any number of times on scalars (batch B of 1 x 1 x 1)."""

    def __init__(self, config: dict[str, Any], steps: int, step_options: dict[str, Any]) -> None:
        self.name = str(config.get("_class_name"))
        self._config, self._steps, self._options = dict(config), steps, step_options
        if self.name.startswith("DPMSolver"):  # they ignore a learned variance, by cutting three channels out
            self._config["variance_type"] = None
        self._guard(self._read_facts)

    def _read_facts(self) -> None:
        made, _ = self._make()
        self.evaluations = len(made.timesteps)
        self.learned_variance = made.config.get("variance_type") == "learned_range"
        clips = made.config.get("clip_sample", False)
        self.process = _process(made)
        self.x0_bound = float(made.config.get("clip_sample_range", 1.0)) if clips else NO_BOUND

    def without_clipping(self) -> ForeignScheduler:
        """The same scheduler with clipping switched off."""
        if self.x0_bound == NO_BOUND:
            return self
        return ForeignScheduler(self._config | {"clip_sample": False}, self._steps, self._options)

    def run(
        self,
        network: Callable[[Step], np.ndarray],
        initial: np.ndarray,
        noise: Callable[[int], np.ndarray],
        variance: Callable[[int], float],
    ) -> np.ndarray:
        """What the network sees before each step, then the final sample: [N + 1, B].

        initial [B] is unit noise, noise(i) [B] that of step i, variance(i) the learned variance channel v.
        """
        return self._guard(lambda: self._run(network, initial, noise, variance))

    def _run(self, network: Any, initial: np.ndarray, noise: Any, variance: Any) -> np.ndarray:
        import torch

        scheduler, module = self._make()
        draws = _Draws(self.name, noise)
        module.randn_tensor = draws
        x = _tensor(initial) * float(getattr(scheduler, "init_noise_sigma", 1.0))
        seen: list[np.ndarray] = []
        for i, t in enumerate(scheduler.timesteps):
            scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            seen.append(scaled.reshape(-1).numpy())
            draws.begin(i)
            output = _tensor(network(Step(i, float(t), seen[-1], self._x0_from(scheduler, i, t, len(x)))))
            if self.learned_variance:
                output = torch.cat([output, torch.full_like(output, variance(i))], dim=1)
            draws.begin(i)
            x = scheduler.step(output, t, x, return_dict=False, **self._options)[0]
        trajectory = np.stack([*seen, x.reshape(-1).numpy()])
        if not np.isfinite(trajectory).all():
            raise ProgramError(
                f"{self.name} gives numbers that are not finite with this config and {self._steps} steps"
            )
        return trajectory

    def _x0_from(self, scheduler: Any, i: int, t: Any, batch: int) -> tuple[float, float]:
        """(a, b): read off a copy of the scheduler where it reports its x0 estimate, else from its noise level."""
        import torch

        trial = copy.deepcopy(scheduler)
        probe, output = _tensor(np.eye(batch)[0]), _tensor(np.eye(batch)[1])
        scaled = trial.scale_model_input(probe, t) if hasattr(trial, "scale_model_input") else probe
        if self.learned_variance:
            output = torch.cat([output, torch.zeros_like(output)], dim=1)
        estimate = getattr(trial.step(output, t, probe, **self._options), "pred_original_sample", None)
        if estimate is not None:
            a, b = estimate.reshape(-1).tolist()[:2]
            return a / float(scaled[0]), b
        return _x0_from_level(scheduler, _level(scheduler, i, t))

    def _make(self) -> tuple[Any, Any]:
        module, cls = _private_copy(self.name)
        made = cls.from_config(self._config)
        made.set_timesteps(self._steps)
        if hasattr(made, "set_begin_index"):
            made.set_begin_index(0)
        module.randn_tensor = _Draws(self.name, lambda i: np.zeros(1))
        return made, module

    def _guard(self, body: Callable[[], Any]) -> Any:
        try:
            with _quiet():
                return body()
        except ProgramError:
            raise
        except Exception as error:  # whatever a foreign scheduler raises, its config is what the user can change
            raise ProgramError(f"{self.name} cannot be probed: {type(error).__name__}: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """diffusers hands tensors to numpy in ways that numpy deprecates, and logs pages of a config that it doubts."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


class _Draws:
    """Stands in for diffusers' randn_tensor: one given noise per step, and no second one."""

    def __init__(self, name: str, noise: Callable[[int], np.ndarray]) -> None:
        self._name, self._noise, self._step, self._drawn = name, noise, -1, False

    def begin(self, step: int) -> None:
        self._step, self._drawn = step, False

    def __call__(self, shape: Any, *_: Any, **__: Any) -> Any:
        if self._drawn:
            raise ProgramError(f"{self._name} draws noise twice in a step; a program has one noise a step")
        self._drawn = True
        return _tensor(self._noise(self._step)).expand(tuple(shape))


class _Double:
    """torch or numpy, with float32 spelled float64."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, "float64" if name == "float32" else name)


def _private_copy(name: str) -> tuple[Any, Any]:
    import diffusers
    import torch
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

    original = getattr(diffusers, name, None)
    if not (isinstance(original, type) and issubclass(original, SchedulerMixin)):
        raise ProgramError(f"'{name}' is not a scheduler of diffusers {diffusers.__version__} (config: _class_name)")
    spec = importlib.util.find_spec(original.__module__)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.torch, module.np = _Double(torch), _Double(np)
    return module, getattr(module, name)


def _tensor(values: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.array(values, dtype=np.float64)).reshape(-1, 1, 1, 1)


def _process(scheduler: Any) -> ProcessInfo | None:
    """What the scheduler takes for granted of the model; None where it does not say so in a way we know."""
    config = scheduler.config
    stated = config.get("prediction_type", "epsilon")
    if "Flow" in type(scheduler).__name__ or config.get("use_flow_sigmas") or stated == "flow_prediction":
        return process_without_betas("flow", (float(config["num_train_timesteps"]), 0.0))
    if stated not in PREDICTIONS or not hasattr(scheduler, "alphas_cumprod"):
        return None
    abar = np.asarray(scheduler.alphas_cumprod.tolist())
    for fields in (_named_betas(config), {"kind": "given", "betas": (1 - abar / np.append(1.0, abar[:-1])).tolist()}):
        try:
            schedule = schedule_from_info(ScheduleInfo(**fields, steps=len(abar)))
        except ValidationError:  # betas that no manifest can say
            continue
        if same_noise(schedule.alphas_cumprod, abar):  # some classes do more to their betas than the config names
            return process_of_schedule(schedule, PREDICTIONS[stated])
    return None


def _named_betas(config: Any) -> dict[str, Any]:
    """Fields of ScheduleInfo from the config's words."""
    zero_snr = {"zero_terminal_snr": bool(config.get("rescale_betas_zero_snr"))}
    kind = BETAS.get(str(config.get("beta_schedule")))
    if config.get("trained_betas") is not None:
        return zero_snr | {"kind": "given", "betas": [float(beta) for beta in config["trained_betas"]]}
    if kind in ("linear", "scaled_linear"):
        return zero_snr | {"kind": kind, "beta_start": config["beta_start"], "beta_end": config["beta_end"]}
    return zero_snr | {"kind": kind}


def _level(scheduler: Any, i: int, t: Any) -> tuple[float, float] | None:
    """(alpha, sigma) of what the network sees at step i, where the scheduler says it in a way we know."""
    if hasattr(scheduler, "sigmas"):
        sigma = float(scheduler.sigmas[i])
        if "Flow" in type(scheduler).__name__ or scheduler.config.get("use_flow_sigmas"):
            return 1 - sigma, sigma
        return (1 + sigma * sigma) ** -0.5, sigma * (1 + sigma * sigma) ** -0.5
    if hasattr(scheduler, "alphas_cumprod"):
        abar = float(scheduler.alphas_cumprod[int(t)])
        return abar**0.5, (1 - abar) ** 0.5
    return None


def _x0_from_level(scheduler: Any, level: tuple[float, float] | None) -> tuple[float, float]:
    """(a, b) from the prediction type; (0, 1), the prediction itself, where nothing better is known. Both are exact."""
    default = "flow_prediction" if "Flow" in type(scheduler).__name__ else "epsilon"
    prediction = scheduler.config.get("prediction_type", default)
    if level is None:
        return 0.0, 1.0
    alpha, sigma = level
    if prediction == "epsilon" and alpha > 0:
        return 1 / alpha, -sigma / alpha
    return {"v_prediction": (alpha, -sigma), "flow_prediction": (1.0, -sigma)}.get(prediction, (0.0, 1.0))
