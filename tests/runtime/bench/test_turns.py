"""Contenders take turns, stopped while they wait; one that fails takes no other with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ditedge.runtime.bench.turns import STOPPABLE, Made, _warm, _Worker, isolated, peak_memory, take_turns
from ditedge.runtime.errors import EngineError
from tests.conftest import ROOT

CONTENDER = f"""if True:
    import sys, time
    sys.path.insert(0, {str(ROOT)!r})
    from ditedge.runtime.bench.turns import Made, serve
"""


def contender(parts: str, facts: str = "{}") -> list[str]:
    """parts: Python of a dict."""
    return [sys.executable, "-c", f"{CONTENDER}    serve(lambda: Made({parts}, {facts}))\n"]


def test_every_round_has_a_lap_of_every_part() -> None:
    command = contender("{'step': lambda: 0.25, 'decoder': lambda: time.sleep(0.03)}", "{'steps': 7}")
    a, b = take_turns([command, command], 4)
    assert not isinstance(a, EngineError) and not isinstance(b, EngineError)
    for laps in (a, b):
        assert laps.rounds("step") == [0.25] * 4, "a part may say itself what counts"
        assert len(laps.calls["decoder"]) == 4 and all(seconds >= 0.03 for seconds in laps.rounds("decoder"))
        assert all(len(calls) >= 2 for calls in laps.calls["decoder"]), "quick parts are called several times"
        assert laps.facts == {"steps": 7} and laps.peak_bytes > 5e6 and laps.busy["decoder"] < 0.9


def test_failures_stay_alone_whenever_they_happen() -> None:
    good = contender("{'step': lambda: 0.5}")
    late = contender("{'step': iter([0.1] * 2).__next__}")  # warm, and then StopIteration
    early = [sys.executable, "-c", "raise SystemExit('no such library')"]
    refused = contender("__import__('ditedge').no_such_thing")
    found = take_turns([good, early, late, refused, good], 3)
    assert [isinstance(laps, EngineError) for laps in found] == [False, True, True, True, False]
    assert "no such library" in str(found[1]) and "StopIteration" in str(found[2])
    assert "AttributeError" in str(found[3]) and "no_such_thing" in str(found[3])
    assert found[0].rounds("step") == found[4].rounds("step") == [0.5] * 3


def test_a_time_limit_leaves_three_rounds() -> None:
    (laps,) = take_turns([contender("{'step': lambda: time.sleep(0.4)}")], 50, seconds=1)
    assert 3 <= len(laps.calls["step"]) < 10


def test_variables_reach_their_own_contender() -> None:
    command = contender("{'step': lambda: float(__import__('os').environ['SAID'])}")
    a, b = take_turns([command, command], 1, environments=[{"SAID": "1"}, {"SAID": "2"}])
    assert (a.rounds("step"), b.rounds("step")) == ([1.0], [2.0])


@pytest.mark.skipif(not STOPPABLE or not Path("/proc").is_dir(), reason="looks into Linux's /proc")
def test_who_waits_is_stopped_and_ends_with_its_parent() -> None:
    worker = _Worker(contender("{'step': lambda: 1.0}"), {})
    try:
        with worker.turn():
            assert worker.receive()["parts"].keys() == {"step"}
        assert _state(worker._process.pid) == "T"
        with worker.turn():
            assert worker.ask(["step", 2])["seconds"] == [1.0, 1.0]
    finally:
        worker.close()
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from ditedge.runtime.bench.turns import _Worker;"
        f"w = _Worker({contender('{}')!r}, {{}})\nwith w.turn(): w.receive()\n"
        "import os; print(w._process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    child = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or _state(child) == "Z":
            return
        time.sleep(0.05)
    os.kill(child, 9)
    raise AssertionError("a stopped contender outlived its parent")


def _state(pid: int) -> str:
    for _ in range(100):  # a signal takes a moment
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state in "TZ":
            return state
        time.sleep(0.02)
    return state


def test_warming_up_counts_the_wall_whatever_a_part_says() -> None:
    assert max(_warm(lambda: 1000.0)) < 1 and Made({}).facts == {} and peak_memory() > 1e6


def test_the_child_has_this_path_without_the_working_folder() -> None:
    command = isolated("ditedge.runtime.bench.contender", ["x"])
    path = json.loads(command[4])
    assert path[0] == str(ROOT) and "" not in path and command[1] == "-I"
