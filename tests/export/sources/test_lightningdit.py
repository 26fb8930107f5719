"""LightningDiT and its VA-VAE against what their own modules and sampler computed (tests/golden/lightningdit)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from ditedge.calibration import QuantizeOptions, quantize_bundle
from ditedge.cli import main
from ditedge.export import ExportOptions, bundle_from_checkpoint, read_source
from ditedge.export.sources.vae_checkpoint import read_vae
from ditedge.runtime import open_bundle
from ditedge.runtime.errors import CheckpointError
from ditedge.runtime.loop.verify import relative_error
from tests.export.sources.recorded import recorded, saved

KINDS = ("released", "qk_norm", "plain")
MODEL: dict[str, dict[str, object]] = {
    "released": {"use_qknorm": False, "use_swiglu": True, "use_rope": True, "use_rmsnorm": True, "wo_shift": False},
    "qk_norm": {"use_qknorm": True, "use_swiglu": True, "use_rope": True, "use_rmsnorm": True, "wo_shift": False},
    "plain": {"use_qknorm": True, "use_swiglu": False, "use_rope": False, "use_rmsnorm": False, "wo_shift": True},
}
SAMPLE = {"mode": "ODE", "sampling_method": "euler", "num_sampling_steps": 8, "cfg_scale": 6.7, "cfg_interval_start": 0.125,
          "timestep_shift": 0.3}  # fmt: skip


def settings_of(
    kind: str, model: dict[str, Any] | None = None, sample: dict[str, Any] | None = None
) -> dict[str, object]:
    """As its train.py saves them with the weights."""
    return {
        "data": {"num_classes": 5, "latent_norm": True, "latent_multiplier": 1.0},
        "vae": {"model_name": "vavae_f16d32", "downsample_ratio": 16},
        "model": {"model_type": "LightningDiT-tiny/1", **MODEL[kind], "in_chans": 6} | (model or {}),
        "transport": {"path_type": "Linear", "prediction": "velocity", "use_lognorm": True},
        "sample": SAMPLE | (sample or {}),
    }


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, made = tmp_path_factory.mktemp("lightning"), {}
    for kind in ("released", "plain"):
        path = saved(folder / f"{kind}.pt", recorded("lightningdit", kind).state, settings_of(kind))
        made[kind] = folder / kind
        bundle_from_checkpoint(path, made[kind], ExportOptions(vae=va_vae(folder) if kind == "released" else None))
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_is_theirs(tmp_path: Path, kind: str) -> None:
    """Its heads are those of the rotary positions, or of the norm of queries: nothing else says them."""
    golden = recorded("lightningdit", kind)
    found = read_source(saved(tmp_path / "c.pt", golden.state, settings_of(kind)))
    assert found.config.num_heads == 2 and golden.network_error(found.model()) < 1e-5


@pytest.mark.parametrize("kind", ["released", "plain"])
@pytest.mark.parametrize(("run", "guidance"), [("guided", 6.7), ("unguided", 1.0)])
def test_the_default_program_is_their_sampler(bundles: dict[str, Path], kind: str, run: str, guidance: float) -> None:
    golden, manifest = recorded("lightningdit", kind), open_bundle(bundles[kind]).manifest
    assert (manifest.defaults.program, manifest.defaults.guidance) == ("flow-euler-7", 6.7)
    program = open_bundle(bundles[kind]).programs["flow-euler-7"]
    assert program.guidance.tolist() == [0, 0, 0, 1, 1, 1, 1]  # t is 0, 0.048, 0.107, 0.184 ...: from 0.125 on
    ours = golden.sampled(bundles[kind], "flow-euler-7", guidance)
    assert relative_error(ours, golden.tensors[run][-1].numpy()) < 1e-4


def test_weights_alone_sample_as_its_released_config(tmp_path: Path) -> None:
    torch.save({"ema": recorded("lightningdit", "released").state}, tmp_path / "c.pt")
    found = read_source(tmp_path / "c.pt")
    assert (found.prediction, found.guidance, found.sampling["steps"]) == ("flow-to-data", 6.7, 249)
    assert found.sampling["guidance_interval"] == [0.0, 0.875] and abs(found.sampling["shift"] - 1 / 0.3) < 1e-12
    assert any("assumed: its config for 800 epochs" in note for note in found.notes)


def test_positions_that_an_average_lacks_are_computed(tmp_path: Path) -> None:
    golden = recorded("lightningdit", "released")
    state = {key: value for key, value in golden.state.items() if "feat_rope" not in key}
    found = read_source(saved(tmp_path / "c.pt", state, settings_of("released")), heads=2)
    assert golden.network_error(found.model()) < 1e-5
    assert not read_source(saved(tmp_path / "c.pt", state, None), heads=2).config.rope  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kind", "model", "complaint"),
    [
        ("released", {"use_swiglu": False}, "use_swiglu False contradicts the keys, which say True"),
        ("released", {"use_rmsnorm": False}, "use_rmsnorm False contradicts the keys, which say True"),
        ("released", {"use_rope": False}, "use_rope False contradicts the keys, which say True"),
        ("released", {"wo_shift": True}, "wo_shift True contradicts the keys, which say False"),
        ("released", {"use_qknorm": True}, "qk_norm True contradicts the weights"),
        ("released", {"in_chans": 32}, "in_channels 32 contradicts the weights"),
        ("plain", {"wo_shift": False}, "wo_shift False contradicts the keys, which say True"),
    ],
)
def test_settings_of_another_network_are_refused(tmp_path: Path, kind: str, model: dict, complaint: str) -> None:
    path = saved(tmp_path / "c.pt", recorded("lightningdit", kind).state, settings_of(kind, model))
    with pytest.raises(CheckpointError, match=complaint):
        read_source(path)


def test_other_transports_and_heads_are_refused(tmp_path: Path) -> None:
    state = recorded("lightningdit", "released").state
    other = settings_of("released") | {"transport": {"path_type": "GVP", "prediction": "velocity"}}
    with pytest.raises(CheckpointError, match="path_type 'GVP'"):
        read_source(saved(tmp_path / "c.pt", state, other))
    with pytest.raises(CheckpointError, match="feat_rope.freqs_cos' has shape"):
        read_source(saved(tmp_path / "c.pt", state, settings_of("released")), heads=4)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("blocks.0.adaLN_modulation.1.weight", torch.zeros(())),
        ("blocks.0.mlp.w12.weight", torch.zeros(())),
        ("blocks.0.mlp.w12.weight", torch.zeros(3, 48)),
        ("feat_rope.freqs_cos", torch.zeros(())),
        ("feat_rope.freqs_sin", torch.zeros(2, 2)),
        ("x_embedder.proj.weight", torch.zeros(())),
        ("blocks.1.norm2.weight", torch.full((48,), float("nan"))),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, key: str, value: torch.Tensor) -> None:
    state = recorded("lightningdit", "released").state | {key: value}
    with pytest.raises(CheckpointError, match=key.rpartition(".")[0].replace(".", r"\.")):
        read_source(saved(tmp_path / "c.pt", state, None), heads=2)


@pytest.mark.parametrize(
    "sample", [{"cfg_scale": "high"}, {"num_sampling_steps": 10**9}, {"timestep_shift": float("nan")}]
)
def test_settings_of_sampling_that_make_no_sense_are_left_out(tmp_path: Path, sample: dict[str, Any]) -> None:
    path = saved(tmp_path / "c.pt", recorded("lightningdit", "released").state, settings_of("released", sample=sample))
    found = read_source(path)
    expected = {"cfg_scale": 6.7, "num_sampling_steps": 249, "timestep_shift": 1 / 0.3}
    actual = {
        "cfg_scale": found.guidance,
        "num_sampling_steps": found.sampling["steps"],
        "timestep_shift": found.sampling["shift"],
    }
    name = next(iter(sample))
    assert actual[name] == pytest.approx(expected[name])


def test_an_interval_that_no_step_is_in_does_not_stop_the_export(tmp_path: Path) -> None:
    """Two points are one step, from t = 0: nothing there is guided by theirs, and a program of no guidance is refused."""
    state = recorded("lightningdit", "released").state
    found = read_source(saved(tmp_path / "c.pt", state, settings_of("released", sample={"num_sampling_steps": 2})))
    assert found.sampling == {"sampler": "flow-euler", "steps": 1, "shift": pytest.approx(1 / 0.3)}


def test_the_command_line_takes_their_interval(bundles: dict[str, Path], tmp_path: Path) -> None:
    """sigma of a flow is its share of noise, 1 - t: what the default program has, asked for."""
    told = ["--sampler", "flow-euler", "--steps", "7", "--shift", str(1 / 0.3), "--guidance-interval", "0,0.875"]
    bundle, latents = str(bundles["released"]), []
    for name, asked in (("default.npz", []), ("asked.npz", told)):
        file = str(tmp_path / name)
        made = CliRunner().invoke(main, ["run", "--engine", bundle, "--class", "3", "--save-latents", file, *asked])
        assert made.exit_code == 0, made.output
        with np.load(file) as saved_latents:
            latents.append(saved_latents[saved_latents.files[0]])
    np.testing.assert_array_equal(*latents)
    refused = CliRunner().invoke(main, ["run", "--engine", bundle, "--class", "3", "--guidance-interval", "t1,t9"])
    assert refused.exit_code == 2 and "has no timesteps of training" in refused.output


def test_the_linears_quantise(bundles: dict[str, Path], tmp_path: Path) -> None:
    quantize_bundle(bundles["released"], tmp_path / "int8", QuantizeOptions(precision="int8"))
    quantization = open_bundle(tmp_path / "int8").manifest.quantization
    assert quantization is not None and "blocks.0.mlp.w12" not in quantization.kept
    golden = recorded("lightningdit", "released")
    ours = golden.sampled(tmp_path / "int8", "flow-euler-7", 1.0)
    assert 1e-6 < relative_error(ours, golden.tensors["unguided"][-1].numpy()) < 0.1


def va_vae(folder: Path, **stats: torch.Tensor) -> Path:
    golden = recorded("lightningdit", "vae")
    torch.save({"state_dict": golden.state}, folder / "vavae.pt")
    mean, std = golden.tensors["mean"], golden.tensors["std"]
    torch.save({"mean": mean, "std": std} | stats, folder / "latents_stats.pt")
    return folder / "vavae.pt"


def test_va_vae_with_the_statistics_beside_it(tmp_path: Path) -> None:
    """It has attention behind the residual blocks of its lowest resolution, as diffusers' AttnUpDecoderBlock2D."""
    golden = recorded("lightningdit", "vae").tensors
    found = read_vae(va_vae(tmp_path))
    ours = found.decoder(golden["z"]).numpy()
    assert relative_error(ours, golden["picture"].numpy()) < 1e-5
    assert any("latents_stats.pt, times 1" in note for note in found.notes)
    (tmp_path / "latents_stats.pt").unlink()
    with pytest.raises(CheckpointError, match="scaling of its 6-channel latents is not in the file"):
        read_vae(tmp_path / "vavae.pt")


@pytest.mark.parametrize(
    ("stats", "complaint"),
    [
        ({"std": torch.zeros(1, 6, 1, 1)}, "'std' has a number that is not possible"),
        ({"mean": torch.zeros(1, 6, 2, 1)}, "no tensor 'mean' of one number for each channel"),
        ({"mean": torch.zeros(4), "std": torch.ones(4)}, "of 4 channels, its latents have 6"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(tmp_path: Path, stats: dict[str, torch.Tensor], complaint: str) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        read_vae(va_vae(tmp_path, **stats))


def test_attention_in_up_blocks_is_diffusers(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"), latent_channels=4,
    ).eval()  # fmt: skip
    vae.save_pretrained(tmp_path)
    z = torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        theirs = vae.decode(z / vae.config.scaling_factor).sample
    assert relative_error(read_vae(tmp_path).decoder(z).numpy(), theirs.numpy()) < 1e-5


def test_an_exported_decoder_has_the_statistics(bundles: dict[str, Path]) -> None:
    vae = open_bundle(bundles["released"]).manifest.vae
    assert vae is not None and vae.scaling_factor == 1.0
    np.testing.assert_allclose(vae.latents_mean or [], recorded("lightningdit", "vae").tensors["mean"].flatten())
