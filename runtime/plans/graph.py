"""One ONNX file into one plan: parsed, configured, built, written. The calls of TensorRT are here.

Plain calls, not polygraphy's: polygraphy chooses between the two libraries by an environment variable when it is first
imported, so one process cannot hold both, and it logs refusals in paragraphs of its own.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import Cancelled, EngineError, RequestError
from ..files import written_atomically
from ..report import Report
from .accumulation import sum_in_float32
from .layers import PlanLayers, layers_from_log
from .library import Library, make_logger
from .messages import parse_refusal, refusal
from .options import BuildOptions
from .record import ShapeRange

PARTS = 1000  # that the progress of one graph is told in


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
            kind, size = found.groups()
            self.memory[kind] = max(self.memory.get(kind, 0), int(size))  # told of each profile

    def plan_layers(self) -> PlanLayers:
        listed = tuple(layers_from_log(self.layers))
        return PlanLayers(listed, self.memory.get("Activation", 0), self.memory.get("Weights", 0))


def build_graph(
    library: Library,
    path: Path,
    profiles: Sequence[Mapping[str, ShapeRange]],
    options: BuildOptions,
    log: BuildLog,
    report: Report,
    cancel: threading.Event,
    plan: Path,
) -> set[str]:
    """Builds one ONNX file into `plan`; returns the names of the flags that were set.

    report: told PARTS in all.
    Raises EngineError (library or graph), RequestError (options that this device lacks), Cancelled.
    """
    trt = library.module
    report("reading", 0, PARTS)
    builder = trt.Builder(make_logger(library, log))
    network, parser = parse_graph(library, builder, path, log.errors)
    if options.dla is None:  # which computes nothing in float32
        sum_in_float32(library, network)
    config = builder.create_builder_config()
    flags = _configure(library, builder, config, options, log)
    for profile in filter(None, profiles):
        shapes = builder.create_optimization_profile()
        for name, size in profile.items():
            shapes.set_shape(name, tuple(size.min), tuple(size.opt), tuple(size.max))
        config.add_optimization_profile(shapes)
    config.progress_monitor = monitor = _monitor(library, report, cancel)
    log.errors.clear()  # without a driver, creating objects already complains
    serialized = builder.build_serialized_network(network, config)
    if cancel.is_set():
        raise Cancelled(f"stopped while building {path.name}")
    if serialized is None:
        raise EngineError(refusal(path.name, library, log.errors, options.archs))
    with plan.open("wb") as file:
        file.write(serialized)
    if options.timing_cache is not None:
        with written_atomically(options.timing_cache, is_result=False) as temporary:
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
    captured = library.is_rtx and options.weight_streaming is None  # it captures only what allocates nothing itself
    flags = {
        "VERSION_COMPATIBLE": options.version_compatible,
        "REFIT": options.refit or options.strip_weights,
        "STRIP_PLAN": options.strip_weights,
        "WEIGHT_STREAMING": options.weight_streaming is not None,
        "GPU_FALLBACK": options.dla is not None,
        "REQUIRE_USER_ALLOCATION": captured and library.has("BuilderFlag", "REQUIRE_USER_ALLOCATION"),
    }
    chosen = {name for name, wanted in flags.items() if wanted}
    for name in sorted(chosen):
        config.set_flag(library.member("BuilderFlag", name))
    if hasattr(library.module.BuilderFlag, "TF32"):  # on by default: 10 bits of mantissa, and `verify` asks for 1e-4
        config.clear_flag(library.module.BuilderFlag.TF32)
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


def _monitor(library: Library, report: Report, cancel: threading.Event) -> Any:
    """TensorRT's progress: nested phases of known step counts, in PARTS of all. It stops when `cancel` is set."""

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
                report(name, round(PARTS * self._fraction(name)), PARTS)

        def step_complete(self, name: str, step: int) -> bool:
            with self._lock:
                self._done[name] = max(self._done.get(name, 0.0), step + 1.0)
                report(name, round(PARTS * self._fraction(name)), PARTS)
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
