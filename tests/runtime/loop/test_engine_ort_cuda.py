"""`--provider cuda`: ONNX Runtime behind the loop for plans, its CPU provider over the strict double of CUDA's calls."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from ditedge.runtime import Cancelled, EngineOptions, Session, open_bundle
from ditedge.runtime.errors import EngineError
from ditedge.runtime.loop import engine_ort_cuda, engine_trt
from ditedge.runtime.loop.engine_ort import _providers, open_session
from ditedge.runtime.loop.verify import relative_error, replay
from tests.doubles.gpu_double import DoubleGpu
from tests.doubles.ort_double import OrtDouble
from tests.runtime.loop.mutations import one_state, waiting_by_synchronising
from tests.runtime.loop.on_plans import LOOPS, TOLERANCE, check_recorded, latents, recorded_program, same


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> DoubleGpu:
    return DoubleGpu(installed={})  # without TensorRT


@pytest.fixture
def ort(gpu: DoubleGpu, monkeypatch: pytest.MonkeyPatch) -> OrtDouble:
    """What `--provider cuda` finds instead of a GPU and a build of ONNX Runtime for it."""
    double = OrtDouble(gpu)
    monkeypatch.setattr(engine_trt, "NvidiaGpu", lambda: gpu)
    monkeypatch.setattr(engine_ort_cuda, "check_can_start", lambda provider: None)
    monkeypatch.setattr(engine_ort_cuda, "open_session", lambda *graph: double.open(*graph))
    return double


def cuda(bundle, **options) -> Session:
    return Session(bundle, EngineOptions("cuda", **options))


@pytest.mark.parametrize(("case", "name"), LOOPS)
def test_recorded_trajectories(golden_bundle, ort: OrtDouble, gpu: DoubleGpu, case: str, name: str) -> None:
    opened = lambda *which: open_bundle(golden_bundle(*which))  # noqa: E731
    bundle, program, recorded, guidance = recorded_program(case, name, opened)
    with cuda(bundle) as session:
        check_recorded(session, program, recorded, guidance)
    assert "capture" not in gpu.log and not (gpu.live or gpu.events or gpu.streams)


def test_verify_and_pictures(golden_bundle, ort: OrtDouble, gpu: DoubleGpu) -> None:
    bundle = open_bundle(golden_bundle("latent4_learned_sigma"))
    with cuda(bundle) as session, Session(bundle) as host:
        assert all(replay(session, golden).passed for golden in bundle.manifest.golden)
        x = np.random.default_rng(0).standard_normal((5, *bundle.manifest.model.latent_shape)).astype(np.float32)
        assert np.array_equal(session.preview(x), host.preview(x))
    assert "preview" in gpu.log
    stream = ort.opened[0]["user_compute_stream"]
    assert {options["user_compute_stream"] for options in ort.opened} == {stream}, "one stream for all graphs"


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
def test_equals_the_host(golden_bundle, ort: OrtDouble, sampler: str) -> None:
    """Batches of several sizes, labels to guide away from, another guidance: addresses and shapes change."""
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    program = bundle.program(sampler=sampler, steps=11)
    with Session(bundle) as host, cuda(bundle) as device:
        for options in (
            {"batch": 2},
            {"batch": 5},
            {"seeds": [1, 2, 3, 4, 5]},
            {"away_from": [7] * 5},
            {"guidance": 1.5},
        ):
            same(latents(bundle, device, program, **options), latents(bundle, host, program, **options))
        labels, seeds = [i % 10 for i in range(20)], list(range(20))  # more than any plan of the tests was built for
        whole = [latents(bundle, s, program, labels=labels, seeds=seeds, batch=20) for s in (device, host)]
        same(*whole)


def test_a_run_has_few_bindings(golden_bundle, ort: OrtDouble) -> None:
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    with cuda(bundle) as device:
        for steps in (40, 60):
            latents(bundle, device, bundle.program(sampler="ddim", steps=steps))
        (context,) = next(iter(device.loop._runs.values()))._steps._contexts.values()
        assert len(context._bindings) <= 2 * 4, "by place and by which of two states is read"


def test_cancelled_then_run_again(golden_bundle, ort: OrtDouble, gpu: DoubleGpu) -> None:
    bundle, stop = open_bundle(golden_bundle("gray1_cfg")), threading.Event()
    program = bundle.program(sampler="ddpm", steps=30)
    with Session(bundle) as host, cuda(bundle) as device:
        with pytest.raises(Cancelled):
            latents(bundle, device, program, cancel=stop, on_step=lambda event: event.step == 5 and stop.set())
        same(latents(bundle, device, program), latents(bundle, host, program))
    assert not gpu.live


def test_what_the_device_cannot_do_is_done_on_the_host(golden_bundle, ort: OrtDouble, monkeypatch) -> None:
    """Images that go step by step, each at its own pace: ONNX Runtime's CUDA provider, with copies."""
    from ditedge.runtime.loop import host_loop

    asked = []
    monkeypatch.setattr(host_loop, "open_engine", lambda graph, options: asked.append(options.provider) or 1 / 0)
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    with cuda(bundle) as session, pytest.raises(ZeroDivisionError):
        session.advance([session.start(bundle.program(), 1, 2)])
    assert asked == ["cuda"]


def test_a_graph_with_nodes_on_the_cpu_waits_for_its_runs(golden_bundle, ort: OrtDouble) -> None:
    ort.mixed = True
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    program = bundle.program(sampler="ddpm", steps=7)
    with Session(bundle) as host, cuda(bundle) as device:
        same(latents(bundle, device, program), latents(bundle, host, program))


def test_an_input_on_the_cpu_is_refused(golden_bundle, ort: OrtDouble, gpu: DoubleGpu) -> None:
    """It would be copied once, when it is bound."""
    ort.on_cpu = ("sample",)
    with cuda(open_bundle(golden_bundle("gray1_cfg"))) as session:
        with pytest.raises(EngineError, match="leaves input sample of graph step to the CPU: use --provider CUDAExec"):
            session.load("step")
    assert not gpu.streams


def test_the_provider_is_refused_before_a_stream_is_made(golden_bundle, monkeypatch) -> None:
    gpu = DoubleGpu()
    monkeypatch.setattr(engine_trt, "NvidiaGpu", lambda: gpu)
    with cuda(open_bundle(golden_bundle("gray1_cfg"))) as session:
        with pytest.raises(EngineError, match="provider 'cuda' (is not in this ONNX Runtime|could not be started)"):
            session.load("step")
    assert gpu.handles == 1000


def test_no_tensor_float_32() -> None:
    (name, options), _ = _providers("cuda", ["CUDAExecutionProvider"], {"user_compute_stream": "77"})
    assert name == "CUDAExecutionProvider" and options == {"use_tf32": "0", "user_compute_stream": "77"}


def forgotten_synchronisation(monkeypatch) -> None:
    monkeypatch.setattr(engine_ort_cuda, "KEEP_GOING", ("session.something", "1"))


def never_waiting(monkeypatch) -> None:
    real = OrtDouble.open
    monkeypatch.setattr(engine_ort_cuda, "_all_on_device", lambda session: True)
    monkeypatch.setattr(OrtDouble, "open", lambda self, *graph: setattr(self, "mixed", True) or real(self, *graph))


def captured(monkeypatch) -> None:
    monkeypatch.setattr(engine_ort_cuda.OrtPlan, "capturable", True)
    monkeypatch.setattr(engine_ort_cuda.OrtContext, "capturable", lambda self, stream: True)


def stale_bindings(monkeypatch) -> None:
    real = engine_ort_cuda.OrtContext._bind

    def bind(self):
        self._first = getattr(self, "_first", None) or real(self)
        return self._first

    monkeypatch.setattr(engine_ort_cuda.OrtContext, "_bind", bind)


MUTATIONS = {
    forgotten_synchronisation: "the run stops the stream",
    never_waiting: "pinned memory is reused",
    captured: "ONNX Runtime allocates while capturing",
    stale_bindings: "assert|read of memory never written",
    one_state: "lies over an input",
    waiting_by_synchronising: "host synchronisation while work is enqueued",
}


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_mutations_are_noticed(golden_bundle, ort: OrtDouble, monkeypatch, mutate) -> None:
    mutate(monkeypatch)
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    program = bundle.program(sampler="ddpm", steps=11)
    with Session(bundle) as host:
        expected = latents(bundle, host, program)
    with pytest.raises((AssertionError, EngineError), match=MUTATIONS[mutate]), cuda(bundle) as device:
        for _ in range(2):
            error = relative_error(latents(bundle, device, program), expected)
            assert error < TOLERANCE


def test_what_a_session_really_says(golden_bundle) -> None:
    """The CPU provider's: every input is read there, and no node is on the device."""
    onnxruntime = pytest.importorskip("onnxruntime")
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    session = open_session(bundle.graph("step"), EngineOptions())
    if not hasattr(onnxruntime.InferenceSession, "get_input_memory_infos"):
        pytest.skip("this ONNX Runtime does not say where inputs are")
    with pytest.raises(EngineError, match="leaves input state of graph step to the CPU"):
        engine_ort_cuda.OrtPlan("step", bundle.manifest.graphs["step"], session)
    assert not engine_ort_cuda._all_on_device(session)
