"""More clients than a server has places: everybody gets a picture or a 429, and its memory stays what it was.

Nothing here depends on how fast the machine is: what 3 times its capacity is like is for bench/serve.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench.serve import ask, crowd, memory
from tests.runtime.serving.process import serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the server's memory from /proc"),
]
STEPS, BATCH, QUEUE, CLIENTS = [2, 20], 4, 16, 60  # three times as many as have a place
IMAGES = 400


def done(address: str) -> int:
    """Images that the server counts as made."""
    lines = ask(address, "GET", "/metrics")[1].decode().splitlines()
    return sum(
        int(float(line.split()[-1])) for line in lines if line.startswith("ditedge_images_total") and "done" in line
    )


def test_three_times_as_many_as_have_a_place(golden_bundle, tmp_path: Path) -> None:
    options = ["--engine", golden_bundle("gray1_cfg"), "--max-batch", BATCH, "--max-queue", QUEUE]
    with serving(tmp_path / "log.txt", *options) as server:
        first = crowd(server.address, STEPS, IMAGES // 4, CLIENTS)  # the allocator has its peak
        before = memory(server.process.pid)
        record = crowd(server.address, STEPS, IMAGES, CLIENTS)
        more = memory(server.process.pid) - before
        assert set(record.statuses) == {200, 429}, record.statuses
        assert more < 30, f"{more:.0f} MB more after {sum(record.statuses.values())} requests"
        assert done(server.address) == first.done + record.done, "an image was made for nobody, or lost"
        short, long = (len(record.latencies[steps]) for steps in STEPS)
        assert min(short, long) > 0.2 * record.done, "one kind of request starves"
        model = json.loads(ask(server.address, "GET", "/v1/status")[1])["models"]["gray1_cfg"]
        assert (model["waiting"], model["running"]) == (0, [])
        status, _ = ask(server.address, "POST", "/v1/images/generations", {"prompt": "1"})
        assert status == 200 and "Traceback" not in (tmp_path / "log.txt").read_text()
