"""The path of full TensorRT, with its calls recorded: the library itself does not install on the development machines."""

from __future__ import annotations

import threading
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ditedge.runtime import open_bundle
from ditedge.runtime.errors import Cancelled, EngineError, RequestError
from ditedge.runtime.plans import build
from ditedge.runtime.plans.build import build_bundle
from ditedge.runtime.plans.library import GpuInfo, Library
from ditedge.runtime.plans.options import BuildOptions
from ditedge.runtime.plans.record import RECORD_NAME, read_build_record

ORIN = GpuInfo("Orin (nvgpu)", "sm87", 8 << 30)


def enum(name: str, *members: str) -> Any:
    return IntEnum(name, {member: i + 3 for i, member in enumerate(members)})


class OnnxParser:
    num_errors = 0

    def __init__(self, network: Any, logger: Any) -> None:
        network.parser = self

    def parse_from_file(self, path: str) -> bool:
        return Path(path).is_file()


class Config:
    def __init__(self) -> None:
        self.flags = {"TF32"}  # as TensorRT's own default
        self.pools: dict[str, int] = {}
        self.profiles: list[dict[str, Any]] = []
        self.cache = b""

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag.name)

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.pools[pool.name] = size

    def add_optimization_profile(self, profile: Any) -> None:
        self.profiles.append(profile.shapes)

    def create_timing_cache(self, data: bytes) -> bytes:
        return data

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: self.cache + b"+timed")


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, least: Any, typical: Any, most: Any) -> None:
        self.shapes[name] = (least, typical, most)


class Builder:
    """Of a double, which keeps what is made."""

    def __init__(self, double: Double, cores: int, logger: Any) -> None:
        self.double, self.num_DLA_cores, self.logger = double, cores, logger

    def create_network(self, flags: int) -> Any:
        self.double.created.append(flags)
        return SimpleNamespace(num_layers=0)

    def create_builder_config(self) -> Config:
        self.double.configs.append(Config())
        return self.double.configs[-1]

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
        monitor = config.progress_monitor
        monitor.phase_start("outer", None, 4)
        for step in range(4):
            monitor.phase_start("inner", "outer", 2)
            for inner in range(2):
                if not monitor.step_complete("inner", inner):
                    return None
            monitor.phase_finish("inner")
            monitor.step_complete("outer", step)
        monitor.phase_finish("outer")
        return b"plan of " + str(len(self.double.configs)).encode()


class Double:
    """A `tensorrt` module that writes down what is asked of it. cores: DLA cores; lacks: flags it does not have."""

    OnnxParser = OnnxParser

    def __init__(self, version: str, cores: int = 2, lacks: frozenset[str] = frozenset()) -> None:
        self.__version__ = version
        self.created: list[int] = []  # flags of create_network
        self.configs: list[Any] = []
        self.Builder = lambda logger: Builder(self, cores, logger)
        flags = {"VERSION_COMPATIBLE", "REFIT", "STRIP_PLAN", "WEIGHT_STREAMING", "GPU_FALLBACK"} - lacks
        self.BuilderFlag = enum("BuilderFlag", "TF32", *sorted(flags))
        if version.startswith("10."):
            self.NetworkDefinitionCreationFlag = enum("NetworkDefinitionCreationFlag", "STRONGLY_TYPED")
        self.ProfilingVerbosity = enum("ProfilingVerbosity", "NONE", "DETAILED")
        self.MemoryPoolType = enum("MemoryPoolType", "WORKSPACE")
        self.HardwareCompatibilityLevel = enum("HardwareCompatibilityLevel", "NONE", "AMPERE_PLUS")
        self.DeviceType = enum("DeviceType", "GPU", "DLA")
        self.ILogger = self.IProgressMonitor = type("Base", (), {"__init__": lambda self: None})


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Any:
    """use(double, gpu): builds go to this double."""

    def use(double: Double, gpu: GpuInfo | None = ORIN) -> None:
        monkeypatch.setattr(build, "load_library", lambda target: Library(target, double, double.__version__))
        monkeypatch.setattr(build, "first_gpu", lambda: gpu)

    return use


@pytest.mark.parametrize(("version", "network_flags"), [("10.3.0.26", 1 << 3), ("11.4.1.0", 0)])
def test_networks_are_strongly_typed_in_both_majors(gray_bundle: Path, use, version: str, network_flags: int) -> None:
    double = Double(version)
    use(double)
    build_bundle(open_bundle(gray_bundle), BuildOptions("tensorrt", max_batch=2))
    assert double.created == [network_flags] * 3


def test_the_record_of_a_build_on_a_gpu(gray_bundle: Path, use, tmp_path: Path) -> None:
    double, cache = Double("10.3.0.26"), tmp_path / "timing.cache"
    use(double)
    cache.write_bytes(b"old")
    options = BuildOptions("tensorrt", max_batch=2, workspace=512, timing_cache=cache, version_compatible=True,
                           strip_weights=True, weight_streaming=100, dla=1, optimization_level=4)  # fmt: skip
    record = build_bundle(open_bundle(gray_bundle), options)
    assert record == read_build_record(gray_bundle / "engines" / "tensorrt" / RECORD_NAME)
    assert (record.gpu, record.compute_capabilities) == ("Orin (nvgpu)", ["sm87"])
    flags = ["GPU_FALLBACK", "REFIT", "STRIP_PLAN", "VERSION_COMPATIBLE", "WEIGHT_STREAMING"]
    assert record.flags == flags and record.weight_streaming_mb == 100
    assert cache.read_bytes() == b"old" + b"+timed" * 3
    for config in double.configs:
        assert sorted(config.flags) == flags
        assert config.pools == {"WORKSPACE": 512 << 20}
        assert (config.default_device_type.name, config.DLA_core) == ("DLA", 1)
        assert config.builder_optimization_level == 4
        assert config.profiling_verbosity.name == "DETAILED"
    step = double.configs[1].profiles
    assert len(step) == 1 and step[0]["sample"] == ((1,), (4,), (4,))


def test_a_second_profile_for_one_image(gray_bundle: Path, use) -> None:
    """Of the step alone, for one shape; the record says which."""
    double = Double("10.3.0.26")
    use(double)
    record = build_bundle(open_bundle(gray_bundle), BuildOptions("tensorrt", max_batch=2, one_image=True))
    assert record == read_build_record(gray_bundle / "engines" / "tensorrt" / RECORD_NAME)
    assert [len(config.profiles) for config in double.configs] == [1, 2, 1]
    second = double.configs[1].profiles[1]
    assert second["sample"] == ((2,), (2,), (2,)) and second.keys() == double.configs[1].profiles[0].keys()
    exact = {name: tuple(shape) for name, shape in record.plans["step"].one_image.items()}
    assert second == {name: (shape, shape, shape) for name, shape in exact.items()}
    assert record.plans["decoder"].one_image == {}


def test_a_plan_for_every_gpu_from_ampere_on_names_none(gray_bundle: Path, use) -> None:
    double = Double("10.3.0.26")
    use(double)
    record = build_bundle(open_bundle(gray_bundle), BuildOptions("tensorrt", hardware_compatible=True))
    assert (record.compute_capabilities, record.flags) == ([], ["AMPERE_PLUS"])
    assert {config.hardware_compatibility_level.name for config in double.configs} == {"AMPERE_PLUS"}


@pytest.mark.parametrize(
    ("double", "gpu", "options", "error", "sentence"),
    [
        (Double("10.3.0.26"), None, {}, EngineError, "there is no GPU or NVIDIA driver here"),
        (Double("10.3.0.26", cores=0), ORIN, {"dla": 0}, RequestError, r"--dla 0: this device has 0 DLA core"),
        (Double("10.3.0.26", lacks=frozenset({"WEIGHT_STREAMING"})), ORIN, {"weight_streaming": 1}, EngineError,
         "TensorRT 10.3.0.26 has no BuilderFlag.WEIGHT_STREAMING"),
    ],
)  # fmt: skip
def test_refusals_leave_nothing(gray_bundle: Path, use, double, gpu, options, error, sentence: str) -> None:
    use(double, gpu)
    with pytest.raises(error, match=sentence):
        build_bundle(open_bundle(gray_bundle), BuildOptions("tensorrt", **options))
    assert not list(gray_bundle.glob("engines/*")) + list(gray_bundle.glob("engines/.*"))


def test_nested_phases_are_one_rising_fraction(gray_bundle: Path, use) -> None:
    use(Double("10.3.0.26"))
    told: list[tuple[str, int, int]] = []
    build_bundle(open_bundle(gray_bundle), BuildOptions("tensorrt"), lambda *event: told.append(event))
    step = [done for what, done, _ in told if what.startswith("building step")]
    assert step == sorted(step) and len(set(step)) >= 8, "four outer steps of two inner ones"
    assert told[-1][1:] == (100, 100)


def test_cancel_stops_the_graph_that_is_built(gray_bundle: Path, use) -> None:
    double, cancel = Double("10.3.0.26"), threading.Event()
    use(double)
    with pytest.raises(Cancelled, match="step.onnx"):
        build_bundle(
            open_bundle(gray_bundle),
            BuildOptions("tensorrt"),
            lambda what, *_: cancel.set() if what == "building step: inner" else None,
            cancel,
        )
    assert len(double.configs) == 2 and list((gray_bundle / "engines").iterdir()) == []
