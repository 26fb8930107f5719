"""`NvidiaGpu` itself, end to end: a fake libcudart and a fake TensorRT module whose calls go on to the double.

The fakes take arguments in the order of the real signatures and answer as the real libraries do: a status, names of
tensors by index, False or None for a refusal. Both generations of the API: TensorRT 10.3's and TensorRT-RTX's.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ditedge.runtime import EngineOptions, Session, generate, open_bundle
from ditedge.runtime.errors import DitedgeError
from ditedge.runtime.loop import cuda, engine_trt
from ditedge.runtime.plans import library as tensorrt_library
from ditedge.runtime.plans.library import MODULES, GpuInfo
from ditedge.runtime.plans.record import read_build_record
from tests.doubles.fake_cudart import FakeCudart
from tests.doubles.gpu_double import DoubleGpu, DoublePlan
from tests.doubles.plans import write_plans


class FakeContext:
    """An IExecutionContext. Only an engine's first one has profile 0 by itself."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.double = engine, engine.plan.context(next(iter(engine.plan.gpu.streams)))
        self.active_optimization_profile = 0 if not engine.contexts else -1
        engine.contexts += 1

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert stream in self.engine.plan.gpu.streams
        self.active_optimization_profile = profile
        self.double.set_profile(profile)
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.active_optimization_profile >= 0, "no profile"
        self.double.set_shape(name, shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.double.set_address(name, memory)
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        self.double.set_memory(memory, size)

    def execute_async_v3(self, stream_handle: int) -> bool:
        self.double.enqueue(stream_handle)
        return True


class FakeEngine:
    def __init__(self, plan: DoublePlan) -> None:
        self.plan, self.contexts = plan, 0
        self.names = [*plan.dtypes, *plan.outputs]
        self.num_io_tensors = len(self.names)

    @property
    def device_memory_size_v2(self) -> int:
        return self.plan.scratch_bytes

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in self.plan.dtypes else "output"


class OldEngine(FakeEngine):
    def create_execution_context(self, strategy: str) -> FakeContext:
        assert strategy == "user managed"
        return FakeContext(self)


class FakeCache:
    """An IRuntimeCache: the shapes that kernels were compiled for; one of another driver is refused."""

    def __init__(self) -> None:
        self.shapes: set[str] = set()

    def deserialize(self, blob: bytes) -> bool:
        if not blob.startswith(b"driver 580:"):
            return False
        self.shapes = set(blob.decode().partition(":")[2].split(";"))
        return True

    def serialize(self) -> memoryview:
        return memoryview(b"driver 580:" + ";".join(sorted(self.shapes)).encode())


class NewContext(FakeContext):
    """Of TensorRT-RTX: it compiles a kernel for shapes that its cache does not have, and says whether it can be captured."""

    def __init__(self, engine: NewEngine, cache: FakeCache) -> None:
        super().__init__(engine)
        self.cache = cache

    def is_stream_capturable(self, stream: int) -> bool:
        self.engine.plan.gpu.log.append("asked")
        return self.double.capturable(stream) and self.engine.can_capture

    def execute_async_v3(self, stream_handle: int) -> bool:
        shapes = f"{self.engine.plan.graph} {sorted(self.double.shapes.items())}"
        if shapes not in self.cache.shapes:
            self.engine.plan.gpu.log.append("compile")
            self.cache.shapes.add(shapes)
        return super().execute_async_v3(stream_handle)


class NewEngine(FakeEngine):
    can_capture = True

    def create_runtime_config(self) -> Any:
        config = SimpleNamespace(strategy=None, cache=None, create_runtime_cache=FakeCache)
        config.set_execution_context_allocation_strategy = lambda strategy: setattr(config, "strategy", strategy)
        config.set_runtime_cache = lambda cache: setattr(config, "cache", cache)
        return config

    def create_execution_context(self, config: Any) -> FakeContext:
        assert config.strategy == "user managed"
        assert config.dynamic_shapes_kernel_specialization_strategy == "eager"
        return NewContext(self, config.cache)


def fake_trt(double: DoubleGpu, folder: Path, library: str) -> Any:
    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, data: Any) -> FakeEngine | None:
            (path,) = [path for path in folder.glob("*.plan") if path.read_bytes() == bytes(data)]
            if double.broken == "refuse":
                self.logger.log("WARNING", "not this one")
                self.logger.log("ERROR", "Error Code 6: the engine plan file is not compatible")
                return None
            double.deserialized.append(path)
            record = read_build_record(folder / "build.json")
            return (OldEngine if library == "tensorrt" else NewEngine)(DoublePlan(double, path, record))

    class ILogger:
        pass

    module = SimpleNamespace(
        __version__="1.7.1.116" if library == "tensorrt-rtx" else "10.3.0.26",
        Runtime=Runtime,
        ILogger=ILogger,
        TensorIOMode=SimpleNamespace(INPUT="input"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
    )
    if library == "tensorrt-rtx":
        module.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
    return module


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def machine(request, golden_bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A bundle with plans, and this machine with the fakes in the place of libcudart and one TensorRT."""
    bundle = Path(shutil.copytree(golden_bundle("gray1_cfg"), tmp_path / "gray"))
    folder = write_plans(bundle).parent
    text = (folder / "build.json").read_text()
    if request.param == "tensorrt":
        text = text.replace('"tensorrt-rtx"', '"tensorrt"').replace("1.7.1.116", "10.3.0.26")
        (folder / "build.json").write_text(text)
    double = DoubleGpu()
    cudart = FakeCudart(double)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in MODULES.values():
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, MODULES[request.param], fake_trt(double, folder, request.param))
    monkeypatch.setattr(cuda.ctypes, "CDLL", lambda path: cudart.library())
    for module in (engine_trt, tensorrt_library):
        monkeypatch.setattr(module, "first_gpu", lambda: GpuInfo("Fake GPU", "sm86", 8 << 30))
    return SimpleNamespace(bundle=open_bundle(bundle), folder=folder, double=double, cuda=cudart)


@pytest.mark.parametrize("watched", [False, True])
def test_pictures_through_the_real_adapter(machine: SimpleNamespace, watched: bool) -> None:
    program = machine.bundle.program(sampler="ddpm", steps=12)
    options = {"labels": [3, 1, 3], "seeds": [1, 2, 3], "guidance": 3.0, "program": program}
    expected = generate(machine.bundle, **options)
    with Session(machine.bundle, EngineOptions(plans=machine.folder)) as session:
        for _ in range(2):
            progress = (lambda p: None) if watched else None
            actual = generate(machine.bundle, session=session, on_step=progress, **options)
            assert np.abs(actual.astype(int) - expected).max() <= 1
    double = machine.double
    assert double.log.count("capture") == (2 if watched else 1)
    assert not double.live and not double.graphs and not double.events and not double.streams
    assert not machine.cuda.pinned and not machine.cuda.captured


def test_a_plan_that_tensorrt_refuses(machine: SimpleNamespace) -> None:
    machine.double.broken = "refuse"
    with pytest.raises(
        DitedgeError, match="conditioner.plan: TensorRT.* cannot load this plan .*not compatible.*build again"
    ):
        Session(machine.bundle, EngineOptions(plans=machine.folder)).load("step")


def test_a_full_device(machine: SimpleNamespace) -> None:
    """Running out of memory is a sentence, leaks nothing, and a smaller batch runs afterwards."""
    program = machine.bundle.program(sampler="ddpm", steps=3)
    with Session(machine.bundle, EngineOptions(plans=machine.folder)) as session:
        session.load("step")
        live = len(machine.double.live)
        machine.cuda.memory = 30_000
        with pytest.raises(
            DitedgeError, match="cudaMalloc failed with cudaErrorMemoryAllocation: use a smaller --batch"
        ):
            generate(machine.bundle, [1] * 8, list(range(8)), program=program, guidance=1.0, session=session)
        assert len(machine.double.live) == live
        machine.cuda.memory = 30_000
        assert generate(
            machine.bundle, [1], [0], program=program, guidance=1.0, session=session, output="latents"
        ).shape == (1, 1, 8, 8)


@pytest.fixture
def rtx(machine: SimpleNamespace) -> SimpleNamespace:
    if "tensorrt-rtx" not in engine_trt.NvidiaGpu().libraries():
        pytest.skip("TensorRT compiles when it builds, and does not say what can be captured")
    return machine


def sampled(machine: SimpleNamespace, **options: Any) -> np.ndarray:
    """In a session of its own: a new start."""
    settings = {"program": machine.bundle.program(sampler="ddim", steps=10), "output": "latents", "guidance": 3.0}
    with Session(machine.bundle, EngineOptions(plans=machine.folder)) as session:
        return generate(machine.bundle, [1, 2], [3, 4], session=session, **settings, **options)


def test_kernels_are_compiled_once_for_all_starts(rtx: SimpleNamespace, tmp_path: Path) -> None:
    """They lie in the user's cache directory, one file a plan and GPU, for nobody else, and not in the bundle."""
    before = {path: path.read_bytes() for path in rtx.bundle.folder.rglob("*") if path.is_file()}
    first = sampled(rtx)
    assert rtx.double.log.count("compile") == 2  # conditioner, step
    assert np.array_equal(sampled(rtx), first) and rtx.double.log.count("compile") == 2
    folder = tmp_path / "cache" / "ditedge" / "kernels"
    plans = read_build_record(rtx.folder / "build.json").plans
    assert {path.name for path in folder.iterdir()} >= {
        f"{plans[g].plan.sha256}-sm86-Fake-GPU" for g in ("step", "conditioner")
    }
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert {path: path.read_bytes() for path in rtx.bundle.folder.rglob("*") if path.is_file()} == before


def test_kernels_of_another_driver_are_replaced(rtx: SimpleNamespace, tmp_path: Path) -> None:
    sampled(rtx)
    files = [*(tmp_path / "cache" / "ditedge" / "kernels").iterdir()]
    for file in files:
        file.write_bytes(b"driver 570:" + file.read_bytes().partition(b":")[2])
    sampled(rtx)
    assert rtx.double.log.count("compile") == 4
    sampled(rtx)
    assert rtx.double.log.count("compile") == 4


def test_kernels_that_others_could_have_written_are_not_loaded(rtx: SimpleNamespace, tmp_path: Path) -> None:
    sampled(rtx)
    folder = tmp_path / "cache" / "ditedge" / "kernels"
    folder.chmod(0o777)
    with pytest.warns(RuntimeWarning, match="kernels is not a folder of this user alone: .*chmod 700"):
        sampled(rtx)
    assert rtx.double.log.count("compile") == 4


def test_tensorrt_rtx_is_asked_before_a_capture(rtx: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = sampled(rtx)
    assert rtx.double.log.count("asked") == rtx.double.log.count("capture") == 1
    monkeypatch.setattr(NewEngine, "can_capture", False)
    with pytest.warns(RuntimeWarning, match="cannot be captured as a CUDA graph: .*TensorRT says so"):
        assert np.array_equal(sampled(rtx), expected)
    assert rtx.double.log.count("asked") == 2 and rtx.double.log.count("capture") == 1
