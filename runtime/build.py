"""`build_bundle`: a bundle's graphs into TensorRT or TensorRT-RTX plans, with their record.

On the device this needs the library itself, numpy and pydantic: no torch, no onnx, no cuda-python. It makes plain
TensorRT calls, not polygraphy's: polygraphy chooses between the two libraries by an environment variable when it is
first imported, so one process cannot hold both, and it logs refusals in paragraphs of its own.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ditedge import __version__

from .build_errors import parse_refusal, refusal
from .build_profile import Sizes, graph_profile, sizes_of
from .build_record import PLAN_NAMES, RECORD_NAME, BuildRecord, PlanInfo, ShapeRange
from .bundle import Bundle
from .errors import Cancelled, EngineError, RequestError
from .files import folder_written_atomically, sha256_of_file, write_text, written_atomically
from .layers import LAYERS_NAME, PlanLayers, layers_from_log, write_layers
from .manifest import FileInfo
from .tensorrt_library import Gpu, Library, first_gpu, load_library, make_logger

Progress = Callable[[float, str], None]  # told (fraction done 0..1, what is being done)


@dataclass(frozen=True)
class BuildOptions:
    """What a user may decide about the plans."""

    target: str = "tensorrt"  # or "tensorrt-rtx"
    archs: tuple[str, ...] = ()  # "sm86", ...: TensorRT-RTX ahead of time; empty: any GPU it knows, or this one
    max_batch: int = 8
    max_rows: int | None = None  # conditioning rows of one step; None: 2 x max_batch
    workspace: int | None = None  # MB of device memory a kernel may use; None: all of it
    timing_cache: Path | None = None  # read if it exists, written after the build
    version_compatible: bool = False  # plans that later versions of the same major run
    hardware_compatible: bool = False  # plans for every GPU from Ampere on
    refit: bool = False  # weights can be replaced in the built plan
    strip_weights: bool = False  # the plan has no weights; they are refitted before it runs
    weight_streaming: int | None = None  # MB of weights that stay on the device, the others are streamed; None: all
    dla: int | None = None  # DLA core of a Jetson; None: GPU only
    optimization_level: int | None = None  # 0 (quick build) .. 5 (fast plan); None: the library's
    force: bool = False  # replace existing plans


@dataclass
class BuildLog:
    """What the library said during one build."""

    errors: list[str] = field(default_factory=list)
    layers: str = ""  # its own list of what it built
    memory: dict[str, int] = field(default_factory=dict)  # "Activation", "Weights" -> bytes

    def __call__(self, severity: str, message: str) -> None:
        if severity == "ERROR":
            self.errors.append(message)
        elif "LayerType: " in message and "Name: " in message and len(message) > len(self.layers):
            self.layers = message
        elif found := re.match(r"Total (Activation|Weights) Memory: (\d+) bytes", message):
            self.memory[found.group(1)] = int(found.group(2))

    def plan_layers(self) -> PlanLayers:
        listed = tuple(layers_from_log(self.layers))
        return PlanLayers(listed, self.memory.get("Activation", 0), self.memory.get("Weights", 0))


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
    weights = {name: _stored_bytes(bundle, name) for name in graphs}
    total, done = sum(weights.values()), 0
    cancel = cancel or threading.Event()
    flags: set[str] = set()
    plans: dict[str, PlanInfo] = {}
    layers: dict[str, PlanLayers] = {}
    with folder_written_atomically(out) as folder:
        for name, path in graphs.items():

            def advance(fraction: float, phase: str, done: int = done, name: str = name) -> None:
                progress((done + fraction * weights[name]) / total, f"{name}: {phase}")

            profile = graph_profile(bundle.manifest, name, sizes)
            start = time.monotonic()
            log = BuildLog()
            plan = folder / PLAN_NAMES[name]
            work = partial(_build_graph, library, path, profile, options, log, advance, cancel, plan)
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
    """Raises RequestError for the target that needs no build."""
    if target == "onnxruntime":
        raise RequestError(
            "ONNX Runtime runs the bundle's own graphs and optimises them for the machine while it loads them: "
            "there is nothing to build; give the bundle itself to `ditedge run`"
        )


def engine_folder(bundle: Bundle, target: str) -> Path:
    return bundle.folder / "engines" / target


@dataclass(frozen=True)
class Prepared:
    """What a build works with, once nothing that can be known beforehand speaks against it."""

    library: Library
    gpu: Gpu | None
    sizes: Sizes


def prepare_build(bundle: Bundle, options: BuildOptions) -> Prepared:
    """Finds the library and the GPU, and refuses what cannot work before any work. Raises as `build_bundle`."""
    check_target(options.target)
    library, gpu = load_library(options.target), first_gpu()
    check_options(library, gpu, options)
    out = engine_folder(bundle, options.target)
    if out.exists() and not options.force:
        raise RequestError(f"{out} already exists, use --force to replace it")
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


def _build_graph(
    library: Library,
    path: Path,
    profile: dict[str, ShapeRange],
    options: BuildOptions,
    log: BuildLog,
    progress: Progress,
    cancel: threading.Event,
    plan: Path,
) -> set[str]:
    """Builds one ONNX file into `plan`; returns the names of the flags that were set."""
    trt = library.module
    progress(0.0, "reading")
    builder = trt.Builder(make_logger(library, log))
    network, parser = parse_graph(library, builder, path, log.errors)
    config = builder.create_builder_config()
    flags = _configure(library, builder, config, options, log)
    shapes = builder.create_optimization_profile()
    for name, size in profile.items():
        shapes.set_shape(name, tuple(size.min), tuple(size.opt), tuple(size.max))
    if profile:
        config.add_optimization_profile(shapes)
    config.progress_monitor = monitor = _monitor(library, progress, cancel)
    log.errors.clear()  # without a driver, creating objects already complains
    serialized = builder.build_serialized_network(network, config)
    if cancel.is_set():
        raise Cancelled(f"stopped while building {path.name}")
    if serialized is None:
        raise EngineError(refusal(path.name, library, log.errors, options.archs))
    with plan.open("wb") as file:
        file.write(serialized)
    if options.timing_cache is not None:
        with written_atomically(options.timing_cache) as temporary:
            temporary.write_bytes(config.get_timing_cache().serialize())
    del parser, monitor  # the network's weights are the parser's memory: both must outlive the build
    return flags


def parse_graph(library: Library, builder: Any, path: Path, errors: list[str]) -> tuple[Any, Any]:
    """ONNX file -> (network, parser), strongly typed. Keep the parser while the network is used.

    Raises EngineError naming the first node that the library does not know.
    """
    trt = library.module
    flags = 0
    if library.major == 10 and not library.is_rtx:  # typed networks are an option of 10.x, and all there is later
        flags = 1 << int(library.member("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"))
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, builder.logger)
    if not parser.parse_from_file(str(path)):
        if not parser.num_errors:
            raise EngineError(refusal(path.name, library, errors))
        error = parser.get_error(0)
        operator = error.node_operator() if hasattr(error, "node_operator") else ""
        node = error.node_name() if hasattr(error, "node_name") else ""
        raise EngineError(parse_refusal(path.name, library, operator, node, error.desc()))
    return network, parser


def _configure(library: Library, builder: Any, config: Any, options: BuildOptions, log: BuildLog) -> set[str]:
    """Sets every option on `config`, by name; returns the names of the builder flags."""
    flags = {
        "VERSION_COMPATIBLE": options.version_compatible,
        "REFIT": options.refit or options.strip_weights,
        "STRIP_PLAN": options.strip_weights,
        "WEIGHT_STREAMING": options.weight_streaming is not None,
        "GPU_FALLBACK": options.dla is not None,
    }
    chosen = {name for name, wanted in flags.items() if wanted}
    for name in sorted(chosen):
        config.set_flag(library.member("BuilderFlag", name))
    # Layers are listed (layers.json, `inspect dit.plan`) only in detail.
    config.profiling_verbosity = library.member("ProfilingVerbosity", "DETAILED")
    if options.workspace is not None:
        config.set_memory_pool_limit(library.member("MemoryPoolType", "WORKSPACE"), options.workspace << 20)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.hardware_compatible:
        config.hardware_compatibility_level = library.member("HardwareCompatibilityLevel", "AMPERE_PLUS")
    if options.archs:
        config.num_compute_capabilities = len(options.archs)
        for i, arch in enumerate(options.archs):
            config.set_compute_capability(library.member("ComputeCapability", arch.upper()), i)
    if options.dla is not None:
        if options.dla >= builder.num_DLA_cores:
            raise RequestError(f"--dla {options.dla}: this device has {builder.num_DLA_cores} DLA core(s)")
        config.default_device_type = library.member("DeviceType", "DLA")
        config.DLA_core = options.dla
    if options.timing_cache is not None:
        _load_timing_cache(library, config, options.timing_cache)
    return chosen


def _load_timing_cache(library: Library, config: Any, path: Path) -> None:
    """Gives the kernel timings of an earlier build, if any. One of another GPU or version is ignored by TensorRT."""
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from None
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, False):
        raise RequestError(f"{path} is no timing cache of {library.name} on this GPU: delete it, or name another file")


def _monitor(library: Library, progress: Progress, cancel: threading.Event) -> Any:
    """TensorRT's progress: nested phases of known step counts, as one fraction. It stops when `cancel` is set."""

    class Monitor(library.module.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self._steps: dict[str, int] = {}
            self._parent: dict[str, str | None] = {}
            self._done: dict[str, float] = {}
            self._lock = threading.Lock()  # phases may be told from several threads

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            with self._lock:
                self._steps[name], self._parent[name], self._done[name] = max(steps, 1), parent, 0.0
                progress(self._fraction(name), name)

        def step_complete(self, name: str, step: int) -> bool:
            with self._lock:
                self._done[name] = max(self._done.get(name, 0.0), step + 1.0)
                progress(self._fraction(name), name)
            return not cancel.is_set()

        def phase_finish(self, name: str) -> None:
            with self._lock:
                self._done[name] = float(self._steps.get(name, 1))

        def _fraction(self, name: str) -> float:
            share = 0.0
            current: str | None = name
            while current is not None and current in self._steps:
                share = min(1.0, (self._done[current] + share) / self._steps[current])
                current = self._parent[current]
            return share

    return Monitor()


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


def _stored_bytes(bundle: Bundle, graph: str) -> int:
    file = bundle.manifest.graphs[graph].file  # type: ignore[index]
    return sum(bundle.manifest.files[name].bytes for name in (file, f"{file}.data") if name in bundle.manifest.files)
