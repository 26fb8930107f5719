"""Whoever shares a step, each image is the one that it is alone; and everybody gets a turn."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ditedge.runtime import Cancelled, NotFiniteError, Session, open_bundle
from ditedge.runtime.errors import EngineError, RequestError
from ditedge.runtime.loop.engine import Engine, EngineOptions
from ditedge.runtime.serving.options import Limits
from ditedge.runtime.serving.scheduler import ClosingError, Scheduler
from ditedge.runtime.serving.ticket import Asked, LateError
from ditedge.runtime.serving.waiting import BusyError, retry_after
from tests.conftest import overheat
from tests.runtime.serving.mixes import alone, scheduling, with_previews

SECONDS = 60  # that a test waits for what takes some milliseconds


def asked(folder: Path, steps: int = 4, **settings: Any) -> Asked:
    given = {"subject": 1, "seed": 7, "program": open_bundle(folder).program(sampler="ddim", steps=steps)}
    return Asked(**given | settings)


class Slow:
    """An engine that says when it is called, and waits until it may."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.inputs = engine, engine.inputs
        self.called, self.may = threading.Event(), threading.Event()

    def run(self, inputs, outputs, cancel=None) -> None:
        self.called.set()
        assert self.may.wait(SECONDS)
        self._engine.run(inputs, outputs, cancel)

    def close(self) -> None:
        self._engine.close()


def test_two_bundles_and_a_thread(golden_bundle) -> None:
    """Callers of two bundles at once, with the thread that a server has."""
    folders = [golden_bundle(case) for case in ("gray1_cfg", "pixel3_no_null_class")]
    with scheduling(*folders, start=True) as scheduler:
        wanted = [(folder, asked(folder, steps=3 + i, seed=i, guidance=1.0)) for i in range(6) for folder in folders]
        tickets = [scheduler.submit(folder.name, [one])[0] for folder, one in wanted]
        images = [ticket.result(SECONDS) for ticket in tickets]
        for image, (folder, one) in zip(images, wanted, strict=True):
            session = scheduler.sessions[folder.name]
            assert np.array_equal(image, alone(session, one))
        assert scheduler.counts.image_steps == sum(one.program.steps for _, one in wanted)


def test_an_image_joins_and_goes_after_one_step(golden_bundle) -> None:
    folder = golden_bundle("gray1_cfg")
    with scheduling(folder) as scheduler:
        [first] = scheduler.submit(folder.name, [asked(folder, steps=9)])
        scheduler.turn()
        scheduler.turn()
        [second] = scheduler.submit(folder.name, [asked(folder, steps=3)])
        scheduler.turn()
        assert (first.step, first.together, second.step, second.together) == (3, 2, 1, 2)
        first.cancel()
        scheduler.turn()
        assert (first.state, first.step, second.step, second.together) == ("cancelled", 3, 2, 1)
        with pytest.raises(Cancelled, match="after step 3 of 9"):
            first.result()


def test_cancelling_while_a_step_runs_ends_it_after_that_step(golden_bundle) -> None:
    folder = golden_bundle("gray1_cfg")
    with Session(open_bundle(folder)) as plain:
        step = Slow(plain.engine("step"))
        scheduler = Scheduler({"gray": Session(open_bundle(folder), engines={"step": step})}, Limits(a_call=16))
        scheduler.start()
        [ticket] = scheduler.submit("gray", [asked(folder, steps=50)])
        assert step.called.wait(SECONDS)
        ticket.cancel()
        step.may.set()
        with pytest.raises(Cancelled, match="after step 1 of 50"):
            ticket.result(SECONDS)
        scheduler.close()


def test_a_slow_decoder_holds_up_no_step(golden_bundle) -> None:
    folder = golden_bundle("gray1_cfg")
    with Session(open_bundle(folder)) as plain:
        decoder = Slow(plain.engine("decoder"))
        scheduler = Scheduler({"gray": Session(open_bundle(folder), engines={"decoder": decoder})}, Limits(max_batch=2))
        scheduler.start()
        [short] = scheduler.submit("gray", [asked(folder, steps=1)])
        assert decoder.called.wait(SECONDS)
        [long] = scheduler.submit("gray", [asked(folder, steps=20)])
        wait_for(lambda: long.state == "decoding")
        assert short.state == "decoding" and scheduler.decoding == 2
        [third] = scheduler.submit("gray", [asked(folder, steps=1)])  # a whole batch is behind: nobody is admitted
        time.sleep(0.05)
        assert third.state == "queued"
        decoder.may.set()
        assert third.result(SECONDS).shape == short.result().shape == long.result(SECONDS).shape
        scheduler.close()


def wait_for(true: Any) -> None:
    end = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.001)


def test_who_waits_goes_by_age_and_priority(golden_bundle) -> None:
    folder = golden_bundle("gray1_cfg")
    with scheduling(folder, max_batch=1) as scheduler:
        wanted = [asked(folder, steps=1, seed=i, priority=priority) for i, priority in enumerate([0, 0, 1, -1, 0])]
        tickets = [scheduler.submit(folder.name, [one])[0] for one in wanted]
        order = []
        while any(ticket.state == "queued" for ticket in tickets):
            scheduler.turn()
            order += [ticket.asked.seed for ticket in tickets if ticket.started and ticket.asked.seed not in order]
            tickets[order[-1]].result(SECONDS)
        assert order == [2, 0, 1, 4, 3]
        old, late = scheduler.submit(folder.name, [asked(folder, priority=-1), asked(folder, priority=0)])
        old.submitted -= 30  # no priority makes anybody wait for ever
        assert old.rank < late.rank


def test_a_deadline_ends_who_waits_and_who_runs(golden_bundle) -> None:
    folder = golden_bundle("gray1_cfg")
    with scheduling(folder, max_batch=1) as scheduler:
        runs, waits = scheduler.submit(folder.name, 2 * [asked(folder, steps=50, deadline=5.0)])
        scheduler.turn()
        runs.submitted -= 6
        scheduler.turn()
        with pytest.raises(LateError, match=r"not done within 5 s \(step 1 of 50\)"):
            runs.result()
        assert (waits.state, waits.step) == ("running", 1)
        waits.submitted -= 6
        scheduler.turn()
        assert waits.state == "failed"
        [all_day] = scheduler.submit(folder.name, [asked(folder, deadline=1e9)])
        assert all_day.asked.deadline == scheduler.limits.max_seconds


def test_a_full_queue_says_when_to_come_again(golden_bundle) -> None:
    folder = golden_bundle("gray1_cfg")
    with scheduling(folder, max_batch=1, max_queue=2) as scheduler:
        scheduler.submit(folder.name, [asked(folder)])
        scheduler.turn()
        scheduler.submit(folder.name, 2 * [asked(folder)])
        with pytest.raises(BusyError, match="2 images wait, 1 more are over 2: try again in 1 s") as refused:
            scheduler.submit(folder.name, [asked(folder)])
        assert refused.value.retry_after == 1 and len(scheduler.waiting(folder.name)) == 2 and scheduler.refused == 1
        with pytest.raises(RequestError, match="3 images at once, and the queue takes 2"):
            scheduler.submit(folder.name, 3 * [asked(folder)])
    assert retry_after(steps=800, batch=8, seconds=0.5, waiting=4) == 13  # 50 s of work, a place of four
    assert retry_after(steps=10**6, batch=1, seconds=1.0, waiting=1) == 600


def test_what_does_not_fit_is_refused_before_it_waits(golden_bundle) -> None:
    folder = golden_bundle("gray1_cfg")
    with scheduling(folder) as scheduler:
        for complaint, wrong in {
            "class 99": {"subject": 99},
            "seed -1": {"seed": -1},
            "not a number up to 3e38": {"guidance": float("nan")},
            "an estimate every 0": {"preview_every": 0},
        }.items():
            with pytest.raises(RequestError, match=complaint):
                scheduler.submit(folder.name, [asked(folder), asked(folder, **wrong)])
        assert not scheduler.waiting(folder.name)
        with pytest.raises(RequestError, match="model 'x' is not one of gray1_cfg"):
            scheduler.submit("x", [asked(folder)])


def test_estimates_come_when_asked_for_and_end_in_the_picture(golden_bundle) -> None:
    folder = golden_bundle("gray1_cfg")
    with scheduling(folder) as scheduler:
        plain, shown = asked(folder, steps=6), with_previews(asked(folder, steps=6), 2)
        tickets = scheduler.submit(folder.name, [plain, shown])
        seen = []
        tickets[1].listen(lambda ticket: seen.append((ticket.state, ticket.estimate and ticket.estimate.step)))
        for step in range(6):
            scheduler.turn()
            if step in (1, 3):
                wait_for(lambda step=step: tickets[1].estimate and tickets[1].estimate.step == step + 1)
        images = [ticket.result(SECONDS) for ticket in tickets]
        # one more slot, so a sum of one more term: the last bit of a float32 may be another
        assert np.abs(images[0].astype(int) - images[1]).max() <= 1
        assert tickets[1].estimate.image.shape == images[1].shape and tickets[0].estimate is None
        assert seen[-1] == ("done", 4) and ("running", 2) in seen
        tickets[1].listen(lambda ticket: seen.append("again"))
        assert seen[-1] == "again"  # who comes late is told of the end


class Refusing:
    """A step graph's engine that takes `most` images at a time, and none whose guidance is 13."""

    def __init__(self, engine: Engine, most: int) -> None:
        self._engine, self.inputs, self._most = engine, engine.inputs, most

    def run(self, inputs, outputs, cancel=None) -> None:
        if len(inputs["state"]) > self._most or np.any(inputs["combine"] == 13.0):
            raise EngineError("out of memory")
        self._engine.run(inputs, outputs, cancel)

    def close(self) -> None:
        self._engine.close()


def test_a_step_that_fails_is_taken_alone_and_one_image_fails_for_itself(golden_bundle, caplog) -> None:
    folder = golden_bundle("gray1_cfg")
    with Session(open_bundle(folder)) as plain:
        step = Refusing(plain.engine("step"), most=1)
        scheduler = Scheduler({"gray": Session(open_bundle(folder), engines={"step": step})}, Limits(a_call=16))
        with caplog.at_level(logging.CRITICAL, "ditedge.runtime.serving.scheduler"):
            wanted = [asked(folder, seed=1), asked(folder, seed=2, guidance=13.0), asked(folder, seed=3)]
            tickets = scheduler.submit("gray", wanted)
            while scheduler.turn():
                pass
        assert [ticket.step for ticket in tickets] == [4, 0, 4]
        with pytest.raises(EngineError, match="out of memory"):
            tickets[1].result(SECONDS)
        for i in (0, 2):
            assert np.array_equal(tickets[i].result(SECONDS), alone(plain, wanted[i]))
        scheduler.close()


def test_a_picture_that_overflows_fails_alone(gray_bundle: Path) -> None:
    overheat(gray_bundle, 3)
    with scheduling(gray_bundle) as scheduler:
        wanted = [asked(gray_bundle, subject=3), asked(gray_bundle, subject=4)]
        tickets = scheduler.submit(gray_bundle.name, wanted)
        while scheduler.turn():
            pass
        with pytest.raises(NotFiniteError, match="1 of 1 pictures overflowed: image 0 .class 3, seed 7"):
            tickets[0].result(SECONDS)
        session = scheduler.sessions[gray_bundle.name]
        assert np.array_equal(tickets[1].result(SECONDS), alone(session, wanted[1]))


@pytest.mark.parametrize("drain", [True, False])
def test_the_end_keeps_promises_or_cancels(golden_bundle, drain: bool) -> None:
    folder = golden_bundle("gray1_cfg")
    ended = []
    scheduler = Scheduler({"gray": Session(open_bundle(folder))}, Limits(max_batch=2), ended.append)
    scheduler.start()
    assert scheduler.alive
    tickets = scheduler.submit("gray", [asked(folder, steps=50 if drain else 900, seed=i) for i in range(5)])
    scheduler.close(drain=drain)
    assert {ticket.state for ticket in tickets} == {"done" if drain else "cancelled"} and set(ended) == set(tickets)
    assert not scheduler.alive and len(ended) == 5
    again = [threading.Thread(target=scheduler.close) for _ in range(8)]
    for thread in again:
        thread.start()
    for thread in again:
        thread.join()
    with pytest.raises(ClosingError):
        scheduler.submit("gray", [asked(folder)])


def test_bundles_that_cannot_be_served(golden_bundle) -> None:
    plans = EngineOptions(plans=golden_bundle("gray1_cfg"))
    with pytest.raises(RequestError, match="plans run whole programs"):
        Scheduler({"plans": Session(open_bundle(golden_bundle("gray1_cfg")), plans)})


def test_who_waits_for_the_end_is_told_of_nothing_else(golden_bundle) -> None:
    folder = golden_bundle("gray1_cfg")
    with scheduling(folder) as scheduler:
        [ticket] = scheduler.submit(folder.name, [asked(folder, steps=4)])
        ends, changes = [], []
        ticket.listen(lambda one: ends.append(one.state), end_only=True)
        ticket.listen(lambda one: changes.append(one.state))
        while scheduler.turn():
            pass
        ticket.result(SECONDS)
        wait_for(lambda: ends)
        assert ends == ["done"] and len(changes) >= 4
        ticket.listen(lambda one: ends.append("late"), end_only=True)
        assert ends == ["done", "late"]
