"""Noise is drawn by a thread while the device works: in order, bounded, the same bits; what goes wrong there is heard."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from ditedge.runtime import Cancelled, Session
from ditedge.runtime.loop.noise import SeededNoise
from tests.doubles.gpu_double import DoubleGpu
from tests.runtime.loop.on_plans import LABELS, SEEDS, latents, plans, same


class Watched(SeededNoise):
    """steps: asked for so far, with the thread that asked and how many launches the device had had."""

    def __init__(self, gpu: DoubleGpu, fail_at: int = -1) -> None:
        super().__init__(SEEDS, (1, 8, 8))
        object.__setattr__(self, "asked", [])
        object.__setattr__(self, "gpu", gpu)
        object.__setattr__(self, "fail_at", fail_at)

    def step(self, step: int) -> np.ndarray:
        self.asked.append((step, threading.get_ident(), self.gpu.log.count("step")))
        if step == self.fail_at:
            raise MemoryError("no room for noise")
        return super().step(step)


def test_in_order_by_another_thread_and_no_further_than_a_segment_ahead(plan_bundle, gpu: DoubleGpu) -> None:
    bundle, noise = plan_bundle("gray1_cfg"), Watched(gpu)
    program = bundle.program(sampler="ddpm", steps=30)
    with Session(bundle) as ort, plans(bundle) as device:
        actual = device.latents(program, LABELS, 3.0, noise)
        same(actual, latents(bundle, ort, program))
    assert [step for step, *_ in noise.asked] == list(range(29))
    threads = {thread for _, thread, _ in noise.asked}
    assert len(threads) == 1 and threading.get_ident() not in threads
    assert all(step - done < 8 + 4 for step, _, done in noise.asked), "memory is bounded"
    assert any(step > done for step, _, done in noise.asked[4:]), "the device had not come that far"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ditedge-noise")]


def test_what_the_source_raises_is_heard(plan_bundle, gpu: DoubleGpu) -> None:
    bundle = plan_bundle("gray1_cfg")
    program = bundle.program(sampler="ddpm", steps=30)
    with Session(bundle) as ort, plans(bundle) as device:
        with pytest.raises(MemoryError, match="no room for noise"):
            device.latents(program, LABELS, 3.0, Watched(gpu, fail_at=13))
        assert not gpu.queue
        same(latents(bundle, device, program), latents(bundle, ort, program))


def test_a_cancel_ends_the_thread(plan_bundle, gpu: DoubleGpu) -> None:
    bundle, noise, stop = plan_bundle("gray1_cfg"), Watched(gpu), threading.Event()
    with plans(bundle) as device, pytest.raises(Cancelled):
        device.latents(
            bundle.program(sampler="ddpm", steps=30), LABELS, 3.0, noise,
            on_step=lambda event: stop.set() if event.step == 9 else None, cancel=stop,
        )  # fmt: skip
    assert len(noise.asked) <= 9 + 8 + 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ditedge-noise")]
