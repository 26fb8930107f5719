"""How many images share a call of the engine: what costs the least, by a clock that the engine itself turns."""

from __future__ import annotations

import pytest

from ditedge.runtime import Session, open_bundle
from ditedge.runtime.errors import EngineError
from ditedge.runtime.loop.engine import Engine
from ditedge.runtime.serving.calls import SECONDS, cheapest, images_a_call
from tests.runtime.serving.mixes import scheduling


class Timed:
    """A step graph's engine, and the clock: a call of n images takes seconds[n], and more than the last is refused."""

    def __init__(self, engine: Engine, seconds: dict[int, float]) -> None:
        self._engine, self.inputs = engine, engine.inputs
        self._seconds, self.now, self.called = seconds, 0.0, []

    def run(self, inputs, outputs, cancel=None) -> None:
        count = len(inputs["state"])
        self.called.append(count)
        if count not in self._seconds:
            raise EngineError("out of memory")
        self.now += self._seconds[count]
        self._engine.run(inputs, outputs, cancel)

    def close(self) -> None:
        self._engine.close()


CPU = {1: 0.10, 2: 0.201, 4: 0.42, 8: 0.90, 16: 2.0}
GPU = {1: 0.010, 2: 0.011, 4: 0.013, 8: 0.019, 16: 0.031}


@pytest.mark.parametrize(
    ("seconds", "most", "best", "called"),
    [
        (CPU, 16, 1, 16),
        ({count: 5 * cost for count, cost in CPU.items()}, 16, 1, 2),  # 4 of them would take too long
        (GPU, 16, 16, 16),
        (GPU | {6: 0.015}, 6, 6, 6),
        ({1: 0.1, 2: 0.3, 4: 0.1}, 4, 1, 2),  # after a hopeless one no more are tried
        ({1: 0.2, 2: 0.3}, 16, 2, 4),  # no memory for 4
        ({1: 1000.0}, 16, 1, 1),
        ({}, 1, 1, 0),
    ],
)
def test_what_costs_the_least(golden_bundle, seconds: dict[int, float], most: int, best: int, called: int) -> None:
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    with Session(bundle) as plain, Session(bundle, engines={"step": Timed(plain.engine("step"), seconds)}) as session:
        step = session.engine("step")
        assert images_a_call(session, most, lambda: step.now) == best
        assert max(step.called, default=0) == called
        assert step.now <= SECONDS + 2000 * seconds.get(1, 0)  # one image is measured, however long it takes


def test_fewer_where_more_are_worth_nothing() -> None:
    assert cheapest({1: 1.0, 2: 0.99, 4: 0.985}) == 1
    assert cheapest({1: 1.0, 2: 0.9, 4: 0.899, 8: 0.5}) == 8
    assert cheapest({}) == 1


def test_images_share_turns_and_not_calls(golden_bundle) -> None:
    """Three in calls of two: one turn, two calls."""
    folder = golden_bundle("gray1_cfg")
    with scheduling(folder, a_call=2) as scheduler:
        session = scheduler.sessions[folder.name]
        step = Timed(session.engine("step"), {1: 0.0, 2: 0.0})
        session._host.engines["step"] = step
        from tests.runtime.serving.test_scheduler import asked

        tickets = scheduler.submit(folder.name, [asked(folder, seed=seed) for seed in range(3)])
        scheduler.turn()
        assert [ticket.together for ticket in tickets] == [3, 3, 3] and step.called == [2, 1]
