"""Three times what a server can do: everybody gets a picture or a 429, and its memory stays what it was."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.serve import ask, capacity, load
from tests.runtime.serving.process import serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the server's memory from /proc"),
]
SECONDS, STEPS, QUEUE = 20, [2, 20], 16


def resident(pid: int) -> float:
    """MB."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def test_three_times_as_much_as_it_can(golden_bundle, tmp_path: Path) -> None:
    options = ["--engine", golden_bundle("gray1_cfg"), "--max-batch", 4, "--max-queue", QUEUE]
    with serving(tmp_path / "log.txt", *options) as server:
        can = capacity(server.address, STEPS, images=100, at_a_time=12)
        load(server.address, 3 * can, SECONDS / 4, STEPS, seed=1)  # the allocator has its peak
        before = resident(server.process.pid)
        record = load(server.address, 3 * can, SECONDS, STEPS, seed=2)
        more = resident(server.process.pid) - before
        assert set(record.statuses) <= {200, 429} and record.statuses[429] > 0, record.statuses
        assert record.done > 0.5 * can * SECONDS, "it does less than when it has time"
        assert more < 30, f"{more:.0f} MB more after {sum(record.statuses.values())} requests"
        status, _ = ask(server.address, "POST", "/v1/images/generations", {"prompt": "1"})
        assert status == 200 and "Traceback" not in (tmp_path / "log.txt").read_text()
