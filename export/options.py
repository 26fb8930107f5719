"""What `ditedge export` and `add-decoder` can be told, each option once."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..runtime.errors import RequestError
from ..runtime.options import BUNDLE_OUT, FORCE, HEADS, SIZE, option
from ..runtime.plans.options import TARGETS
from .sources import listed
from .sources.asked import Asked

DEFAULT_OPSET = 20
GOLDEN_STEPS = (2, 100)
PREDICTIONS = ("epsilon", "x0", "v", "flow", "flow-to-data", "mean-flow", "edm")
VAE = option("--vae", help="VAE of a latent model: a diffusers folder, or a file of weights; TAESD too.")
VAE_PRECISIONS = {"fp32": "float32", "fp16": "float16"}  # as the command line spells them -> as manifests do
VAE_PRECISION = option("--vae-precision", help="Of the decoder's weights and arithmetic.", choices=(*VAE_PRECISIONS,))


def vae_dtype(precision: str) -> str:
    """ "fp16" -> "float16". Raises RequestError for another precision than a decoder can have."""
    if precision not in VAE_PRECISIONS:
        raise RequestError(f"precision '{precision}' of a decoder is not one of {', '.join(VAE_PRECISIONS)}")
    return VAE_PRECISIONS[precision]


@dataclass(frozen=True)
class ExportOptions:
    """What a user may decide about a bundle. None: as the source says, or its habit."""

    image_size: int | None = field(
        default=None,
        metadata=option(
            "--image-size", help="Picture size in pixels; checked. [default: what the checkpoint says]", range=SIZE
        ),
    )
    heads: int | None = field(
        default=None,
        metadata=option(
            "--heads", help="Attention heads. [default: the run's settings, or the standard size's]", range=HEADS
        ),
    )
    labels: tuple[str, ...] = ()  # class names; empty: those of the source, or numbers only
    opset: int = field(default=DEFAULT_OPSET, metadata=option("--opset", help="ONNX operator set.", range=(18, 25)))
    null_class: bool | None = field(
        default=None,
        metadata=option(
            "--null-class/--no-null-class",
            help="Whether the last label means 'no class'. [default: the run's settings, else yes]",
        ),
    )
    guided_channels: int | None = field(
        default=None,
        metadata=option(
            "--guided-channels",
            help="Guidance acts on the first N channels. [default: 3; diffusers: all]",
            range=SIZE,
        ),
    )
    prediction: str | None = field(
        default=None,
        metadata=option(
            "--prediction",
            help="What the network predicts; SiT: flow-to-data, REPA: flow, MaskDiT: edm. [default: the source's]",
            choices=PREDICTIONS,
        ),
    )
    betas: str | None = field(  # see `read_betas`
        default=None,
        metadata=option(
            "--betas",
            help="Of training: linear, scaled_linear, cosine, a JSON list. [default: the source's]",
            metavar="KIND[:START,END]|FILE",
        ),
    )
    zero_terminal_snr: bool = field(
        default=False,
        metadata=option("--zero-terminal-snr", help="The betas were rescaled to end in pure noise."),
    )
    weights: str | None = field(
        default=None,
        metadata=option("--weights", help="State dict in the file to take. [default: the EMA, if any]", metavar="NAME"),
    )
    model: str | None = field(
        default=None,
        metadata=option(
            "--model", help="Your own network, see docs/custom-models.md. Runs that code.", metavar="MODULE:FACTORY"
        ),
    )
    lora: tuple[str, ...] = field(
        default=(),
        metadata=option(
            "--lora",
            help="LoRA to add to the weights: a file, or an adapter's folder; repeat it.",
            metavar="FILE[:WEIGHT]",
        ),
    )
    vae: Path | None = field(default=None, metadata=VAE)
    pixels: bool | None = field(
        default=None,
        metadata=option(
            "--pixels/--latents",
            help="What a model without --vae makes. [default: what is known; 1 channel: pixels]",
        ),
    )
    vae_precision: str = field(default="fp32", metadata=VAE_PRECISION)
    encoder: bool = field(
        default=False,
        metadata=option("--encoder", help="With what `run --image` needs: the VAE's encoder, too."),
    )
    text: bool = field(
        default=True,
        metadata=option(
            "--text/--no-text",
            help="Models that take prompts: with the pipeline's text encoder, or for recorded prompts.",
        ),
    )
    program: tuple[Path, ...] = field(
        default=(),
        metadata=option(
            "--program",
            help="Ready program, of `tune` for one, to put into the bundle: the first is its default. Repeat it.",
        ),
    )
    golden_steps: int | None = field(
        default=None,
        metadata=option(
            "--golden-steps",
            help="Steps of the trajectories that PyTorch records for `verify`. "
            "[default: 10; of large models 4; of MeanFlow 2]",
            range=GOLDEN_STEPS,
        ),
    )
    force: bool = field(default=False, metadata=FORCE)

    def asked(self) -> dict[str, Any]:
        """What `read_source` is asked."""
        return {name.name: getattr(self, name.name) for name in fields(Asked) if name.name != "factor"}


@dataclass(frozen=True)
class ExportRequest:
    """`export`: a checkpoint, where its bundle goes, and what is done with it besides."""

    ckpt: Path = field(metadata=option("--ckpt", help=f"Checkpoint: {listed()}."))
    out: Path | None = field(
        default=None,
        metadata=option("--out", help="Bundle folder to write. [default: the checkpoint's name, or RUN-STEP]"),
    )
    target: str | None = field(
        default=None,
        metadata=option("--target", help="Also build the bundle's plans, as `build` does by default.", choices=TARGETS),
    )
    classes: Path | None = field(
        default=None,
        metadata=option("--classes", help='Class names: a text file, one a line, or JSON: a list, or {"0": name}.'),
    )
    precision: str | None = field(
        default=None,
        metadata=option("--precision", help="Write 16-bit graphs. [default: fp32]", choices=("fp16", "bf16")),
    )
    options: ExportOptions = ExportOptions()


@dataclass(frozen=True)
class DecoderRequest:
    """`add-decoder`: a bundle of a latent model, and the VAE whose decoder it gets."""

    engine: Path = field(metadata=option("--engine", help="Bundle of a latent model, in any precision."))
    vae: Path = field(metadata=VAE)
    out: Path = field(metadata=BUNDLE_OUT)
    vae_precision: str = field(default="fp32", metadata=VAE_PRECISION)
    force: bool = field(default=False, metadata=FORCE)
