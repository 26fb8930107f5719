"""Pixels or latents: the VAE, the size or the user says it, not the channels; a decoder can be added later."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from ditedge.cli import main
from ditedge.export import DiT, DiTConfig, ExportOptions, add_decoder, bundle_from_checkpoint, read_source
from ditedge.export.exporter import _model_info
from ditedge.export.pictures import note_on_pictures, read_fitting_vae, works_on_pixels
from ditedge.runtime import Session, open_bundle
from ditedge.runtime.errors import CheckpointError, RequestError
from tests.export.networks.vaes import assert_same_picture, make_tiny, make_vae, reference_images


def model_of(channels: int) -> SimpleNamespace:
    return SimpleNamespace(in_channels=channels, input_size=8, latent_shape=(channels, 8, 8))


def small_dit(path: Path, channels: int) -> Path:
    torch.manual_seed(2)
    model = DiT(DiTConfig(8, 2, channels, 32, 2, 2, num_classes=5))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    save_file(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def latent3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a model of 3-channel latents, without decoder."""
    folder = tmp_path_factory.mktemp("latent3")
    options = ExportOptions(heads=2, pixels=False)
    notes: list[str] = []
    bundle_from_checkpoint(small_dit(folder / "m.safetensors", 3), folder / "b", options, note=notes.append)
    assert [note for note in notes if "3 x 8 x 8" in note and "ditedge add-decoder" in note]
    return folder / "b"


@pytest.mark.parametrize(
    ("channels", "pixels", "image_size", "expected"),
    [
        (1, None, None, True),
        (1, False, None, False),
        (3, True, None, True),
        (3, False, None, False),
        (3, None, 8, True),  # pictures as large as what the network makes
        (3, None, 32, False),
        (1, None, 64, False),
        (4, None, None, False),
        (16, None, 8, False),
    ],
)
def test_what_says_that_a_model_makes_pixels(
    channels: int, pixels: bool | None, image_size: int | None, expected: bool
) -> None:
    assert works_on_pixels(model_of(channels), pixels, image_size) is expected


def test_what_nothing_says_is_asked() -> None:
    with pytest.raises(RequestError, match="3 x 8 x 8 numbers.*--pixels, or --vae FOLDER, or --latents"):
        works_on_pixels(model_of(3), None, None)
    with pytest.raises(RequestError, match="--pixels: the model makes 16 channels"):
        works_on_pixels(model_of(16), True, None)
    assert "--latents" in (note_on_pictures(model_of(1), True, asked=False) or "")
    assert note_on_pictures(model_of(1), True, asked=True) is None


@pytest.mark.parametrize("channels", [3, 16])
def test_a_vae_of_any_channels_fits(tmp_path: Path, channels: int) -> None:
    """Latents of 8 x 8 and a VAE that doubles them: --image-size 16 is right whatever the channels, 8 is not a VAE's."""
    make_vae(tmp_path / "vae", latent_channels=channels, block_out_channels=(32, 32), **halves(2))
    source = small_dit(tmp_path / "m.safetensors", channels)
    info = _model_info(read_source(source, heads=2, image_size=16), ExportOptions())
    assert read_fitting_vae(tmp_path / "vae", info).decoder.config.latent_channels == channels
    assert read_source(source, heads=2, image_size=16, factor=2).config.input_size == 8
    with pytest.raises(CheckpointError, match="--image-size 32: this checkpoint was trained for 16"):
        read_source(source, heads=2, image_size=32, factor=2)
    with pytest.raises(CheckpointError, match="--image-size 20 is not a multiple"):
        read_source(source, heads=2, image_size=20)


def halves(levels: int) -> dict[str, tuple[str, ...]]:
    return {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}


def test_the_vae_says_what_the_size_is_compared_with(tmp_path: Path) -> None:
    """Before the work: the VAE makes 16 pixels of 8, so --image-size 64 is wrong also for four channels."""
    make_vae(tmp_path / "vae", block_out_channels=(32, 32), **halves(2))
    source = small_dit(tmp_path / "m.safetensors", 4)
    options = ExportOptions(heads=2, vae=tmp_path / "vae", image_size=64)
    with pytest.raises(CheckpointError, match="--image-size 64: this checkpoint was trained for 16"):
        bundle_from_checkpoint(source, tmp_path / "b", options)
    with pytest.raises(RequestError, match="with --pixels"):
        bundle_from_checkpoint(source, tmp_path / "b", ExportOptions(heads=2, vae=tmp_path / "vae", pixels=True))
    assert not (tmp_path / "b").exists()


def test_a_decoder_is_added_to_a_bundle(latent3: Path, tmp_path: Path) -> None:
    """Three channels with means and deviations: diffusers' pictures, all other files as they were, hashes renewed."""
    mean, std = [0.3, -0.2, 0.5], [1.5, 0.7, 1.1]
    vae = make_vae(tmp_path / "vae", latent_channels=3, latents_mean=mean, latents_std=std, scaling_factor=0.9)
    command = ["add-decoder", "--engine", str(latent3), "--vae", str(tmp_path / "vae"), "--out", str(tmp_path / "b")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    before, after = open_bundle(latent3).manifest, open_bundle(tmp_path / "b").manifest  # checks every hash
    assert after.vae is not None and (after.vae.latents_mean, after.vae.latents_std) == (mean, std)
    assert set(after.files) - set(before.files) == {"decoder.onnx"} and after.name == "b"
    assert all(after.files[name] == info for name, info in before.files.items() if name != "preview.onnx")
    assert (before.picture_size("preview"), after.picture_size("preview")) == ((64, 64, 3), (32, 32, 3))
    z = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    with Session(open_bundle(tmp_path / "b")) as session:
        assert_same_picture(session.images(z.numpy()), reference_images(vae, z))


def test_a_decoder_is_exchanged(latent3: Path, tmp_path: Path) -> None:
    make_vae(tmp_path / "kl", latent_channels=3)
    tiny = make_tiny(tmp_path / "tiny", latent_channels=3)
    add_decoder(latent3, tmp_path / "kl", tmp_path / "first")
    add_decoder(tmp_path / "first", tmp_path / "tiny", tmp_path / "second")
    bundle = open_bundle(tmp_path / "second")
    assert "preview.onnx" not in bundle.manifest.files and "preview" not in bundle.manifest.graphs
    assert bundle.manifest.vae is not None and bundle.manifest.vae.kind == "tiny"
    z = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    with Session(bundle) as session:
        assert_same_picture(session.images(z.numpy()), reference_images(tiny, z))


def test_a_decoder_that_cannot_be_added_leaves_nothing(latent3: Path, golden_bundle, tmp_path: Path) -> None:
    make_vae(tmp_path / "wide", latent_channels=16)
    make_vae(tmp_path / "damaged", latent_channels=3)
    config = tmp_path / "damaged" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"latents_std": [1.0]}))
    gray = golden_bundle("gray1_cfg")
    copy = Path(shutil.copytree(latent3, tmp_path / "copy"))
    before = sorted(tmp_path.iterdir())
    for source, vae, complaint in (
        (latent3, "wide", "decodes 16 channels to 3, the model makes 3"),
        (latent3, "damaged", "latents_mean and latents_std come together"),
        (gray, "wide", "makes pixels, which need no VAE"),
    ):
        with pytest.raises((RequestError, CheckpointError), match=complaint):
            add_decoder(source, tmp_path / vae, tmp_path / "out")
    with pytest.raises(RequestError, match="which is read"):
        add_decoder(copy, tmp_path / "wide", copy, force=True)
    with pytest.raises(RequestError, match="use --force"):
        add_decoder(latent3, tmp_path / "wide", copy)
    assert sorted(tmp_path.iterdir()) == before and np.array_equal(
        open_bundle(copy).sha256, open_bundle(latent3).sha256
    )
