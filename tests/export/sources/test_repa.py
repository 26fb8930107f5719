"""REPA: SiT with projectors and reversed time, against what its own modules and samplers computed (tests/golden/repa)."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import Tensor

from ditedge.calibration import QuantizeOptions, quantize_bundle
from ditedge.cli import main
from ditedge.export import ExportOptions, bundle_from_checkpoint, read_source
from ditedge.runtime import generate, open_bundle
from ditedge.runtime.errors import CheckpointError
from ditedge.runtime.loop.noise import GivenNoise
from ditedge.runtime.loop.verify import relative_error
from ditedge.runtime.samplers.flow import flow_grid, flow_sde
from tests.conftest import GOLDEN
from tests.export.sources.diffusers_models import small_vae
from tests.export.sources.layouts import EMA

RECORDED = load_file(GOLDEN / "repa" / "recorded.safetensors")
KINDS = ("plain", "qk_norm")
ARGS = {"model": "SiT-B/2", "num_classes": 1000, "encoder_depth": 1, "fused_attn": True, "qk_norm": False, "resolution": 64,
        "path_type": "linear", "prediction": "v", "cfg_prob": 0.1, "enc_type": "dinov2-vit-b"}  # fmt: skip


def state_of(kind: str) -> dict[str, Tensor]:
    """The state dict as REPA's train.py saves it."""
    prefix = f"{kind}.weights."
    state = {key.removeprefix(prefix): value.float() for key, value in RECORDED.items() if key.startswith(prefix)}
    table = torch.zeros(1001, 32)
    table[[0, 3, 7, 999, 1000]] = state["y_embedder.embedding_table.weight"]
    return state | {"y_embedder.embedding_table.weight": table}


def saved(path: Path, kind: str = "plain", **changes: object) -> Path:
    args = {key: value for key, value in (ARGS | {"qk_norm": kind == "qk_norm"} | changes).items() if value is not None}
    raw = {key: torch.zeros_like(value) for key, value in state_of(kind).items()}
    content = {"model": raw, "ema": state_of(kind), "opt": {}, "args": argparse.Namespace(**args), "steps": 400000}
    torch.save(content, path)
    return path


@pytest.fixture(scope="module", params=["plain", pytest.param("qk_norm", marks=pytest.mark.slow)])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def bundle_folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(kind)
    small_vae().save_pretrained(folder / "vae")
    options = ExportOptions(heads=2, vae=folder / "vae" if kind == "plain" else None)
    bundle_from_checkpoint(saved(folder / "0400000.pt", kind), folder / "bundle", options)
    return folder / "bundle"


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_is_theirs(tmp_path: Path, kind: str) -> None:
    model = read_source(saved(tmp_path / "c.pt", kind), heads=2).model()
    x, t, y, theirs = (RECORDED[f"{kind}.{name}"] for name in ("x", "t", "y", "output"))
    ours = model.trunk(x, model.conditioner(t, y))
    assert relative_error(ours.numpy(), theirs.numpy()) < 1e-5


@pytest.mark.parametrize("sampler", ["euler", "heun", "sde"])
def test_trajectories_of_their_samplers(bundle_folder: Path, kind: str, sampler: str) -> None:
    """Theirs guide all channels and walk t from 1 to 0; their SDE ends with a step from t = 0.04."""
    bundle = open_bundle(bundle_folder)
    z = RECORDED[f"{kind}.z"].numpy()
    if sampler == "sde":
        program = flow_sde(flow_grid(5, sigma_last=0.04, timestep_scale=1.0), prediction="flow")
        noise = RECORDED[f"{kind}.sde_noise"].numpy()
    else:
        program = bundle.program(sampler=f"flow-{sampler}", steps=6)
        noise = np.zeros((program.steps, *z.shape), np.float32)
    ours = generate(
        bundle,
        RECORDED[f"{kind}.labels"].tolist(),
        [0, 0],
        program=program,
        guidance=1.8,
        noise=GivenNoise(z, noise),
        output="latents",
    )
    assert relative_error(ours, RECORDED[f"{kind}.{sampler}-1.8"].numpy()) < 1e-4


def test_equal_steps_are_theirs_of_the_sde_at_25() -> None:
    theirs = torch.cat([torch.linspace(1.0, 0.04, 25, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    np.testing.assert_allclose(flow_grid(25, timestep_scale=1.0).sigma, theirs.numpy(), atol=1e-12)


def test_the_bundle_says_what_it_is(bundle_folder: Path, kind: str) -> None:
    manifest = open_bundle(bundle_folder).manifest
    model = manifest.model
    assert (model.prediction, model.timestep_range, model.guided_channels) == ("flow", (1.0, 0.0), 4)
    assert (model.num_classes, model.null_class, manifest.defaults.program) == (1000, 1000, "flow-euler-50")
    assert model.parameters < sum(value.numel() for value in state_of(kind).values())
    # (samples - 0) / 0.18215, the same for each channel: generate.py's latents_scale and latents_bias.
    if kind == "plain":
        assert manifest.vae is not None
        assert (manifest.vae.scaling_factor, manifest.vae.shift_factor) == (0.18215, 0.0)


def test_the_linears_quantise(bundle_folder: Path, tmp_path: Path) -> None:
    quantize_bundle(bundle_folder, tmp_path / "int8", QuantizeOptions(precision="int8"))
    quantization = open_bundle(tmp_path / "int8").manifest.quantization
    assert quantization is not None and "blocks.0.attn.qkv" not in quantization.kept
    labels, z = [3, 999], RECORDED["plain.z"].numpy()
    noise = GivenNoise(z, np.zeros((25, *z.shape), np.float32))
    pictures = [
        generate(open_bundle(folder), labels, [0, 0], program=program, noise=noise, output="latents")
        for folder in (bundle_folder, tmp_path / "int8")
        for program in [open_bundle(folder).programs["flow-euler-25"]]
    ]
    assert 1e-6 < relative_error(pictures[1], pictures[0]) < 0.1


def test_export_says_what_it_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "c.pt")
    made = CliRunner().invoke(main, ["export", "--ckpt", str(path), "--heads", "2", "--out", "b"])
    assert made.exit_code == 0, made.output
    assert "note: alignment: REPA's projectors are left out, 390 parameters that only training uses" in made.output
    assert "note: predicts: flow ('args' of the file: path_type 'linear')" in made.output


def test_weights_alone_are_known_by_their_projectors(tmp_path: Path) -> None:
    torch.save(state_of("plain"), tmp_path / "last.pt")
    found = read_source(tmp_path / "last.pt", heads=2)
    assert found.prediction == "flow" and any("assumed of REPA" in note for note in found.notes)
    assert read_source(tmp_path / "last.pt", prediction="flow-to-data", heads=2).prediction == "flow-to-data"


def test_blocks_of_early_checkpoints_get_their_numbers(tmp_path: Path) -> None:
    """generate.py --legacy: what lies behind the projectors was `decoder_blocks`, counted from 0."""
    early = {key.replace("blocks.1.", "decoder_blocks.0."): value for key, value in state_of("plain").items()}
    torch.save({"ema": early, "args": ARGS}, tmp_path / "early.pt")
    found, expected = (read_source(path, heads=2) for path in (tmp_path / "early.pt", saved(tmp_path / "now.pt")))
    assert found.config == expected.config and found.weights.keys() == expected.weights.keys()
    assert all(torch.equal(found.weights[key], expected.weights[key]) for key in expected.weights)
    torch.save({"ema": early, "args": ARGS | {"encoder_depth": 2}}, tmp_path / "early.pt")
    with pytest.raises(CheckpointError, match="encoder_depth 2 contradicts the keys, which have 1 blocks before"):
        read_source(tmp_path / "early.pt", heads=2)


@pytest.mark.parametrize(
    ("kind", "changes", "complaint"),
    [
        ("plain", {"path_type": "Linear", "prediction": "velocity"}, "path_type 'Linear' contradicts the key 'projectors"),
        ("plain", {"path_type": "cosine"}, "path_type 'cosine', .*: not supported"),
        ("plain", {"prediction": "velocity"}, "prediction 'velocity': not supported"),
        ("plain", {"qk_norm": True}, "qk_norm True contradicts the weights, whose shapes say False"),
        ("qk_norm", {"qk_norm": False}, "qk_norm False contradicts the weights, whose shapes say True"),
        ("plain", {"encoder_depth": 3}, "encoder_depth 3 contradicts the keys, which have 2 blocks"),
        ("plain", {"num_classes": 10}, "num_classes 10 contradicts"),
    ],
)  # fmt: skip
def test_settings_of_another_network_are_refused(tmp_path: Path, kind: str, changes: dict, complaint: str) -> None:
    path = saved(tmp_path / "c.pt", kind, **changes)
    with pytest.raises(CheckpointError, match=complaint):
        read_source(path, heads=2)


def test_without_projectors_the_settings_say_it(tmp_path: Path) -> None:
    """Who removed the projectors for publishing kept the settings; a SiT stays what it is."""
    settings = {"num_classes": 5, "path_type": "linear", "prediction": "v"}
    torch.save({"ema": EMA, "args": settings}, tmp_path / "c.pt")
    assert read_source(tmp_path / "c.pt", heads=3).prediction == "flow"
    torch.save({"ema": EMA, "args": settings | {"path_type": "Linear", "prediction": "velocity"}}, tmp_path / "c.pt")
    found = read_source(tmp_path / "c.pt", heads=3)
    assert found.prediction == "flow-to-data" and not any(note.startswith("alignment") for note in found.notes)
