"""MaskDiT, its decoder and EDM's preconditioning against its own modules and sampler (tests/golden/maskdit)."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch

from ditedge.calibration import QuantizeOptions, quantize_bundle
from ditedge.export import ExportOptions, bundle_from_checkpoint, read_source
from ditedge.runtime import generate, open_bundle
from ditedge.runtime.errors import CheckpointError, ProgramError, RequestError
from ditedge.runtime.loop.noise import GivenNoise
from ditedge.runtime.loop.verify import relative_error
from ditedge.runtime.samplers.edm import edm_grid
from tests.export.sources.recorded import recorded, saved

KINDS = ("decoder", "plain")
MODEL: dict[str, object] = {"precond": "edm", "model_type": "DiT-tiny/2", "in_size": 8, "in_channels": 4, "num_classes": 5,
                            "pad_cls_token": False, "ext_feature_dim": 0, "mask_ratio": 0.5, "class_dropout_prob": 0.1}  # fmt: skip


def settings_of(kind: str, **changes: object) -> dict[str, object]:
    return {"model": MODEL | {"use_decoder": kind == "decoder"} | changes}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def bundle_folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(kind)
    path = saved(folder / "c.pt", recorded("maskdit", kind).state, vars(argparse.Namespace(config="x.yaml")), "args")
    bundle_from_checkpoint(path, folder / "bundle", ExportOptions(heads=2))
    return folder / "bundle"


def test_the_network_is_theirs(tmp_path: Path, kind: str) -> None:
    golden = recorded("maskdit", kind)
    found = read_source(saved(tmp_path / "c.pt", golden.state, settings_of(kind)), heads=2)
    assert (found.prediction, found.config.depth, found.config.num_classes) == ("edm", 4 if kind == "decoder" else 2, 5)
    assert golden.network_error(found.model()) < 1e-5


@pytest.mark.parametrize("guidance", [1.0, 1.8])
def test_trajectories_of_their_sampler(bundle_folder: Path, kind: str, guidance: float) -> None:
    """EDM's Heun from 80 to 0; theirs guide all channels of what stands inside the preconditioning."""
    golden, bundle = recorded("maskdit", kind), open_bundle(bundle_folder)
    program, z = bundle.program(sampler="edm-heun", steps=6), golden.tensors["z"].numpy()
    noise = GivenNoise(z, np.zeros((program.steps, *z.shape), np.float32))
    labels = golden.tensors["labels"].tolist()
    ours = generate(bundle, labels, [0, 0], program=program, guidance=guidance, noise=noise, output="latents")
    assert relative_error(ours, golden.tensors[f"heun-{guidance:g}"].numpy()) < 1e-4


def test_what_the_denoiser_says_at_each_evaluation(tmp_path: Path, bundle_folder: Path, kind: str) -> None:
    """The table in numpy around the module: every x0 is what their net(x, sigma) gives."""
    golden, program = recorded("maskdit", kind), open_bundle(bundle_folder).program(sampler="edm-heun", steps=6)
    model, y = read_source(saved(tmp_path / "c.pt", golden.state, None), heads=2).model(), golden.tensors["labels"]
    z, seen = golden.tensors["z"].numpy(), []
    state = np.zeros((2, program.slots, *z.shape[1:]), np.float32)
    state[:, 0] = z * program.init[1]
    for t, (a, b), mix in zip(program.timestep, program.x0_from, program.mix, strict=True):
        x, told = torch.from_numpy(state[:, 0]), torch.full((2,), float(t))
        given, null = (model.trunk(x, model.conditioner(told, label)).numpy() for label in (y, torch.full((2,), 5)))
        seen.append((a * state[:, 0] + b * (null + 1.8 * (given - null))).astype(np.float32))
        slots = np.concatenate([state, seen[-1][:, None], np.zeros_like(seen[-1])[:, None]], axis=1)
        state = np.einsum("kj,bjchw->bkchw", mix, slots).astype(np.float32)
    assert relative_error(np.stack(seen), golden.tensors["denoised-1.8"].numpy()) < 1e-4


def test_the_bundle_says_what_it_is(bundle_folder: Path) -> None:
    manifest = open_bundle(bundle_folder).manifest
    model = manifest.model
    assert (model.prediction, model.guided_channels, manifest.schedule) == ("edm", 4, None)
    np.testing.assert_allclose(model.timestep_range, (np.log(80) / 4, np.log(0.002) / 4))
    assert (model.num_classes, model.null_class, manifest.defaults.program) == (5, 5, "edm-heun-18")


def test_a_guidance_interval_is_in_edms_sigmas(bundle_folder: Path) -> None:
    program = open_bundle(bundle_folder).program(sampler="edm-euler", steps=6, guidance_interval=(0.28, 5.42))
    sigma = np.exp(4 * edm_grid(6).timestep)
    assert program.guidance.tolist() == [float(0.28 < s <= 5.42) for s in sigma] and 0 < program.guidance.sum() < 6


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"sampler": "flow-euler", "steps": 5}, "'flow-euler' is not one of edm-euler, edm-heun"),
        ({"sampler": "ddim", "steps": 5}, "'ddim' is not one of edm-euler, edm-heun"),
        ({"sampler": "edm-heun", "steps": 1}, "steps 1 is not between 2 and 1000"),
        ({"sampler": "edm-heun", "steps": 5, "shift": 3.0}, "shift is for other models"),
        ({"sampler": "edm-heun", "steps": 5, "spacing": "trailing"}, "spacing is for other models"),
    ],
)
def test_settings_of_other_samplers_are_refused(bundle_folder: Path, settings: dict, complaint: str) -> None:
    with pytest.raises(ProgramError, match=complaint):
        open_bundle(bundle_folder).program(**settings)


@pytest.mark.parametrize(
    ("extra", "changes", "complaint"),
    [
        ("model.cls_token", {}, "key 'cls_token': MaskDiT with pad_cls_token is not supported"),
        ("model.feat_embedder.weight", {}, "MaskDiT with ext_feature_dim is not supported"),
        ("model.enc_feat_embedder.weight", {}, r"MaskDiT with use_encoder_feat \(self_cond\) is not supported"),
        (None, {"use_decoder": False}, "use_decoder False contradicts the keys, which say True"),
        (None, {"precond": "vp"}, "precond 'vp' contradicts the keys, which say edm"),
        (None, {"num_classes": 7}, "num_classes 7 contradicts"),
        (None, {"in_size": 64}, "input_size 64 contradicts the weights"),
    ],
)
def test_variants_and_other_settings_are_refused(
    tmp_path: Path, extra: str | None, changes: dict, complaint: str
) -> None:
    state = recorded("maskdit", "decoder").state | ({extra: torch.zeros(1, 1, 32)} if extra else {})
    with pytest.raises(CheckpointError, match=complaint):
        read_source(saved(tmp_path / "c.pt", state, settings_of("decoder", **changes)), heads=2)


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("y_embedder.embedding_table.weight", torch.zeros(()), "embedding_table.weight' is missing, or no matrix"),
        ("decoder_layer.linear.weight", torch.zeros(()), "decoder_layer.linear.weight' is missing, or not to a width"),
        ("decoder_layer.linear.weight", torch.zeros(50, 32), "not to a width of 16 heads"),
        ("decoder_pos_embed", torch.zeros(1, 4, 48), "decoder_pos_embed' has shape"),
        ("final_layer.linear.weight", torch.zeros(32, 48), "learn_sigma is not supported"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, key: str, value: torch.Tensor, complaint: str) -> None:
    state = recorded("maskdit", "decoder").state | {f"model.{key}": value}
    with pytest.raises(CheckpointError, match=complaint):
        read_source(saved(tmp_path / "c.pt", state, None), heads=2)


def test_betas_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.pt", recorded("maskdit", "decoder").state, settings_of("decoder"))
    with pytest.raises(RequestError, match="EDM's model has no betas"):
        read_source(path, heads=2, betas="linear")


def test_the_linears_quantise(bundle_folder: Path, kind: str, tmp_path: Path) -> None:
    quantize_bundle(bundle_folder, tmp_path / "int8", QuantizeOptions(precision="int8"))
    quantization = open_bundle(tmp_path / "int8").manifest.quantization
    last = "blocks.3.mlp.fc1" if kind == "decoder" else "blocks.1.mlp.fc1"
    assert quantization is not None and last not in quantization.kept
    golden = recorded("maskdit", kind)
    float32, int8 = (golden.sampled(folder, "edm-heun-18", 1.0) for folder in (bundle_folder, tmp_path / "int8"))
    assert 1e-6 < relative_error(int8, float32) < 0.1
