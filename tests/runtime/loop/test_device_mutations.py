"""Mutations: each breaks one function of the device loop, and what its tests check must notice."""

from __future__ import annotations

import numpy as np
import pytest

from ditedge.runtime import Session
from ditedge.runtime.loop import device_loop, device_memory, device_modulation, device_run, device_steps, noise_ahead
from ditedge.runtime.loop.noise import GivenNoise
from ditedge.runtime.loop.verify import relative_error
from tests.doubles.gpu_double import DoubleError, DoubleGpu
from tests.runtime.loop.mutations import one_state, waiting_by_synchronising
from tests.runtime.loop.on_plans import TOLERANCE, latents, plans, recorded_program, same


def ten_recorded_steps(plan_bundle) -> None:
    bundle, program, recorded, guidance = recorded_program("latent4_learned_sigma", "ddpm10", plan_bundle)
    noise = GivenNoise(recorded["z"], recorded["noise"])
    with plans(bundle) as session:
        for _ in range(2):
            final = session.latents(program, recorded["y"].tolist(), guidance, noise)
            assert relative_error(final, recorded["x"][-1]) < TOLERANCE


def tightly_packed(monkeypatch) -> None:
    for module in (device_memory, device_run, device_steps, device_modulation):
        if hasattr(module, "aligned"):
            monkeypatch.setattr(module, "aligned", lambda size: -(-size // 4) * 4)


def steps_backwards(monkeypatch) -> None:
    real = device_memory.Arena.address

    def address(self, record: str) -> int:
        kind, _, step = record.partition("/")
        return real(self, f"step/{max(0, 6 - int(step))}" if kind == "step" else record)

    monkeypatch.setattr(device_memory.Arena, "address", address)


def moved_places(monkeypatch) -> None:
    """Reallocates, as a loop would that lets its buffers grow: captured graphs keep the old address."""
    real = device_run.Run._upload

    def upload(self, *arguments) -> None:
        steps = self._steps
        if steps._graphs:
            self._gpu.free(steps._places["noise"])
            steps._places["noise"] = self._gpu.malloc(10 * steps.draw_bytes)
        real(self, *arguments)

    monkeypatch.setattr(device_run.Run, "_upload", upload)


def cold_capture(monkeypatch) -> None:
    real = device_steps.Steps.launch

    def launch(self, segment) -> None:
        self._enqueued.add(segment.graph)
        real(self, segment)

    monkeypatch.setattr(device_steps.Steps, "launch", launch)


def forgotten_conditioner(monkeypatch) -> None:
    monkeypatch.setattr(device_modulation.Modulation, "_compute", lambda self, first, arena: None)


def forgotten_noise(monkeypatch) -> None:
    monkeypatch.setattr(noise_ahead.NoiseAhead, "take", lambda self: {})


def noise_of_the_last_segment(monkeypatch) -> None:
    """Its addresses are taken for the next one's."""
    real = noise_ahead.NoiseAhead.begin
    monkeypatch.setattr(noise_ahead.NoiseAhead, "begin", lambda self, s: None if s.first == 4 else real(self, s))


def freed_too_early(monkeypatch) -> None:
    real = device_run.Run._leave

    def leave(self, *arguments):
        self._memory.free()
        return real(self, *arguments)

    monkeypatch.setattr(device_run.Run, "_leave", leave)


MUTATIONS = {
    tightly_packed: "not aligned to 256",
    steps_backwards: "assert",
    moved_places: "use after free",
    one_state: "lies over an input",
    cold_capture: "captured before its first enqueue",
    waiting_by_synchronising: "host synchronisation while work is enqueued",
    forgotten_conditioner: "read of memory never written: source of a copy",
    forgotten_noise: "assert",
    noise_of_the_last_segment: "assert",
    freed_too_early: "free while work is enqueued",
}


def test_the_check_that_mutations_break(plan_bundle, gpu: DoubleGpu) -> None:
    ten_recorded_steps(plan_bundle)


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_mutations_are_noticed(plan_bundle, gpu: DoubleGpu, monkeypatch, mutate) -> None:
    mutate(monkeypatch)
    gpu.may_synchronize = False
    with pytest.raises(AssertionError, match=MUTATIONS[mutate]) as caught:
        ten_recorded_steps(plan_bundle)
    assert isinstance(caught.value, DoubleError) or MUTATIONS[mutate] == "assert"


def test_noise_drawn_too_early_is_noticed(plan_bundle, gpu: DoubleGpu, monkeypatch) -> None:
    """In a ring that is too small, the host overwrites pinned memory that is still to be copied."""
    bundle = plan_bundle("gray1_cfg")
    program = bundle.program(sampler="ddpm", steps=30)
    with Session(bundle) as ort, plans(bundle) as device:
        expected = latents(bundle, ort, program)
        same(latents(bundle, device, program), expected)
        (run,) = device.loop._runs.values()
        run._ring = run._ring[:5]
        assert np.abs(latents(bundle, device, program) - expected).max() > 1e-2


def test_evaluations_of_the_run_before_are_noticed(plan_bundle, gpu: DoubleGpu, monkeypatch) -> None:
    """What lies at a place must not stay there when the arena is written anew."""
    monkeypatch.setattr(device_steps.Steps, "begin", lambda self: None)
    bundle = plan_bundle("gray1_cfg")
    program = bundle.program(sampler="ddim", steps=5)
    with Session(bundle) as ort, plans(bundle) as device:
        same(latents(bundle, device, program, guidance=2.0), latents(bundle, ort, program, guidance=2.0))
        expected = latents(bundle, ort, program, guidance=5.0)
        assert np.abs(latents(bundle, device, program, guidance=5.0) - expected).max() > 1e-2


def test_shapes_outside_the_profile_reach_no_context(plan_bundle, gpu: DoubleGpu, monkeypatch) -> None:
    monkeypatch.setattr(device_loop, "check_shape", lambda *arguments: None)
    monkeypatch.setattr(device_loop, "check_fits", lambda *arguments: None)
    bundle = plan_bundle("gray1_cfg")
    with pytest.raises(DoubleError, match="outside the profile"), plans(bundle) as device:
        latents(bundle, device, bundle.program(steps=3), labels=[1] * 9, seeds=list(range(9)), batch=9)
