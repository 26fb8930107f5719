"""Sana's folders: what their config and scheduler say, and what of it is refused."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest

from ditedge.export.sources.families import family_of
from ditedge.export.sources.prompt_checkpoint import PromptCheckpoint
from ditedge.export.sources.sana_folder import INSTRUCTION
from ditedge.runtime.errors import CheckpointError
from tests.export.sana_pipelines import small_sana

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


def folder(path: Path, scheduler: Any = None, config: dict[str, Any] | None = None, **network: Any) -> Path:
    """A pipeline folder of a transformer, whose config.json is changed, and a scheduler alone."""
    small_sana(**network).save_pretrained(path / "transformer")
    file = path / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | (config or {})))
    (path / "model_index.json").write_text(json.dumps({"_class_name": "SanaPipeline"}))
    if scheduler is not None:
        scheduler.save_pretrained(path / "scheduler")
    return path


def read(path: Path) -> PromptCheckpoint:
    family = family_of(path)
    assert family is not None
    return family(path)


def test_the_instruction_is_the_pipelines() -> None:
    for pipeline in (diffusers.SanaPipeline, diffusers.SanaSprintPipeline):
        default = inspect.signature(pipeline.__call__).parameters["complex_human_instruction"].default
        assert "\n".join(default) == INSTRUCTION


SCHEDULERS: dict[str, tuple[Any, dict[str, Any], dict[str, Any], float]] = {
    "none": (None, {}, {"sampler": "flow-dpm++", "steps": 20}, 3.0),
    "order 3, no shift": (
        diffusers.DPMSolverMultistepScheduler(**FLOW | {"flow_shift": 1.0}, solver_order=3),
        {}, {"sampler": "flow-dpm++", "steps": 20, "order": 3}, 1.0,
    ),
    "flow Euler": (diffusers.FlowMatchEulerDiscreteScheduler(shift=2.5), {}, {"sampler": "flow-euler", "steps": 20}, 2.5),
    "Sprint": (diffusers.SCMScheduler(), {"guidance_embeds": True}, {"sampler": "flow-scm", "steps": 2}, 1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULERS)
def test_what_schedulers_say(tmp_path: Path, name: str) -> None:
    scheduler, network, sampling, shift = SCHEDULERS[name]
    process = read(folder(tmp_path, scheduler, **network)).process
    assert process.sampling == sampling and process.flow is not None and process.flow.shift == shift
    assert process.kind == ("embedded" if name == "Sprint" else "true")
    assert process.timestep_range == ((1.0, 0.0) if name == "Sprint" else (1000.0, 0.0))


def test_what_a_config_says(tmp_path: Path) -> None:
    found = read(folder(tmp_path, timestep_scale=0.001, qk_norm="rms_norm_across_heads", interpolation_scale=2)).config
    assert (found.timestep_scale, found.qk_norm, found.interpolation_scale) == (0.001, True, 2.0)


BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a norm with weights": (None, {"norm_elementwise_affine": True}, "'norm_elementwise_affine' is True"),
    "another width": (None, {"cross_attention_dim": 16}, "'cross_attention_dim' is not the width"),
    "a learnt variance": (None, {"out_channels": 8}, "'out_channels' is 8: expected 4"),
    "another qk-norm": (None, {"qk_norm": "layer_norm"}, "'qk_norm' is 'layer_norm', expected one of"),
    "a ratio that is a text": (None, {"mlp_ratio": "2.5"}, "'mlp_ratio' is '2.5', not a number between 0 and 64"),
    "a scale of zero": (None, {"timestep_scale": 0}, "'timestep_scale' is '0'"),
    "other weights": (None, {"caption_channels": 17}, "linear_1.weight' has shape"),
    "a scheduler with betas": (diffusers.DDIMScheduler(), {}, "'DDIMScheduler', expected DPMSolverMultistepScheduler or"),
    "epsilon": (diffusers.DPMSolverMultistepScheduler(), {}, "'prediction_type' is 'epsilon': a Sana has 'flow_prediction'"),
    "an SDE": (
        diffusers.DPMSolverMultistepScheduler(**FLOW, algorithm_type="sde-dpmsolver++"), {}, "'algorithm_type' is",
    ),
    "Sprint's scheduler": (diffusers.SCMScheduler(), {}, "'SCMScheduler', expected DPMSolverMultistepScheduler or"),
    "Sana's scheduler for Sprint": (
        diffusers.DPMSolverMultistepScheduler(**FLOW), {"guidance_embeds": True}, "expected SCMScheduler",
    ),
    "a shift of zero": (diffusers.DPMSolverMultistepScheduler(**FLOW | {"flow_shift": 0}), {}, "'flow_shift' is '0'"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", BAD)
def test_what_is_no_sana_is_refused_in_a_sentence(tmp_path: Path, mistake: str) -> None:
    scheduler, config, complaint = BAD[mistake]
    network = {"guidance_embeds": True} if "guidance_embeds" in config else {}
    path = folder(tmp_path, scheduler, config, **network)
    with pytest.raises(CheckpointError, match=complaint) as caught:
        read(path)
    assert str(path) in str(caught.value)
