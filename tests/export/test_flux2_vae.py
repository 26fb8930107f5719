"""AutoencoderKLFlux2, both halves, against diffusers' own class and pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ditedge.export.sources.vae_checkpoint import read_vae
from ditedge.export.sources.vae_encoder import read_encoder
from ditedge.runtime.errors import CheckpointError
from ditedge.runtime.loop.verify import relative_error
from tests.export.flux2_pipelines import CHANNELS, flux2_vae

PACKED = 4 * CHANNELS


@torch.no_grad()
def test_latents_are_squares_of_the_vaes(tmp_path: Path) -> None:
    """With a decoder that is wider than the encoder, too; what its encoder makes is what the pipeline reads of it."""
    from diffusers import Flux2KleinPipeline

    for changes in ({}, {"decoder_block_out_channels": (8, 4, 4, 12)}):
        vae = flux2_vae(**changes)
        vae.save_pretrained(tmp_path / "vae")
        found = read_vae(tmp_path)
        config = found.decoder.config
        assert (config.latent_channels, config.factor) == (PACKED, 16)
        z = torch.randn(2, PACKED, 3, 5, generator=torch.Generator().manual_seed(2))
        std = torch.sqrt(vae.bn.running_var + vae.config.batch_norm_eps)[None, :, None, None]
        own = Flux2KleinPipeline._unpatchify_latents(z * std + vae.bn.running_mean[None, :, None, None])
        expected = vae.decode(own).sample
        assert relative_error(found.decoder(z).numpy(), expected.numpy()) < 1e-5
        if not changes:
            picture = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(3)) * 2 - 1
            expected = Flux2KleinPipeline._encode_vae_image(_holder(vae), picture, None)
            made = read_encoder(tmp_path, found)(picture)
            assert relative_error(made.numpy(), expected.numpy()) < 1e-5


def _holder(vae: Any) -> Any:
    """What the pipeline's method needs of a pipeline."""
    from types import SimpleNamespace

    from diffusers import Flux2KleinPipeline

    return SimpleNamespace(vae=vae, _patchify_latents=Flux2KleinPipeline._patchify_latents)


@pytest.mark.parametrize(
    ("name", "values", "sentence"),
    [
        ("bn.running_var", torch.full((PACKED,), -1.0), "has a number that is not possible"),
        ("bn.running_mean", torch.zeros(CHANNELS), f"is not a number for each of {PACKED} channels"),
        ("bn.running_mean", None, f"key 'bn.running_mean' is not a number for each of {PACKED} channels"),
    ],
)
def test_statistics_that_make_no_sense(tmp_path: Path, name: str, values: torch.Tensor | None, sentence: str) -> None:
    from safetensors.torch import load_file, save_file

    flux2_vae().save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    state = {key: value for key, value in load_file(weights).items() if key != name}
    save_file(state | ({name: values} if values is not None else {}), weights)
    with pytest.raises(CheckpointError, match=sentence):
        read_vae(tmp_path)
