"""What `ditedge run` can be told, each option once: name, help, range and default beside the field."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..loop.engine import EngineOptions
from ..options import BATCH, BUNDLE_FILE, DEFAULT_BATCH, IMAGES, TRUSTED_KEYS, option
from ..samplers.settings import SamplerSettings


@dataclass(frozen=True)
class RunOptions:
    """What is understood without the bundle: the job has it as it was given."""

    batch: int = field(default=DEFAULT_BATCH, metadata=option("--batch", help="Images at a time.", range=BATCH))
    check_finite: bool = field(
        default=False,
        metadata=option("--check-finite", help="Look for overflows after every step, and say where they begin."),
    )
    preview_every: int | None = field(
        default=None,
        metadata=option("--preview-every", help="Also write the x0 estimate of every K-th step.", range=(1, None)),
    )


@dataclass(frozen=True)
class PromptOptions:
    """What a model that takes prompts is told; nothing of it says anything of a model of classes."""

    text: tuple[str, ...] = field(
        default=(), metadata=option("--prompt", help="What the picture is of, in words; repeat it, one per image.")
    )
    list: Path | None = field(
        default=None, metadata=option("--prompts", help="A text file with a prompt a line, one per image.")
    )
    recorded: tuple[Path, ...] = field(
        default=(), metadata=option("--prompt-file", help="A prompt that `encode` recorded; repeat it, one per image.")
    )
    negative: tuple[str, ...] = field(
        default=(), metadata=option("--negative", help="Guide away from these words; repeat it, one per image.")
    )
    negative_recorded: tuple[Path, ...] = field(
        default=(), metadata=option("--negative-file", help="The same, as a prompt that `encode` recorded.")
    )
    size: str | None = field(
        default=None,
        metadata=option("--size", help="Of the pictures, in pixels. [default: the model's]", metavar="WIDTHxHEIGHT"),
    )


@dataclass(frozen=True)
class ImageOptions:
    """The picture that all images of a run begin from; the sampler's `strength` says how far they leave it."""

    image: Path | None = field(
        default=None,
        metadata=option(
            "--image", help="Begin from this picture, scaled and cut to the model's size (see --strength)."
        ),
    )
    mask: Path | None = field(
        default=None,
        metadata=option("--mask", help="With --image: paint over what is white in this picture, and keep the rest."),
    )


@dataclass(frozen=True)
class EncodeRequest:
    """`encode`: a prompt for `run --prompt-file`, made where there is room for the text encoder."""

    text: str = field(metadata=option("text"))
    engine: Path = field(metadata=BUNDLE_FILE)
    out: Path = field(metadata=option("-o", "--out", help="File to write (.safetensors)."))
    negative: bool = field(
        default=False,
        metadata=option("--negative", help="The words are to be guided away from: some models read them otherwise."),
    )
    options: EngineOptions = EngineOptions()
    trusted_keys: tuple[Path, ...] = field(default=(), metadata=TRUSTED_KEYS)


@dataclass(frozen=True)
class RunRequest:
    """A run as it was asked for; None means the bundle's default. `job_of` makes a Job of it."""

    engine: Path = field(metadata=BUNDLE_FILE)
    classes: tuple[str, ...] = field(
        default=(), metadata=option("--class", help="Class name or number; repeat it, one per image.")
    )
    away_from: tuple[str, ...] = field(
        default=(), metadata=option("--not", help="Guide away from this class instead of from no class.")
    )
    also: tuple[str, ...] = field(
        default=(),
        metadata=option(
            "--also",
            help="What all images are also of: a class or words, and a weight. Repeat it.",
            metavar="TEXT[:WEIGHT]",
        ),
    )
    prompts: PromptOptions = PromptOptions()
    begin: ImageOptions = ImageOptions()
    count: int | None = field(
        default=None,
        metadata=option("--count", help="Images; classes or prompts are cycled. [default: one of each]", range=IMAGES),
    )
    seed: int = field(default=0, metadata=option("--seed", help="Seed of the first image; the next has seed + 1."))
    settings: SamplerSettings = SamplerSettings()
    program: str | None = field(
        default=None,
        metadata=option("--program", help="A ready program of the bundle, or a program file (see `schedule`)."),
    )
    force_program: bool = field(
        default=False,
        metadata=option("--force-program", help="Run a program file that was made for another kind of model."),
    )
    guidance: float | None = field(
        default=None,
        metadata=option("--guidance", help="Classifier-free guidance scale; 1 is none. [default: the bundle's]"),
    )
    guidance_interval: str | None = field(
        default=None,
        metadata=option(
            "--guidance-interval", help="Guide only while LO < sigma <= HI: LO,HI (or timesteps: tLO,tHI)."
        ),
    )
    how: RunOptions = RunOptions()
    options: EngineOptions = EngineOptions()
    trusted_keys: tuple[Path, ...] = field(default=(), metadata=TRUSTED_KEYS)
    noise: Path | None = field(
        default=None,
        metadata=option("--noise", help=".safetensors with z [B,C,H,W] and noise [N,B,C,H,W], instead of seeds."),
    )
    save_latents: Path | None = field(
        default=None,
        metadata=option("--save-latents", help="Also write the final latents (.safetensors or .npz)."),
    )
    save_trajectory: Path | None = field(
        default=None,
        metadata=option("--save-trajectory", help="Also write the latents after each step, x [N,B,C,H,W]."),
    )
    save_program: Path | None = field(
        default=None,
        metadata=option("--save-program", help="Also write the sampler as a program file, for --program and C++."),
    )
    like: Path | None = field(
        default=None,
        metadata=option("--like", help="Make a picture again from its own file: its classes, seeds and settings."),
    )
    out: Path | None = field(
        default=None,
        metadata=option(
            "-o",
            "--out",
            help=".png, .jpg or .webp (a grid for several images), a folder of PNGs, .npz, or - (a PNG to a pipe).",
        ),
    )
