"""MDTv2 against what its own module and sampler computed (tests/golden/mdtv2)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ditedge.calibration import QuantizeOptions, quantize_bundle
from ditedge.export import ExportOptions, bundle_from_checkpoint, read_source
from ditedge.runtime import generate, open_bundle
from ditedge.runtime.errors import CheckpointError, ProgramError
from ditedge.runtime.loop.noise import GivenNoise
from ditedge.runtime.loop.verify import relative_error
from ditedge.runtime.samplers.settings import SamplerSettings, make_program
from tests.export.sources.recorded import recorded, saved

GOLDEN = recorded("mdtv2")
BIAS = "attn.rel_pos_bias.relative_position_bias_table"


@pytest.fixture(scope="module")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mdtv2")
    torch.save(GOLDEN.state, folder / "mdt_xl2_v2_ckpt.pt")  # as it is released: flat
    bundle_from_checkpoint(folder / "mdt_xl2_v2_ckpt.pt", folder / "bundle", ExportOptions())
    return folder / "bundle"


def test_the_network_is_theirs(tmp_path: Path) -> None:
    found = read_source(saved(tmp_path / "c.pt", GOLDEN.state, None))
    assert (found.config.depth, found.config.num_heads, found.config.learn_sigma) == (6, 2, True)
    assert GOLDEN.network_error(found.model()) < 1e-5
    assert any("side-interpolater is left out, 19,048 parameters" in note for note in found.notes)


@pytest.mark.parametrize("power", [4.0, 0.01])
def test_trajectories_of_their_sampler(bundle_folder: Path, power: float) -> None:
    """DDPM with learned variance; guidance of three channels, 3.8 times the power-cosine of each timestep."""
    bundle = open_bundle(bundle_folder)
    program = bundle.program(sampler="ddpm", respacing="5", guidance_power=power)
    noise = GivenNoise(GOLDEN.tensors["z"].numpy(), GOLDEN.tensors[f"noise-{power:g}"].numpy())
    labels = GOLDEN.tensors["labels"].tolist()
    ours = generate(bundle, labels, [0, 0], program=program, guidance=3.8, noise=noise, output="latents")
    assert relative_error(ours, GOLDEN.tensors[f"ddpm-{power:g}"][-1].numpy()) < 1e-4


def test_the_defaults_are_their_scripts(bundle_folder: Path) -> None:
    bundle = open_bundle(bundle_folder)
    defaults, program = bundle.manifest.defaults, bundle.programs["ddpm-250"]
    assert (defaults.program, defaults.guidance, bundle.manifest.model.guided_channels) == ("ddpm-250", 3.8, 3)
    t = program.timestep
    expected = (1 - np.cos((1 - t / 1000) ** 4 * np.pi)) / 2
    np.testing.assert_allclose(program.guidance, expected, atol=1e-12)
    assert bundle.programs["ddpm-50"].guidance.tolist() == [1.0] * 50


@pytest.mark.parametrize("power", [0.0, -1.0, float("nan")])
def test_a_power_that_is_none_is_refused(bundle_folder: Path, power: float) -> None:
    bundle = open_bundle(bundle_folder)
    with pytest.raises(ProgramError, match="guidance_power .* must be above 0"):
        bundle.program(sampler="ddpm", steps=5, guidance_power=power)
    with pytest.raises(ProgramError, match="guidance_power is for diffusion models"):
        flow = SamplerSettings(sampler="flow-euler", steps=5)
        make_program(None, replace(flow, guidance_power=4.0), learned_variance=False, prediction="flow")


@pytest.mark.parametrize(
    ("change", "settings", "asked", "complaint"),
    [
        ({}, {"decode_layer": 4}, {}, "decode_layer 4 contradicts the keys, which say 2"),
        ({}, {}, {"heads": 4}, "--heads 4 contradicts key .*bias_table', which has 2"),
        ({"en_outblocks.1.": None}, {}, {}, "2 blocks of 'en_inblocks.' and 1 of 'en_outblocks.'"),
        ({"en_inblocks.": None, "en_outblocks.": None}, {}, {}, "MDT before version 2 is not supported"),
        ({}, {"num_classes": 7}, {}, "num_classes 7 contradicts"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, change: dict, settings: dict, asked: dict, complaint: str
) -> None:
    state = {key: value for key, value in GOLDEN.state.items() if not key.startswith(tuple(change))}
    with pytest.raises(CheckpointError, match=complaint):
        read_source(saved(tmp_path / "c.pt", state, settings, "args"), **asked)


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        (f"en_inblocks.0.{BIAS}", torch.zeros(()), "key 'en_inblocks.0.attn.rel_pos_bias.* no matrix"),
        (f"en_inblocks.0.{BIAS}", torch.zeros(52, 3), "is of 3 heads, which do not divide the width 32"),
        (f"de_blocks.1.{BIAS}", torch.zeros(52, 3), "bias_table' has shape"),
        ("pos_embed", torch.zeros(1, 65 * 65, 32), "has 4225 positions, at most 4096 have biases"),
        ("de_blocks.0.skip_linear.weight", torch.zeros(32, 32), "skip_linear.weight' has shape"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, key: str, value: torch.Tensor, complaint: str) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        read_source(saved(tmp_path / "c.pt", GOLDEN.state | {key: value}, None))


def test_the_linears_quantise(bundle_folder: Path, tmp_path: Path) -> None:
    quantize_bundle(bundle_folder, tmp_path / "int8", QuantizeOptions(precision="int8"))
    quantization = open_bundle(tmp_path / "int8").manifest.quantization
    assert quantization is not None and "blocks.4.skip_linear" not in quantization.kept
    float32, int8 = (GOLDEN.sampled(folder, "ddim-25", 1.0) for folder in (bundle_folder, tmp_path / "int8"))
    assert 1e-6 < relative_error(int8, float32) < 0.2
