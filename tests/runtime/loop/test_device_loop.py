"""The production loop for plans, on the CPU: every CUDA and TensorRT call goes to a strict double (gpu_double.py)."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ditedge.runtime import Cancelled, Session, StepEvent
from ditedge.runtime.loop import device_loop, device_memory, device_modulation, engine_trt
from ditedge.runtime.loop.device_tables import AHEAD, SEGMENT
from ditedge.runtime.loop.loop import Watcher
from ditedge.runtime.loop.noise import SeededNoise
from ditedge.runtime.loop.verify import replay
from ditedge.runtime.samplers.program import with_x0_slot
from tests.doubles.gpu_double import DoubleGpu
from tests.runtime.loop.on_plans import (
    LABELS,
    LOOPS,
    SEEDS,
    check_recorded,
    latents,
    plans,
    recorded_program,
    same,
)


@pytest.mark.parametrize(("case", "name"), LOOPS)
def test_recorded_trajectories(plan_bundle, gpu: DoubleGpu, case: str, name: str) -> None:
    bundle, program, recorded, guidance = recorded_program(case, name, plan_bundle)
    with plans(bundle) as session:
        check_recorded(session, program, recorded, guidance)
    assert not gpu.live and not gpu.graphs and not gpu.events and not gpu.streams


def test_verify_replays_on_plans(plan_bundle, gpu: DoubleGpu) -> None:
    with plans(plan_bundle("gray1_cfg")) as session:
        results = [replay(session, golden) for golden in session.bundle.manifest.golden]
    assert results and all(result.passed for result in results)
    assert {path.name for path in gpu.deserialized} == {"conditioner.plan", "dit.plan", "decoder.plan"}


@pytest.mark.parametrize("cuda_graphs", [True, False])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
def test_equals_the_loop_on_onnx_runtime(plan_bundle, gpu: DoubleGpu, sampler: str, cuda_graphs: bool) -> None:
    """Also with two batches of one shape (replays), a smaller last one, and other labels, seeds and guidance."""
    bundle = plan_bundle("gray1_cfg")
    program = bundle.program(sampler=sampler, steps=6)
    with Session(bundle) as ort, plans(bundle, cuda_graphs) as device:
        for options in (
            {"batch": 2},
            {"batch": 5},
            {"seeds": [1, 2, 3, 4, 5]},
            {"away_from": [7] * 5},
            {"guidance": 1.5},
        ):
            same(latents(bundle, device, program, **options), latents(bundle, ort, program, **options))


def test_a_shape_is_captured_once_and_replayed(plan_bundle, gpu: DoubleGpu) -> None:
    """Four steps and two: enqueued plainly in the first run, captured in the second, replayed in the third."""
    bundle, captures = plan_bundle("gray1_cfg"), []
    program = bundle.program(sampler="ddpm", steps=6)
    with plans(bundle) as device:
        first = latents(bundle, device, program)
        for other in ({}, {"labels": [1, 2, 3, 4, 2], "guidance": 5.0}, {}):
            captures.append(gpu.log.count("capture"))
            again = latents(bundle, device, program, **other)
        assert captures == [0, 2, 2] and gpu.log.count("launch") == 3 * 2
        assert np.array_equal(first, again)
    assert not gpu.live


def test_unguided_steps_run_half_the_evaluations(plan_bundle, gpu: DoubleGpu) -> None:
    bundle = plan_bundle("gray1_cfg")
    program = replace(bundle.program(steps=5), guidance=np.array([0.0, 1, 1, 0, 1]))
    with Session(bundle) as ort, plans(bundle) as device:
        same(latents(bundle, device, program), latents(bundle, ort, program))
        run = next(iter(device.loop._runs.values()))
        evaluations = {count: context.shapes["sample"][0] for count, context in run._steps._contexts.items()}
    assert evaluations == {10: 10, 5: 5}


@pytest.mark.parametrize("steps_held", [1, 3])
@pytest.mark.parametrize("watched", [False, True])
def test_modulation_that_does_not_fit_is_computed_in_blocks(
    plan_bundle, gpu, monkeypatch, steps_held: int, watched: bool
) -> None:
    bundle = plan_bundle("gray1_cfg")
    row = 4 * (6 * 2 + 2) * 32 * 5  # four labels and the null class
    monkeypatch.setattr(device_modulation, "MODULATION_BYTES", steps_held * row)
    program = bundle.program(sampler="ddpm", steps=7)
    with Session(bundle) as ort, plans(bundle) as device:
        same(
            latents(bundle, device, program, on_step=(lambda p: None) if watched else None),
            latents(bundle, ort, program),
        )
    assert gpu.log.count("conditioner") == -(-7 // steps_held)


def test_modulation_rows_that_are_not_aligned_are_computed_step_by_step(plan_bundle, gpu, monkeypatch) -> None:
    """A step's rows begin where TensorRT can bind them, even if the model's width is odd."""
    monkeypatch.setattr(device_memory, "ALIGNMENT", 4096)
    bundle = plan_bundle("gray1_cfg")
    program = bundle.program(sampler="ddpm", steps=3)
    with Session(bundle) as ort, plans(bundle) as device:
        same(latents(bundle, device, program), latents(bundle, ort, program))
    assert gpu.log.count("conditioner") == 3
    assert all(addresses["modulation"] % 256 == 0 for addresses in gpu.bound)


@pytest.mark.parametrize("watched", [False, True])
def test_noise_goes_through_a_ring(plan_bundle, gpu, watched: bool) -> None:
    """Of more steps than the ring has places."""
    bundle = plan_bundle("gray1_cfg")
    program = bundle.program(sampler="ddpm", steps=3 * (AHEAD + SEGMENT))
    with Session(bundle) as ort, plans(bundle) as device:
        expected = latents(bundle, ort, program)
        for _ in range(2):
            same(latents(bundle, device, program, on_step=(lambda p: None) if watched else None), expected)


def test_samplers_without_noise_upload_none(plan_bundle, gpu: DoubleGpu) -> None:
    bundle = plan_bundle("gray1_cfg")
    with plans(bundle) as device:
        latents(bundle, device, bundle.program(sampler="ddim", steps=9))
        assert gpu.log.count("upload") == 2 and gpu.log.count("download") == 1  # tables, initial state; result


def test_progress_reports_every_step_in_order(plan_bundle, gpu: DoubleGpu) -> None:
    bundle = plan_bundle("gray1_cfg")
    program, seen, expected = with_x0_slot(bundle.program(steps=7)), [], []
    with Session(bundle) as ort, plans(bundle) as device:
        latents(bundle, ort, program, on_step=lambda p: expected.append((p.done, p.state.copy())))
        latents(bundle, device, program, on_step=lambda p: seen.append((p.done, p.state.copy())))
    assert [done for done, _ in seen] == [done for done, _ in expected]
    for (_, actual), (_, wanted) in zip(seen, expected, strict=True):
        same(actual, wanted)


def test_work_is_enqueued_ahead_of_the_callback(plan_bundle, gpu: DoubleGpu) -> None:
    """While the host is in a callback the stream has more to do."""
    bundle = plan_bundle("gray1_cfg")
    ahead = []
    with plans(bundle) as device:
        latents(
            bundle, device, bundle.program(sampler="ddim", steps=12), on_step=lambda p: ahead.append(len(gpu.queue))
        )
    assert min(ahead[:8]) >= 1


@pytest.mark.parametrize("watched", [False, True])
def test_cancel_stops_between_segments_and_leaves_the_session_usable(plan_bundle, gpu, watched: bool) -> None:
    bundle = plan_bundle("gray1_cfg")
    program, stop, done = bundle.program(sampler="ddpm", steps=40), threading.Event(), []

    class Noise(SeededNoise):
        def step(self, step: int) -> np.ndarray:
            stop.set() if step == 9 else None
            return super().step(step)

    noise = Noise(SEEDS, (1, 8, 8))
    with Session(bundle) as ort, plans(bundle) as device:
        with pytest.raises(Cancelled, match="of 40"):
            device.latents(
                program, LABELS, 3.0, noise, on_step=(lambda e: done.append(e.step)) if watched else None, cancel=stop
            )
        assert not gpu.queue and gpu.log.count("step") < 20
        assert done == list(range(1, len(done) + 1)) and len(done) <= 10
        same(latents(bundle, device, program, cancel=threading.Event()), latents(bundle, ort, program))


def test_a_failing_callback_leaves_the_session_usable(plan_bundle, gpu: DoubleGpu) -> None:
    bundle = plan_bundle("gray1_cfg")
    program = bundle.program(sampler="ddpm", steps=6)

    def fail(progress) -> None:
        raise KeyboardInterrupt

    with Session(bundle) as ort, plans(bundle) as device:
        with pytest.raises(KeyboardInterrupt):
            latents(bundle, device, program, on_step=fail)
        same(latents(bundle, device, program), latents(bundle, ort, program))


def test_few_runs_are_kept_and_memory_stays_bounded(plan_bundle, gpu: DoubleGpu) -> None:
    bundle = plan_bundle("gray1_cfg")
    with plans(bundle) as device:
        sizes = []
        for count in (1, 2, 3, 4, 3, 2, 1):
            latents(bundle, device, bundle.program(steps=3), labels=LABELS[:count], seeds=SEEDS[:count])
            sizes.append(len(gpu.live))
        assert len(set(sizes[1:])) == 1 and len(device.loop._runs) == device_loop.RUNS_KEPT


COMBINATIONS = given(
    steps=st.integers(1, 13),
    count=st.integers(1, 4),
    guided=st.integers(0, 2**13 - 1),
    sampler=st.sampled_from(["ddpm", "ddim", "dpm++", "sde-dpm++", "euler-ancestral"]),
    guidance=st.sampled_from([1.0, 3.0]),
    heard=st.tuples(st.integers(0, 2**15 - 1), st.booleans()),
    rows_held=st.integers(1, 60),
)
HOW = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture], "derandomize": True}


def check_combination(plan_bundle, steps, count, guided, sampler, guidance, heard, rows_held) -> None:
    """Segments, blocks of rows, steps that are looked at and unguided ones, in combinations that nobody thought of."""
    bundle, (looked_at, cancellable), states = plan_bundle("gray1_cfg"), heard, {}
    program = bundle.program(sampler=sampler, steps=steps)
    program = replace(program, guidance=np.array([float(guided >> i & 1) for i in range(program.steps)]))
    gpu, seen = DoubleGpu(), []
    options = {"labels": LABELS[:count], "seeds": SEEDS[:count], "guidance": guidance}

    def watch(event: StepEvent) -> None:
        seen.append(event.done)
        if looked_at >> event.step & 1:
            same(event.state, states[event.step])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_trt, "NvidiaGpu", lambda: gpu)
        patch.setattr(device_modulation, "MODULATION_BYTES", rows_held * 4 * (6 * 2 + 2) * 32)
        with Session(bundle) as ort, plans(bundle) as device:
            keep = lambda event: states.update({event.step: event.state.copy()})  # noqa: E731
            expected = latents(bundle, ort, program, on_step=keep, **options)
            options["on_step"] = Watcher(watch, lambda step: bool(looked_at >> step & 1))
            for _ in range(3):  # plainly, captured, replayed
                stop = threading.Event() if cancellable else None
                same(latents(bundle, device, program, cancel=stop, **options), expected)
    assert seen == 3 * list(range(1, program.steps + 1))
    assert not gpu.live and not gpu.graphs


@settings(max_examples=10, **HOW)
@COMBINATIONS
def test_any_combination_equals_onnx_runtime(plan_bundle, **drawn) -> None:
    check_combination(plan_bundle, **drawn)


@pytest.mark.slow
@settings(max_examples=300, **HOW)
@COMBINATIONS
def test_many_combinations_equal_onnx_runtime(plan_bundle, **drawn) -> None:
    check_combination(plan_bundle, **drawn)
