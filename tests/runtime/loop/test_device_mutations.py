"""Mutations: each breaks one function of the device loop, and what its tests check must notice."""

from __future__ import annotations

import numpy as np
import pytest

from ditedge.runtime import Session
from ditedge.runtime.loop import device_loop, device_memory, device_run
from ditedge.runtime.loop.device_tables import parts_of_step
from ditedge.runtime.loop.noise import GivenNoise
from ditedge.runtime.loop.verify import relative_error
from tests.doubles.gpu_double import DoubleError, DoubleGpu
from tests.runtime.loop.on_plans import LABELS, SEEDS, TOLERANCE, latents, plans, recorded_program, same


def ten_recorded_steps(plan_bundle) -> None:
    bundle, program, recorded, guidance = recorded_program("latent4_learned_sigma", "ddpm10", plan_bundle)
    noise = GivenNoise(recorded["z"], recorded["noise"])
    with plans(bundle) as session:
        for _ in range(2):
            final = session.latents(program, recorded["y"].tolist(), guidance, noise)
            assert relative_error(final, recorded["x"][-1]) < TOLERANCE


def tightly_packed(monkeypatch) -> None:
    for module in (device_memory, device_run):
        monkeypatch.setattr(module, "aligned", lambda size: -(-size // 4) * 4)


def steps_backwards(monkeypatch) -> None:
    monkeypatch.setattr(device_run, "parts_of_step", lambda shape, step: parts_of_step(shape, 9 - step))


def moved_arena(monkeypatch) -> None:
    real = device_memory.Arena.upload

    def upload(self, parts, stream) -> None:
        """Reallocates, as a loop would that lets its buffers grow: captured graphs keep the old address."""
        if any(self._base == block.address and block.written.any() for block in self._gpu.live):
            self._gpu.free(self._base)
            self._base = self._gpu.malloc(self._size)
        real(self, parts, stream)

    monkeypatch.setattr(device_memory.Arena, "upload", upload)


def one_state(monkeypatch) -> None:
    real = device_run.Run._step
    monkeypatch.setattr(
        device_run.Run, "_step", lambda self, s, m, n, states: real(self, s, m, n, (states[0], states[0]))
    )


def cold_capture(monkeypatch) -> None:
    monkeypatch.setattr(device_run.Run, "_warm_up", lambda self: None)


def waiting_by_synchronising(monkeypatch) -> None:
    monkeypatch.setattr(device_run, "wait", lambda gpu, event: gpu.synchronize(next(iter(gpu.streams))))


def forgotten_conditioner(monkeypatch) -> None:
    monkeypatch.setattr(device_run.Run, "_modulate", lambda self, call: None)


def forgotten_noise(monkeypatch) -> None:
    monkeypatch.setattr(device_run.Run, "_upload_noise", lambda self, noise, first, last: None)


def freed_too_early(monkeypatch) -> None:
    real = device_run.Run._upload_noise

    def upload(self, noise, first, last) -> None:
        real(self, noise, first, last)
        self._memory.free()

    monkeypatch.setattr(device_run.Run, "_upload_noise", upload)


MUTATIONS = {
    tightly_packed: "not aligned to 256",
    steps_backwards: "assert",
    moved_arena: "use after free",
    one_state: "lies over an input",
    cold_capture: "captured before its first enqueue",
    waiting_by_synchronising: "host synchronisation while work is enqueued",
    forgotten_conditioner: "read of memory never written: input modulation",
    forgotten_noise: "read of memory never written: input noise",
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
    assert isinstance(caught.value, DoubleError) or mutate is steps_backwards


def test_noise_uploaded_too_early_is_noticed(plan_bundle, gpu: DoubleGpu, monkeypatch) -> None:
    """Without waiting for the ring's oldest part, the host overwrites pinned memory that is still to be copied."""
    real = device_run.Run.__init__

    def impatient(self, device, shape, tables) -> None:
        real(self, device, shape, tables)
        self._events += [gpu.event() for _ in range(20)]
        self._ahead += 20

    monkeypatch.setattr(device_run, "NOISE_BYTES", 2 * 5 * 8 * 8 * 4)
    bundle = plan_bundle("gray1_cfg")
    program = bundle.program(sampler="ddpm", steps=11)
    with Session(bundle) as ort, plans(bundle) as device:
        same(latents(bundle, device, program), latents(bundle, ort, program))
        monkeypatch.setattr(device_run.Run, "__init__", impatient)
        other = LABELS[:4]  # another shape, so that its run is made anew
        expected = latents(bundle, ort, program, labels=other, seeds=SEEDS[:4])
        actual = latents(bundle, device, program, labels=other, seeds=SEEDS[:4])
        assert np.abs(actual - expected).max() > 1e-2


def test_shapes_outside_the_profile_reach_no_context(plan_bundle, gpu: DoubleGpu, monkeypatch) -> None:
    monkeypatch.setattr(device_loop, "check_shape", lambda *arguments: None)
    monkeypatch.setattr(device_loop, "check_fits", lambda *arguments: None)
    bundle = plan_bundle("gray1_cfg")
    with pytest.raises(DoubleError, match="outside the profile"), plans(bundle) as device:
        latents(bundle, device, bundle.program(steps=3), labels=[1] * 9, seeds=list(range(9)), batch=9)
