"""Samplers through step.onnx and the run-time loop, against diffusers' schedulers driving the PyTorch network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ditedge.export import read_checkpoint
from ditedge.runtime import Session, open_bundle
from ditedge.runtime.loop.noise import GivenNoise
from ditedge.runtime.loop.verify import relative_error
from tests.conftest import GOLDEN
from tests.export.schedulers import by_diffusers as reference
from tests.export.schedulers import test_equal_diffusers as samplers
from tests.runtime.samplers.trajectories import SIZE, noises

pytestmark = reference.diffusers_warnings
LABEL, SHAPE = 3, (1, 1, 8, 8)
TOLERANCE = 1e-4  # float32 graphs against a float64 sampler around a float32 network
# All with 5 steps; with 20 each sampler on what it is made for first, and on the rest where there is time.
CASES = [
    pytest.param(
        name, prediction, steps, marks=[pytest.mark.slow] if steps == 20 and prediction != predictions[0] else []
    )
    for name, _, _, _, predictions, _ in samplers.CASES
    for prediction in predictions
    for steps in (5, 20)
]


@pytest.mark.parametrize(("name", "prediction", "steps"), CASES)
def test_trajectory_equals_diffusers(
    golden_bundle, monkeypatch: pytest.MonkeyPatch, name: str, prediction: str, steps: int
) -> None:
    _, ours, scheduler, config, _, options = next(case for case in samplers.CASES if case[0] == name)
    model = read_checkpoint(GOLDEN / "gray1_cfg" / "model.pt", heads=2).model()

    def network(x: np.ndarray, t: float, _: str) -> np.ndarray:
        image = torch.from_numpy(x.reshape(SHAPE)).float()
        return model(image, torch.tensor([t]), torch.tensor([LABEL])).double().numpy().ravel()

    assert np.prod(SHAPE) == SIZE
    monkeypatch.setattr(reference, "network", network)
    expected = reference.diffusers_trajectory(monkeypatch, scheduler, config, steps, prediction, **options)
    program = ours(steps, prediction)
    z, *noise = noises(program.steps + 1).astype(np.float32)
    given = GivenNoise(z.reshape(SHAPE), np.array(noise).reshape(program.steps, *SHAPE))
    errors = []
    with Session(open_bundle(golden_bundle("gray1_cfg"), check_hashes=False)) as session:
        session.latents(
            program,
            [LABEL],
            1.0,
            given,
            on_step=lambda event: errors.append(relative_error(event.latents.ravel(), expected[event.step])),
        )
    assert len(errors) == len(expected) - 1 and max(errors) < TOLERANCE
