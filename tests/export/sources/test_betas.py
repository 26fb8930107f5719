"""The betas of training, where the user gives them, and where a scheduler does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ditedge.export import ExportOptions, bundle_from_checkpoint
from ditedge.export.sources.scheduler_config import read_scheduler
from ditedge.runtime.errors import CheckpointError, RequestError
from ditedge.runtime.samplers.schedule import ScheduleInfo
from tests.export.sources.diffusers_models import LATENT


@pytest.mark.parametrize(
    ("options", "schedule"),
    [
        ({"betas": "cosine"}, {"kind": "cosine", "steps": 1000}),
        (
            {"betas": "linear:0.0002,0.03"},
            {"kind": "linear", "beta_start": 0.0002, "beta_end": 0.03, "steps": 1000},
        ),
        (
            {"betas": "scaled_linear", "zero_terminal_snr": True, "prediction": "v"},
            {
                "kind": "scaled_linear",
                "beta_start": 0.00085,
                "beta_end": 0.012,
                "steps": 1000,
                "zero_terminal_snr": True,
            },
        ),
    ],
)
def test_betas_of_a_checkpoint_are_given(options: dict, schedule: dict, tmp_path: Path) -> None:
    manifest = bundle_from_checkpoint(LATENT, tmp_path / "b", ExportOptions(heads=4, **options))
    assert manifest.schedule == ScheduleInfo(**schedule)  # and its golden trajectories were replayed by the export


def test_betas_from_a_file(tmp_path: Path) -> None:
    betas = [0.0001 + 0.0001 * i for i in range(60)]
    (tmp_path / "betas.json").write_text(json.dumps(betas))
    options = ExportOptions(heads=4, betas=str(tmp_path / "betas.json"))
    manifest = bundle_from_checkpoint(LATENT, tmp_path / "b", options)
    assert manifest.schedule is not None and manifest.schedule.betas == betas
    assert manifest.model.timestep_range == (59.0, 0.0)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"betas": "quadratic"}, "--betas 'quadratic' is not linear"),
        ({"betas": "linear:0.1"}, "--betas 'linear:0.1': "),
        ({"betas": "linear:0.1,2"}, "--betas 'linear:0.1,2': beta_end"),
        ({"betas": "SHORT"}, "not a list of at least 50"),
        ({"betas": "NAN"}, "a number that is not finite"),
        ({"betas": "/"}, "cannot read /: not a file"),
        ({"betas": "b" * 5000}, "name too long"),
        ({"betas": "cosine", "prediction": "flow-to-data"}, "a flow model has no betas"),
        ({"zero_terminal_snr": True}, "epsilon says nothing"),
    ],
)
def test_betas_that_cannot_be(options: dict, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "short.json").write_text("[0.1]")
    (tmp_path / "nan.json").write_text(json.dumps([float("nan")] * 60))
    if options.get("betas") in ("SHORT", "NAN"):
        options = {"betas": str(tmp_path / f"{options['betas'].lower()}.json")}
    with pytest.raises(RequestError, match=re.escape(complaint)):
        bundle_from_checkpoint(LATENT, tmp_path / "b", ExportOptions(heads=4, **options))
    assert not (tmp_path / "b").exists()


DDIM = {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000}


@pytest.mark.parametrize(
    ("values", "sampling"),
    [
        (DDIM | {"clip_sample": False}, {"sampler": "ddim", "respacing": "ddim50", "clip_x0": False}),
        (DDIM, {}),
        (DDIM | {"timestep_spacing": "trailing"}, {}),
        (DDIM | {"set_alpha_to_one": False, "steps_offset": 1}, {}),
        (DDIM | {"num_train_timesteps": 999}, {}),
        (DDIM | {"clip_sample_range": 2.0}, {}),
        (DDIM | {"_class_name": "DDPMScheduler", "variance_type": "learned_range"}, {}),
        (DDIM | {"_class_name": "DPMSolverMultistepScheduler"}, {}),
    ],
)
def test_only_a_scheduler_that_is_the_same_is_followed(values: dict, sampling: dict) -> None:
    assert read_scheduler(Path("s.json"), values).sampling == sampling


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"beta_schedule": "sigmoid"}, "'beta_schedule' is 'sigmoid'"),
        ({"trained_betas": [0.1]}, "'trained_betas': .*1 betas for 1000"),
        ({"trained_betas": [0.1] * 999 + [1.5]}, "'trained_betas'"),
        ({"rescale_betas_zero_snr": True}, "'rescale_betas_zero_snr' with 'prediction_type' epsilon"),
        ({"prediction_type": "flow_prediction"}, "'prediction_type' is 'flow_prediction'"),
        ({"num_train_timesteps": 10}, "'num_train_timesteps' is 10"),
        ({"num_train_timesteps": "many"}, "'num_train_timesteps': "),
        ({"beta_end": 2}, "'beta_end': "),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscreteScheduler"),
    ],
)
def test_schedulers_that_a_bundle_cannot_say(changes: dict, complaint: str) -> None:
    with pytest.raises(CheckpointError, match=rf"s\.json.*{complaint}"):
        read_scheduler(Path("s.json"), DDIM | changes)
