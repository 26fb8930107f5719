"""What cannot be built, said before any work."""

from __future__ import annotations

from ..bundle.open import Bundle
from ..bundle.sizes import latent_of, read_size
from ..errors import EngineError, RequestError
from .library import GpuInfo, Library
from .options import BuildOptions


def check_target(target: str) -> None:
    """Raises RequestError for the target that needs no build.

    A graph that ONNX Runtime optimised and saved loads 0.03 s sooner (of 0.12 s for DiT-S/2, 0.05 s for the demo), and
    holds only on the processor it was optimised for.
    """
    if target == "onnxruntime":
        raise RequestError(
            "ONNX Runtime runs the bundle's own graphs and optimises them for the machine while it loads them: "
            "there is nothing to build; give the bundle itself to `ditedge run`"
        )


def check_form(bundle: Bundle) -> None:
    """Raises RequestError for a bundle whose graphs hold operators that only ONNX Runtime has."""
    info = bundle.manifest.quantization
    if info is not None and info.form == "onnxruntime" and info.activations != "static":  # static is plain Q/DQ
        what = "per-token activations" if info.activations == "per-token" else "weights in its own operator"
        raise RequestError(
            f"{bundle.folder} is {info.precision} in the form of ONNX Runtime ({what}), which TensorRT "
            "cannot build: quantise the float bundle that it was made from with `--form tensorrt`"
        )


def latents_to_build(bundle: Bundle, options: BuildOptions) -> list[tuple[int, int]]:
    """H, W of the latents of each --size; empty: none was given. Raises RequestError for one that cannot be."""
    if options.sizes and bundle.manifest.text is None:
        raise RequestError(f"{bundle.folder} takes classes, and its pictures have one size: leave --size out")
    return [latent_of(bundle, read_size(size))[1:] for size in dict.fromkeys(options.sizes)]


def check_options(library: Library, gpu: GpuInfo | None, options: BuildOptions) -> None:
    """Raises one EngineError or RequestError for options that this library, on this machine, cannot follow."""
    if options.max_rows is not None and options.max_rows < 1 or options.max_batch < 1:
        raise RequestError("--max-batch and --max-rows must be at least 1")
    if library.is_rtx:
        refused = {
            "--timing-cache": options.timing_cache and "it times no kernels when it builds",
            "--hardware-compatible": options.hardware_compatible and "its plans are portable unless --arch is given",
            "--version-compatible": options.version_compatible and "it has no lean runtime to run such plans",
            "--dla": options.dla is not None and "it runs on GPUs only",
        }
        for flag, reason in refused.items():
            if reason:
                raise RequestError(f"{flag} is not for {library.name}: {reason}; leave it out")
        if gpu is None:
            for flag, given in (("--refit", options.refit), ("--strip-weights", options.strip_weights)):
                if given:
                    raise EngineError(f"{flag} compiles on the GPU, and there is none here: build on the device")
        for arch in options.archs:
            if not library.has("ComputeCapability", arch.upper()):
                known = [name.lower() for name in dir(library.module.ComputeCapability) if name.startswith("SM")]
                raise RequestError(
                    f"--arch {arch}: {library.name} builds for {', '.join(sorted(known, key=lambda n: int(n[2:])))}"
                )
        return
    if options.archs:
        raise RequestError(
            f"--arch is not for {library.name}, which builds for the GPU it runs on: leave it out and build on the "
            "device, or use --target tensorrt-rtx"
        )
    if gpu is None:
        raise EngineError(
            f"{library.name} times kernels on the GPU to build, and there is no GPU or NVIDIA driver here: "
            "build on the device, or ahead of time with --target tensorrt-rtx"
        )
