"""A diffusers folder computes what its own library does: network, DDIM pipeline, pictures."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ditedge.export import ExportOptions, bundle_from_checkpoint, read_source
from ditedge.export.sources.scheduler_config import read_scheduler
from ditedge.runtime import Session, generate, open_bundle
from ditedge.runtime.loop.noise import GivenNoise
from ditedge.runtime.loop.verify import relative_error
from ditedge.runtime.samplers.schedule import linear_schedule
from ditedge.runtime.samplers.settings import SamplerSettings, make_program
from tests.export.sources.diffusers_models import diffusers_model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm_eps": 0.1},  # an eps that shows: 1e-5 and 1e-6 differ by less than the tolerance
        {"out_channels": None, "in_channels": 3, "num_embeds_ada_norm": 10},
        {"patch_size": 4, "sample_size": 16, "num_layers": 1},
    ],
)
def test_network_equals_diffusers(tmp_path: Path, options: dict) -> None:
    theirs = diffusers_model(**options)
    theirs.save_pretrained(tmp_path)
    checkpoint = read_source(tmp_path)
    ours, config = checkpoint.model(), checkpoint.config
    assert config.frequency_divisor == 127 and config.mlp_norm_eps == options.get("norm_eps", 1e-5)
    x = torch.randn(4, config.in_channels, config.input_size, config.input_size)
    t, y = torch.tensor([0, 1, 500, 999]), torch.tensor([0, 3, config.num_classes - 1, config.num_classes])
    expected = theirs(x, timestep=t, class_labels=y).sample
    assert relative_error(ours(x, t, y).numpy(), expected.numpy()) < 1e-5  # measured 0


@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_default_run_equals_the_ddim_pipeline(pipeline_folder: Path, pipeline_bundle: Path, guidance: float) -> None:
    """The whole DiTPipeline: 50 DDIM steps with leading spacing, guidance on four channels, sigma dropped."""
    latents, z = latents_of_pipeline(pipeline_folder, guidance)
    bundle = open_bundle(pipeline_bundle)
    assert bundle.manifest.defaults.guidance == 4.0 and bundle.manifest.model.guided_channels == 4
    program = bundle.program()
    assert program.name == "ddim-50" and program.timestep.tolist() == list(range(980, -1, -20))
    with Session(bundle) as session:
        ours = session.latents(program, [207, 360], guidance, GivenNoise(z, np.zeros((50, *z.shape), np.float32)))
    assert relative_error(ours, latents) < 1e-4  # measured 1e-6


@pytest.mark.parametrize(
    "config",
    [
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": [0.0001 + 0.00003 * i for i in range(1000)]},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    ],
    ids=["scaled_linear", "cosine", "given", "zero-snr"],
)
def test_other_betas_equal_the_ddim_pipeline(pipeline_folder: Path, tmp_path: Path, config: dict) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(clip_sample=False, **config)
    folder = Path(shutil.copytree(pipeline_folder, tmp_path / "p", ignore=shutil.ignore_patterns("vae")))
    scheduler.save_pretrained(folder / "scheduler")
    bundle_from_checkpoint(folder, tmp_path / "bundle", ExportOptions())
    latents, z = latents_of_pipeline(pipeline_folder, 4.0, scheduler)
    with Session(open_bundle(tmp_path / "bundle")) as session:
        program = session.bundle.program()
        ours = session.latents(program, [207, 360], 4.0, GivenNoise(z, np.zeros((50, *z.shape), np.float32)))
    assert program.name == "ddim-50"
    assert relative_error(ours, latents) < 1e-4  # diffusers' float32 betas; the pipeline's betas swapped give over 0.1


def test_pictures_equal_the_pipelines(pipeline_folder: Path, pipeline_bundle: Path) -> None:
    """A folder with a VAE: the whole DiTPipeline down to 8-bit pixels, within 1 of 255 in 99.9 % of them."""
    import diffusers

    pipe = diffusers.DiTPipeline.from_pretrained(pipeline_folder)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe([207, 360], 4.0, torch.Generator().manual_seed(5), 50, "np").images
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5)).numpy()
    noise = GivenNoise(z, np.zeros((50, *z.shape), np.float32))
    ours = generate(open_bundle(pipeline_bundle), [207, 360], [0, 0], guidance=4.0, noise=noise)
    difference = np.abs(ours.astype(int) - np.round(theirs * 255).astype(int))
    assert ours.shape == theirs.shape and np.ptp(ours) > 20, "the pictures are not all one grey"
    assert np.mean(difference <= 1) >= 0.999


def test_ddpm_scheduler_is_followed(pipeline_folder: Path, pipeline_bundle: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(clip_sample=True)
    latents, z = latents_of_pipeline(pipeline_folder, 1.0, scheduler)
    torch.manual_seed(3)  # the scheduler draws from torch's global generator
    noise = np.stack([torch.randn(z.shape).numpy() for _ in range(49)] + [np.zeros_like(z)])
    facts = read_scheduler(Path("x"), dict(scheduler.config) | {"_class_name": "DDPMScheduler"})
    program = make_program(linear_schedule(), SamplerSettings(**facts.sampling), learned_variance=True)
    with Session(open_bundle(pipeline_bundle)) as session:
        ours = session.latents(program, [207, 360], 1.0, GivenNoise(z, noise))
    assert relative_error(ours, latents) < 1e-4


def latents_of_pipeline(folder: Path, guidance: float, scheduler=None) -> tuple[np.ndarray, np.ndarray]:
    """DiTPipeline itself on classes 207 and 360 -> the latents that it hands to its VAE, and the noise it began with."""
    import diffusers

    pipe = diffusers.DiTPipeline.from_pretrained(folder)
    pipe.scheduler = scheduler or pipe.scheduler
    pipe.set_progress_bar_config(disable=True)
    handed: list[torch.Tensor] = []

    def decode(latents: torch.Tensor) -> SimpleNamespace:
        handed.append(latents * pipe.vae.config.scaling_factor)
        return SimpleNamespace(sample=latents)

    pipe.vae.decode = decode
    torch.manual_seed(3)
    generator = torch.Generator().manual_seed(5)
    pipe([207, 360], guidance, generator, 50, "pt")
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    return handed[0].numpy(), z.numpy()
