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
from ..errors import RequestError
from ..files import sha256_of_file, write_text
from ..replacing import folder_written_atomically
from ..report import Report, silent
from .checks import check_form, check_options, check_target, latents_to_build
from .graph import PARTS, BuildLog, build_graph
from .layers import LAYERS_NAME, PlanLayers, write_layers
from .library import GpuInfo, Library, first_gpu, load_library
from .options import BuildOptions
from .profile import Sizes, graph_profiles, one_image_shapes, sizes_of
from .record import PLAN_NAMES, RECORD_NAME, BuildRecord, PlanInfo, exact_ranges

PERCENT = 100


def build_bundle(
    bundle: Bundle, options: BuildOptions, report: Report = silent, cancel: threading.Event | None = None
) -> BuildRecord:
    """Builds every graph of `bundle` into `engines/<target>/` of its folder, with build.json and layers.json.

    cancel: when set, the build stops at the library's next step and nothing is written. Open the bundle with its hashes
    checked. Raises EngineError (library, GPU, graph), RequestError (options, folder), Cancelled.
    """
    prepared, out = prepare_build(bundle, options), engine_folder(bundle, options.target)
    try:
        out.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise RequestError(f"cannot write {out.parent}: {error.strerror}") from None
    weights = {str(name): bundle.manifest.graph_bytes(name) for name in PLAN_NAMES if name in bundle.manifest.graphs}
    whole, done = sum(weights.values()), 0
    cancel = cancel or threading.Event()
    flags: set[str] = set()
    plans: dict[str, PlanInfo] = {}
    layers: dict[str, PlanLayers] = {}
    with folder_written_atomically(out, lambda path: _check_may_replace(path, options.force)) as folder:
        for name, share in weights.items():

            def advance(what: str, done: int = 0, total: int = 0, before: int = done, name: str = name) -> None:
                shown = (before + done / PARTS * weights[name]) / whole
                report(f"building {name}: {what}", round(PERCENT * shown), PERCENT)

            built = _build_plan(bundle, name, prepared, options, folder, advance, cancel)
            plans[name], layers[name] = built.info, built.layers
            flags |= built.flags
            done += share
        record = _record(bundle, prepared.library, prepared.gpu, options, prepared.sizes, flags, plans)
        write_layers(folder / LAYERS_NAME, layers)
        write_text(folder / RECORD_NAME, record.model_dump_json(indent=1) + "\n")
    return record


@dataclass(frozen=True)
class _Built:
    info: PlanInfo
    layers: PlanLayers
    flags: set[str]


def _build_plan(
    bundle: Bundle,
    name: str,
    prepared: Prepared,
    options: BuildOptions,
    folder: Path,
    report: Report,
    cancel: threading.Event,
) -> _Built:
    """One graph's plan in `folder`."""
    profile, *further = graph_profiles(bundle.manifest, name, prepared.sizes)
    one_image = one_image_shapes(bundle, prepared.sizes) if options.one_image and name == "step" else {}
    start, log, plan = time.monotonic(), BuildLog(), folder / PLAN_NAMES[name]
    path = bundle.graph_file(name)
    flags = _in_thread(
        partial(
            build_graph,
            prepared.library,
            path,
            [profile, exact_ranges(one_image), *further],
            options,
            log,
            report,
            cancel,
            plan,
        ),
        cancel,
    )
    seconds = time.monotonic() - start
    info = PlanInfo(
        file=PLAN_NAMES[name],
        plan=FileInfo(sha256=sha256_of_file(plan), bytes=plan.stat().st_size),
        source_sha256=bundle.manifest.files[bundle.manifest.graphs[name].file].sha256,  # type: ignore[index]
        profile=profile,
        seconds=round(seconds, 3),
        one_image=one_image,
        further=further,
    )
    return _Built(info, log.plan_layers(), flags)


def built_lines(bundle: Bundle, record: BuildRecord) -> list[str]:
    """What was built, and the command that one would give next, for people."""
    folder = engine_folder(bundle, record.library)
    lines = [
        f"wrote {folder / plan.file}: {plan.plan.bytes / 1e6:.1f} MB in {plan.seconds:.1f} s"
        for plan in record.plans.values()
    ]
    where = record.gpu or ", ".join(record.compute_capabilities) or "any GPU"
    lines.append(f"by {record.library} {record.library_version} for {where}")
    following = "run --engine" if not bundle.trusted else "sign --key PRIVATE.pem --engine"  # unsigned ones are refused
    return [*lines, f"next: ditedge {following} {folder / record.plans['step'].file}"]


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
    gpu: GpuInfo | None
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
    latents = latents_to_build(bundle, options)
    return Prepared(library, gpu, sizes_of(bundle, options.max_batch, options.max_rows, latents))


def _record(
    bundle: Bundle,
    library: Library,
    gpu: GpuInfo | None,
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
