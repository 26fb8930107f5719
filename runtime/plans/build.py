"""`build_bundle`: a bundle's graphs into TensorRT or TensorRT-RTX plans, with their record.

On the device this needs the library itself, numpy and pydantic: no torch, no onnx, no cuda-python.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ditedge import __version__

from ..bundle.manifest import FileInfo
from ..bundle.open import Bundle
from ..bundle.signatures import SUFFIX
from ..errors import EngineError, RequestError
from ..files import sha256_of_file, write_text
from ..replacing import folder_written_atomically
from .graph import BuildLog, BuildOptions, Progress, build_graph
from .layers import LAYERS_NAME, PlanLayers, write_layers
from .library import Gpu, Library, first_gpu, load_library
from .profile import Sizes, graph_profile, sizes_of
from .record import PLAN_NAMES, RECORD_NAME, BuildRecord, PlanInfo


def build_bundle(
    bundle: Bundle,
    options: BuildOptions,
    progress: Progress = lambda *_: None,
    cancel: threading.Event | None = None,
) -> BuildRecord:
    """Builds every graph of `bundle` into `engines/<target>/` of its folder, with build.json and layers.json.

    cancel: when set, the build stops at the library's next step and nothing is written. Open the bundle with its hashes
    checked. Raises EngineError (library, GPU, graph), RequestError (options, folder), Cancelled.
    """
    prepared = prepare_build(bundle, options)
    library, sizes, out = prepared.library, prepared.sizes, engine_folder(bundle, options.target)
    try:
        out.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise RequestError(f"cannot write {out.parent}: {error.strerror}") from None
    graphs: dict[str, Path] = {
        str(name): bundle.graph_file(name) for name in PLAN_NAMES if name in bundle.manifest.graphs
    }
    weights = {name: bundle.manifest.graph_bytes(name) for name in graphs}
    total, done = sum(weights.values()), 0
    cancel = cancel or threading.Event()
    flags: set[str] = set()
    plans: dict[str, PlanInfo] = {}
    layers: dict[str, PlanLayers] = {}
    with folder_written_atomically(out, lambda path: _check_may_replace(path, options.force)) as folder:
        for name, path in graphs.items():

            def advance(fraction: float, phase: str, done: int = done, name: str = name) -> None:
                progress((done + fraction * weights[name]) / total, f"{name}: {phase}")

            profile = graph_profile(bundle.manifest, name, sizes)
            start = time.monotonic()
            log = BuildLog()
            plan = folder / PLAN_NAMES[name]
            work = partial(build_graph, library, path, profile, options, log, advance, cancel, plan)
            flags |= _in_thread(work, cancel)
            seconds = time.monotonic() - start
            info = FileInfo(sha256=sha256_of_file(plan), bytes=plan.stat().st_size)
            layers[name] = log.plan_layers()
            plans[name] = PlanInfo(
                file=PLAN_NAMES[name],  # type: ignore[arg-type]  # pydantic checks it
                plan=info,
                source_sha256=bundle.manifest.files[bundle.manifest.graphs[name].file].sha256,  # type: ignore[index]
                profile=profile,
                seconds=round(seconds, 3),
            )
            done += weights[name]
        record = _record(bundle, library, prepared.gpu, options, sizes, flags, plans)
        write_layers(folder / LAYERS_NAME, layers)
        write_text(folder / RECORD_NAME, record.model_dump_json(indent=1) + "\n")
    return record


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
            "cannot build: quantise the float bundle that it was made from with `--runtime tensorrt`"
        )


def engine_folder(bundle: Bundle, target: str) -> Path:
    return bundle.folder / "engines" / target


def _check_may_replace(out: Path, force: bool) -> None:
    """Raises RequestError for what is no folder of plans and nothing else, or without `force`."""
    known = {*PLAN_NAMES.values(), RECORD_NAME, RECORD_NAME + SUFFIX, LAYERS_NAME}
    foreign = None if not out.is_dir() else next((name for name in sorted(os.listdir(out)) if name not in known), None)
    if out.is_symlink() or not out.is_dir() or foreign is not None:
        raise RequestError(f"{out} is not a folder of plans alone ({foreign or 'no folder'}): move it away first")
    if not force:
        raise RequestError(f"{out} already exists, use --force to replace it")


@dataclass(frozen=True)
class Prepared:
    """What a build works with, once nothing that can be known beforehand speaks against it."""

    library: Library
    gpu: Gpu | None
    sizes: Sizes


def prepare_build(bundle: Bundle, options: BuildOptions) -> Prepared:
    """Finds the library and the GPU, and refuses what cannot work before any work. Raises as `build_bundle`."""
    check_target(options.target)
    check_form(bundle)
    library, gpu = load_library(options.target), first_gpu()
    check_options(library, gpu, options)
    out = engine_folder(bundle, options.target)
    if out.exists():
        _check_may_replace(out, options.force)
    return Prepared(library, gpu, sizes_of(bundle, options.max_batch, options.max_rows))


def check_options(library: Library, gpu: Gpu | None, options: BuildOptions) -> None:
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


def _record(
    bundle: Bundle,
    library: Library,
    gpu: Gpu | None,
    options: BuildOptions,
    sizes: Sizes,
    flags: set[str],
    plans: dict[str, PlanInfo],
) -> BuildRecord:
    on_gpu = gpu is not None and not library.is_rtx
    own = [gpu.capability] if gpu is not None and on_gpu and not options.hardware_compatible else []
    return BuildRecord(
        format="ditedge-engines",
        version=1,
        made_by=f"ditedge {__version__}",
        library=options.target,  # type: ignore[arg-type]  # pydantic checks it
        library_version=library.version,
        gpu=gpu.name if gpu is not None and on_gpu else None,
        compute_capabilities=own or list(options.archs),
        flags=sorted(flags | {"AMPERE_PLUS"} if options.hardware_compatible else flags),
        max_batch=sizes.batch,
        max_rows=sizes.rows,
        weight_streaming_mb=options.weight_streaming,
        bundle_sha256=bundle.sha256,
        plans=plans,  # type: ignore[arg-type]
    )


def _in_thread(work: Callable[[], Any], cancel: threading.Event) -> Any:
    """Runs `work` in a thread, so that Ctrl-C is seen by Python while the library computes: then `cancel` is set.

    A KeyboardInterrupt inside one of the library's callbacks would be lost there.
    """
    result: list[Any] = []
    failure: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:  # handed to the caller
            failure.append(error)

        finally:
            done.set()

    thread = threading.Thread(target=run, name="ditedge-build")
    thread.start()
    while not done.is_set():
        try:
            done.wait()
        except KeyboardInterrupt:
            cancel.set()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]
