"""What a network's numbers are, pixels or a VAE's latents, and what turns latents into pictures.

The number of channels does not say it: pictures have 1 or 3, and so have the latents of some VAEs (kl-f4). A VAE, the
size of the pictures or the user does.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..runtime.bundle.graph_contract import GraphInfo
from ..runtime.bundle.manifest import ModelInfo, VaeInfo
from ..runtime.errors import RequestError
from ..runtime.report import Report
from .graphs.preview import Preview, fitted_preview, plain_preview
from .graphs.write import write_decoder, write_preview
from .graphs.write_image import write_image_graphs
from .networks.vae import KlConfig
from .options import ExportOptions
from .sources.places import diffusers_folder_of, vae_folder
from .sources.shapes import LATENT_FACTOR
from .sources.vae_checkpoint import VaeCheckpoint, read_vae
from .sources.vae_encoder import read_encoder

PICTURE_CHANNELS = (1, 3)


def works_on_pixels(info: ModelInfo, pixels: bool | None, image_size: int | None) -> bool:
    """Whether a network without a VAE makes pictures itself. Raises RequestError where nothing says it.

    pixels: what the user says, None nothing. image_size: side of the pictures it was trained on, None unknown.
    """
    channels, size = info.in_channels, info.input_size
    if pixels is None and channels in PICTURE_CHANNELS and image_size is not None:
        return image_size == size
    if pixels is None and channels == 3:
        raise RequestError(
            f"the model makes 3 x {size} x {size} numbers, which may be pixels or the latents of a VAE: "
            "give --pixels, or --vae FOLDER, or --latents for a bundle without a decoder"
        )
    if pixels and channels not in PICTURE_CHANNELS:
        raise RequestError(f"--pixels: the model makes {channels} channels, and a picture has 1 or 3")
    return channels == 1 if pixels is None else pixels


def note_on_pictures(info: ModelInfo, pixels: bool, asked: bool) -> str | None:
    """What a user should know of a bundle without a VAE before it is made. asked: the user said what it works on."""
    shape = " x ".join(map(str, info.latent_shape))
    if not pixels:
        return (
            f"without --vae: the model makes latents ({shape}) and the bundle gets no decoder, so `run` gives latents "
            "or rough previews; `ditedge add-decoder` adds one later"
        )
    return None if asked else f"taken for a model of gray pictures ({shape}): --latents or --vae if it is not"


def read_fitting_vae(path: Path, info: ModelInfo, encoder: bool = False) -> VaeCheckpoint:
    """The VAE at `path`. Raises CheckpointError, or RequestError when it does not decode what the model makes.

    encoder: with its other half, too.
    """
    vae = read_vae(path)
    config = vae.decoder.config
    if config.latent_channels != info.in_channels or config.out_channels not in PICTURE_CHANNELS:
        raise RequestError(
            f"--vae {path}: it decodes {config.latent_channels} channels to {config.out_channels}, "
            f"the model makes {info.in_channels} and a picture has 1 or 3"
        )
    return replace(vae, encoder=read_encoder(path, vae)) if encoder else vae


def vae_path(options: ExportOptions, source: Path) -> Path | None:
    """The VAE of --vae or of a diffusers pipeline folder."""
    return options.vae or (vae_folder(diffusers_folder_of(source)) if not options.pixels else None)


def vae_of(options: ExportOptions, info: ModelInfo, source: Path) -> VaeCheckpoint | None:
    """The VAE, checked to fit the model; None where there is none. Raises as `read_fitting_vae`."""
    if options.vae is not None and options.pixels:
        raise RequestError(f"--vae {options.vae} with --pixels: a model of pixels has no VAE, leave one of them out")
    path = vae_path(options, source)
    return read_fitting_vae(path, info, options.encoder) if path is not None else None


def write_pictures(
    vae: VaeCheckpoint | None,
    info: ModelInfo,
    pixels: bool,
    folder: Path,
    precision: str,
    opset: int,
    report: Report,
    factor: int | None = None,
) -> dict[str, GraphInfo]:
    """The graphs `decoder` (of a VAE, in `precision`) and `preview` -> those that there are.

    factor: of a model of latents of any H x W, pixels of a picture per pixel of a latent where no VAE says it; None:
    latents have the model's input_size.
    """
    any_size = factor is not None
    graphs = {}
    if vae is not None:
        graphs["decoder"] = write_decoder(vae, info, folder, precision, opset, report, any_size)
    preview = preview_of(info, vae, pixels, factor or LATENT_FACTOR)
    if preview is not None:
        graphs["preview"] = write_preview(preview, info, folder, opset, report, any_size)
    return graphs


def image_graphs(
    vae: VaeCheckpoint | None, info: ModelInfo, folder: Path, opset: int, report: Report, any_size: bool = False
) -> dict[str, GraphInfo]:
    """The graphs `encoder` and `blend`, to begin from a picture. vae: None for a model of pixels."""
    factor, encoder = (1, None) if vae is None else (vae.decoder.config.factor, vae.encoder)
    return write_image_graphs(encoder, info, factor, folder, opset, report, any_size)


def vae_info(vae: VaeCheckpoint, precision: str) -> VaeInfo:
    config = vae.decoder.config
    return VaeInfo(
        kind=vae.kind,
        source_sha256=vae.sha256,
        precision=precision,  # type: ignore[arg-type]  # pydantic checks it
        scaling_factor=config.scaling_factor,
        shift_factor=config.shift_factor,
        latents_mean=_listed(config.latents_mean) if isinstance(config, KlConfig) else None,
        latents_std=_listed(config.latents_std) if isinstance(config, KlConfig) else None,
    )


def _listed(values: tuple[float, ...] | None) -> list[float] | None:
    return None if values is None else list(values)


def preview_of(info: ModelInfo, vae: VaeCheckpoint | None, pixels: bool, factor: int = LATENT_FACTOR) -> Preview | None:
    """None where the decoder itself is quick enough for previews: pixels, and tiny decoders."""
    if pixels or (vae is not None and vae.kind == "tiny"):
        return None
    return fitted_preview(vae.decoder) if vae is not None else plain_preview(info.in_channels, factor)
