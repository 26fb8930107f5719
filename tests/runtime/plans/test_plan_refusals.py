"""Every refusal of a plan is one sentence, and comes before anything is deserialised."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ditedge.runtime import EngineOptions, Session, generate, open_bundle
from ditedge.runtime.bundle.held_files import HeldFile
from ditedge.runtime.errors import DitedgeError
from ditedge.runtime.loop import engine_trt
from ditedge.runtime.plans.library import ErrorLog, load_library, make_logger
from ditedge.runtime.plans.record import read_build_record
from tests.doubles.gpu_double import DoubleGpu
from tests.doubles.plans import write_plans


@dataclass
class Case:
    """gpu: what the machine has; edit: what happens to build.json; spoil: to the folder of plans."""

    complaint: str
    gpu: dict[str, Any] = field(default_factory=dict)
    edit: Callable[[dict[str, Any]], Any] | None = None
    spoil: Callable[[Path], Any] | None = None


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


CASES = {
    "no library": Case("not installed.*ditedge.tensorrt-rtx", {"installed": {}}),
    "no gpu": Case("no CUDA device.*--engine", {"count": 0}),
    "no record": Case("cannot read .*build.json", spoil=lambda f: (f / "build.json").unlink()),
    "record cut short": Case("not valid JSON", spoil=lambda f: (f / "build.json").write_text('{"format":')),
    "not a record": Case("not the record", edit=lambda r: r.update(format="other")),
    "record of a later version": Case("version.*build it again", edit=lambda r: r.update(version=2)),
    "plan path in the record": Case("is dit.plan, not ../dit.plan", edit=lambda r: r["plans"]["step"].update(file="../dit.plan")),
    "other library": Case("built with TensorRT-RTX 1.7.*has TensorRT 10.3.0", {"installed": {"tensorrt": "10.3.0"}}),
    "wrong major version": Case("built with TensorRT-RTX 1.7.*version 2.0.1", {"installed": {"tensorrt-rtx": "2.0.1"}}),
    "plan from another gpu": Case("built for sm86, sm89.*Double GPU \\(sm120\\).*--arch sm120", {"sm": "sm120"}),
    "plans of another bundle": Case("another version of bundle", edit=lambda r: r.update(bundle_sha256="0" * 64)),
    "plan with wrong hash": Case("dit.plan: does not match its hash", spoil=lambda f: flip(f / "dit.plan")),
    "plan of another size": Case("decoder.plan: does not match", spoil=lambda f: (f / "decoder.plan").write_bytes(b"x")),
    "plan missing": Case("conditioner.plan is missing", spoil=lambda f: (f / "conditioner.plan").unlink()),
    "plan not recorded": Case("plan of graph 'decoder' is missing", edit=lambda r: r["plans"].pop("decoder")),
    "plan under another name": Case("is dit.plan, not decoder.plan", edit=lambda r: r["plans"]["step"].update(file="decoder.plan")),
    "plan without weights": Case("without weights", edit=lambda r: r["flags"].append("STRIP_PLAN")),
    "no library and no record": Case("not installed", {"installed": {}}, spoil=lambda f: (f / "build.json").unlink()),
    "no gpu and wrong major": Case("no CUDA device", {"count": 0, "installed": {"tensorrt-rtx": "2.0"}}),
    "wrong major and wrong hash": Case("version 2.0", {"installed": {"tensorrt-rtx": "2.0"}}, spoil=lambda f: flip(f / "dit.plan")),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_refused_before_deserialising(gray_bundle: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    case, folder = CASES[name], write_plans(gray_bundle).parent
    gpu = DoubleGpu(**case.gpu)
    monkeypatch.setattr(engine_trt, "NvidiaGpu", lambda: gpu)
    if case.edit is not None:
        record = json.loads((folder / "build.json").read_text())
        case.edit(record)
        (folder / "build.json").write_text(json.dumps(record))
    if case.spoil is not None:
        case.spoil(folder)
    with Session(open_bundle(gray_bundle), EngineOptions(plans=folder)) as session:
        with pytest.raises(DitedgeError, match=case.complaint) as caught:
            session.load("step")
    assert "\n" not in str(caught.value)
    assert not gpu.deserialized and not gpu.blocks and not gpu.streams


def test_plans_for_every_gpu_need_no_capability(gray_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_plans(gray_bundle).parent
    record = json.loads((folder / "build.json").read_text()) | {"compute_capabilities": []}
    (folder / "build.json").write_text(json.dumps(record))
    monkeypatch.setattr(engine_trt, "NvidiaGpu", lambda: DoubleGpu(sm="sm120"))
    with Session(open_bundle(gray_bundle), EngineOptions(plans=folder)) as session:
        session.load("step")


@pytest.mark.parametrize(
    ("labels", "settings", "complaint"),
    [
        ([0] * 5, {}, "batch of 5 .* built for, 4: use --batch 4, or build with --max-batch 5"),
        ([0, 1, 2, 3], {}, "5 distinct conditions .* 4: .*--max-rows 5"),
        ([0], {"sampler": "unipc", "order": 3, "steps": 6}, "input state is .*fewer state slots"),
    ],
)
def test_profile_too_small(gray_bundle: Path, monkeypatch, labels, settings, complaint: str) -> None:
    gpu, folder = DoubleGpu(), write_plans(gray_bundle, max_batch=4, max_rows=4, slots=2).parent
    monkeypatch.setattr(engine_trt, "NvidiaGpu", lambda: gpu)
    bundle = open_bundle(gray_bundle)
    options = {"guidance": 3.0, "output": "latents", "program": bundle.program(**settings)}
    with Session(bundle, EngineOptions(plans=folder)) as session:
        with pytest.raises(DitedgeError, match=complaint):
            generate(bundle, labels, list(range(len(labels))), session=session, **options)
        assert generate(
            bundle, [0, 1], [0, 1], session=session, output="latents", program=bundle.program(steps=2)
        ).shape == (2, 1, 8, 8)
    assert not gpu.live


# What the real seam does where there is no GPU, and around the calls that it makes.


def test_this_machine_without_a_driver(gray_bundle: Path) -> None:
    """TensorRT-RTX may be installed here; a Runtime is never created without a device."""
    gpu = engine_trt.NvidiaGpu()
    if gpu.device() is not None:
        pytest.skip("this machine has a GPU")
    folder = write_plans(gray_bundle).parent
    with pytest.raises(DitedgeError, match="no CUDA device|not installed"):
        Session(open_bundle(gray_bundle), EngineOptions(plans=folder)).load("step")
    if "tensorrt-rtx" in gpu.libraries():
        with pytest.raises(DitedgeError, match="reads no plan without an NVIDIA GPU"):
            record = read_build_record(folder / "build.json")
            gpu.deserialize(record, HeldFile(folder / "dit.plan", record.plans["step"].plan))


def test_libraries_that_are_missing_or_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)  # import raises ImportError
    assert engine_trt.NvidiaGpu().libraries() == {}
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.3.0.26"))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", SimpleNamespace())  # a wheel without its shared libraries
    assert engine_trt.NvidiaGpu().libraries() == {"tensorrt": "10.3.0.26"}


class FakeEngine:
    """As much of an ICudaEngine as is asked for; TensorRT's own classes cannot be made without a GPU."""

    num_io_tensors = 2
    device_memory_size_v2 = 123

    def get_tensor_name(self, i: int) -> str:
        return ("latent", "image")[i]

    def get_tensor_mode(self, name: str) -> str:
        return {"latent": "in", "image": "out"}[name]

    def create_execution_context(self, strategy: str) -> Any:
        assert strategy == "user managed"
        return self.context


FAKE_TRT = SimpleNamespace(
    TensorIOMode=SimpleNamespace(INPUT="in"),
    ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
)


@pytest.mark.parametrize("call", ["set_shape", "set_address", "enqueue"])
def test_refusals_of_tensorrt_become_sentences(call: str) -> None:
    """10.3's API: a context is made from a strategy."""
    engine, errors = FakeEngine(), ["Error Code 3: API Usage Error"]
    profiles: list[tuple[int, int]] = []
    memory: list[tuple[int, int]] = []
    engine.context = SimpleNamespace(
        active_optimization_profile=-1,
        set_optimization_profile_async=lambda *arguments: profiles.append(arguments) is None,
        set_device_memory=lambda *arguments: memory.append(arguments),
        set_input_shape=lambda name, shape: False,
        set_tensor_address=lambda name, pointer: False,
        execute_async_v3=lambda stream: False,
    )
    plan = engine_trt._TrtPlan(FAKE_TRT, engine, None, errors)
    assert plan.inputs == {"latent"} and plan.scratch_bytes == 123
    context = plan.context(stream=5)
    context.set_memory(256, 123)
    assert profiles == [(0, 5)] and memory == [(256, 123)]
    arguments = {"set_shape": ("latent", (1, 2)), "set_address": ("latent", 256), "enqueue": (1,)}[call]
    with pytest.raises(DitedgeError, match="TensorRT .*API Usage Error"):
        getattr(context, call)(*arguments)


def test_an_engine_that_makes_no_context() -> None:
    engine = FakeEngine()
    engine.context = None
    with pytest.raises(DitedgeError, match="cannot create an execution context"):
        engine_trt._TrtPlan(FAKE_TRT, engine, None, []).context(1)


def test_a_profile_that_is_refused_is_said() -> None:
    engine = FakeEngine()
    engine.context = SimpleNamespace(active_optimization_profile=0, set_optimization_profile_async=lambda *_: False)
    with pytest.raises(DitedgeError, match="TensorRT refuses profile 1 of the plan: out of range"):
        engine_trt._TrtPlan(FAKE_TRT, engine, None, ["out of range"]).context(5, 1)


def test_streamed_weights_are_not_captured() -> None:
    """A budget is set before any context is made; a captured graph would not stream again."""
    engine = FakeEngine()
    engine.streamable_weights_size = 5 << 20
    assert not engine_trt._TrtPlan(FAKE_TRT, engine, 3, []).capturable and engine.weight_streaming_budget_v2 == 3 << 20
    engine_trt._TrtPlan(FAKE_TRT, engine, 9, [])
    assert engine.weight_streaming_budget_v2 == 5 << 20


def test_a_budget_that_is_refused_is_said() -> None:
    """TensorRT's bindings drop the setter's answer; its log has the reason."""
    errors: list[str] = []

    class Refusing(FakeEngine):
        streamable_weights_size = 5 << 20

        @property
        def weight_streaming_budget_v2(self) -> int:
            return 0

        @weight_streaming_budget_v2.setter
        def weight_streaming_budget_v2(self, size: int) -> None:
            errors.append(f"Error Code 3: {size} is less than the minimum")

    with pytest.raises(DitedgeError, match="refuses 3 MB for the plan's weights: Error Code 3: 3145728 is less"):
        engine_trt._TrtPlan(FAKE_TRT, Refusing(), 3, errors)


def test_names_that_tensorrt_rtx_must_have() -> None:
    """What `_TrtPlan` and `_TrtContext` call exists in the installed library: found without a GPU, on the classes."""
    trt = pytest.importorskip("tensorrt_rtx")
    wanted = {
        trt.Runtime: ("deserialize_cuda_engine",),
        trt.ICudaEngine: ("create_runtime_config", "create_execution_context", "get_tensor_mode", "device_memory_size_v2",
                           "weight_streaming_budget_v2", "streamable_weights_size"),
        trt.IRuntimeConfig: ("set_execution_context_allocation_strategy", "dynamic_shapes_kernel_specialization_strategy",
                             "create_runtime_cache", "set_runtime_cache"),
        trt.IRuntimeCache: ("serialize", "deserialize"),
        trt.BuilderFlag: ("REQUIRE_USER_ALLOCATION",),
        trt.IExecutionContext: ("is_stream_capturable", "set_device_memory", "set_input_shape", "set_tensor_address", "execute_async_v3",
                                "active_optimization_profile", "set_optimization_profile_async"),
        trt.DynamicShapesKernelSpecializationStrategy: ("EAGER",),
        trt.ExecutionContextAllocationStrategy: ("USER_MANAGED",),
    }  # fmt: skip
    for owner, names in wanted.items():
        for name in names:
            assert hasattr(owner, name), f"{owner.__name__}.{name}"
    library, log = load_library("tensorrt-rtx"), ErrorLog()
    logger = make_logger(library, log)
    for severity in ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"):
        logger.log(getattr(trt.ILogger, severity), severity)
    assert log.errors == ["INTERNAL_ERROR", "ERROR"]
