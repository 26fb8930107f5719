"""What `ditedge build` can be told: how plans are built, and what of."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..options import BATCH, DEFAULT_BATCH, MEGABYTES, TRUSTED_KEYS, option

TARGETS = ("tensorrt", "tensorrt-rtx")  # the libraries that plans are built for
ARCH = "sm86"  # the GPU that lint builds for, unless told otherwise


@dataclass(frozen=True)
class BuildOptions:
    """What a user may decide about the plans."""

    target: str = field(
        metadata=option(
            "--target",
            help="tensorrt: on the device. tensorrt-rtx: anywhere, no GPU needed.",
            choices=(*TARGETS, "onnxruntime"),  # refused with the reason
        )
    )
    archs: tuple[str, ...] = field(
        default=(),
        metadata=option(
            "--arch", help="GPUs to build for ahead of time. [default: any; RTX only]", metavar="sm86,...", commas=True
        ),
    )
    max_batch: int = field(default=DEFAULT_BATCH, metadata=option("--max-batch", help="Images at a time.", range=BATCH))
    max_rows: int | None = field(  # conditioning rows of one step
        default=None,
        metadata=option("--max-rows", help="Distinct classes of one batch. [default: 2 x max-batch]", range=(1, 2048)),
    )
    sizes: tuple[str, ...] = field(
        default=(),
        metadata=option(
            "--size",
            help="Of pictures, where the model takes prompts: a profile for each. [default: that of training]",
            metavar="WIDTHxHEIGHT",
        ),
    )
    one_image: bool = field(
        default=False,
        metadata=option("--one-image", help="Tune the step for a single image as well: a second profile."),
    )
    workspace: int | None = field(
        default=None,
        metadata=option(
            "--workspace", help="MB of GPU memory a kernel may use. [default: all]", range=(1, MEGABYTES[1])
        ),
    )
    timing_cache: Path | None = field(
        default=None,
        metadata=option("--timing-cache", help="Kernel timings: read if there, written after. Repeated builds: quick."),
    )
    version_compatible: bool = field(
        default=False,
        metadata=option("--version-compatible", help="Later TensorRT versions of the same major run the plans."),
    )
    hardware_compatible: bool = field(
        default=False,
        metadata=option("--hardware-compatible", help="Any GPU from Ampere on runs the plans; slower."),
    )
    refit: bool = field(default=False, metadata=option("--refit", help="Weights can be replaced in the plans."))
    strip_weights: bool = field(
        default=False,
        metadata=option("--strip-weights", help="Leave the weights out: they are refitted before the first run."),
    )
    weight_streaming: int | None = field(  # the others are streamed; None: all stay
        default=None,
        metadata=option("--weight-streaming", help="Weights kept on the GPU.", range=MEGABYTES, metavar="MB"),
    )
    dla: int | None = field(
        default=None,
        metadata=option("--dla", help="Use this DLA core of a Jetson, the GPU for the rest.", range=(0, 15)),
    )
    optimization_level: int | None = field(  # None: the library's
        default=None,
        metadata=option("--optimization-level", help="0 builds quickly, 5 searches longest.", range=(0, 5)),
    )
    force: bool = field(default=False, metadata=option("--force", help="Replace existing plans."))

    def trtexec(self) -> list[str]:
        """What says the same to NVIDIA's own tool. TensorRT 11.x and RTX's tool do not know --stronglyTyped."""
        archs = ",".join(arch.removeprefix("sm") for arch in self.archs)
        words = {
            "--stronglyTyped": self.target == "tensorrt",
            f"--computeCapabilities={archs}": bool(archs),
            "--profilingVerbosity=detailed": True,
            f"--memPoolSize=workspace:{self.workspace}M": self.workspace is not None,
            f"--timingCacheFile={self.timing_cache}": self.timing_cache is not None,
            "--versionCompatible": self.version_compatible,
            "--hardwareCompatibilityLevel=ampere+": self.hardware_compatible,
            "--stripWeights": self.strip_weights,
            "--refit": self.refit and not self.strip_weights,
            "--allowWeightStreaming": self.weight_streaming is not None,
            f"--useDLACore={self.dla}": self.dla is not None,
            "--allowGPUFallback": self.dla is not None,
            f"--builderOptimizationLevel={self.optimization_level}": self.optimization_level is not None,
        }
        return [word for word, given in words.items() if given]


@dataclass(frozen=True)
class BuildRequest:
    """`build`: a bundle, and how its plans are made."""

    engine: Path = field(metadata=option("--engine", help="Bundle folder, or a graph inside one."))
    options: BuildOptions
    trusted_keys: tuple[Path, ...] = field(default=(), metadata=TRUSTED_KEYS)
    print_trtexec: bool = field(
        default=False,
        metadata=option("--print-trtexec", help="Print the same build as trtexec commands, and build nothing."),
    )
