"""What diffusers' own scheduler makes of the fixed analytic network of tests/runtime/samplers/trajectories.py."""

from __future__ import annotations

import importlib
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from tests.runtime.samplers.trajectories import network, noises

diffusers_warnings = pytest.mark.filterwarnings(  # diffusers gives tensors to numpy
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
    "ignore:__array_wrap__ must accept context:DeprecationWarning",
)


class Wide:
    """torch or numpy with float32 spelled float64: diffusers' schedulers hard-code float32."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, "float64" if name == "float32" else name)


def diffusers_trajectory(
    monkeypatch: pytest.MonkeyPatch,
    scheduler: str,
    config: dict,
    steps: int,
    prediction: str,
    image: np.ndarray | None = None,
    first: int = 0,
    **step_options,
) -> np.ndarray:
    """The same by diffusers. [N+1, SIZE]

    image [SIZE]: from it, noised to timestep `first`, as the image-to-image pipelines do; the steps before are left out.
    """
    cls = getattr(diffusers, scheduler)
    module = importlib.import_module(cls.__module__)
    monkeypatch.setattr(module, "torch", Wide(torch))
    monkeypatch.setattr(module, "np", Wide(np), raising=False)
    drawn: list[int] = []
    if hasattr(module, "randn_tensor"):  # step i draws row i + 1 of the same noise
        draw = lambda *_, **__: torch.from_numpy(noises(len(made.timesteps) + 1)[1 + drawn[-1]][None, :, None])  # noqa: E731
        monkeypatch.setattr(module, "randn_tensor", draw)
    if prediction != "flow":
        config = config | {"prediction_type": {"x0": "sample", "v": "v_prediction"}.get(prediction, prediction)}
    made = cls(**config)
    made.set_timesteps(steps)
    z, timesteps = torch.from_numpy(noises(1)[0][None, :, None]), made.timesteps[first:]
    if image is None:
        x = z * getattr(made, "init_noise_sigma", 1.0)
    else:
        if hasattr(made, "set_begin_index"):
            made.set_begin_index(first)
        noised = made.scale_noise if prediction == "flow" else made.add_noise
        given = torch.from_numpy(image[None, :, None])
        x = noised(given, timesteps[:1], z) if prediction == "flow" else noised(given, z, timesteps[:1])
    seen = []
    for i, t in enumerate(timesteps):
        drawn.append(i)
        scaled = made.scale_model_input(x, t) if hasattr(made, "scale_model_input") else x
        seen.append(scaled.numpy().ravel())
        output = torch.from_numpy(network(seen[-1], float(t), prediction)[None, :, None])
        x = made.step(output, t, x, return_dict=False, **step_options)[0]
    assert x.dtype == torch.float64
    return np.array([*seen, x.numpy().ravel()])
