"""What `bench/serve.py` says of a server beside the answers: its turns, its memory over time."""

from __future__ import annotations

import os
import re
import time

import pytest

from bench import serve
from bench.svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, line_chart
from tests.runtime.serving.serving import client
from tests.runtime.serving.test_api import IMAGES


def test_turns_and_what_they_cost_are_read_of_the_metrics(golden_bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with client(golden_bundle("gray1_cfg"), alone=False) as server:
        monkeypatch.setattr(serve, "ask", lambda address, method, path: (200, server.get(path).content))
        before = serve.snapshot("", None)
        server.post(IMAGES, json={"prompt": "3", "n": 2, "num_inference_steps": 4})
        after = serve.snapshot("", None)
    assert after.image_steps - before.image_steps == 8 and 4 <= after.turns - before.turns <= 8
    assert 0 < after.step_seconds - before.step_seconds < after.turn_seconds - before.turn_seconds
    said = serve.summary(serve.Record(), 1.0, before, after)
    assert 1 <= said["images_in_a_turn"] <= 2 and 0 < said["around_the_engine"]["percent_of_a_turn"] < 100


def test_memory_is_watched_while_the_block_runs() -> None:
    with serve.watched(os.getpid(), every=0.01) as found:
        time.sleep(0.1)
    count = len(found)
    assert count > 1 and all(megabytes > 1 for _, megabytes in found) and found[-1][0] >= found[0][0]
    with serve.watched(None) as nothing:
        pass
    assert nothing == [] and len(found) == count


def test_a_line_lies_where_its_numbers_are() -> None:
    svg = line_chart([(0, 0), (5, 50), (20, 100)], "minutes", "MB")
    found = re.search(r'polyline points="([^"]*)"', svg)
    assert found is not None
    left, middle, right = (tuple(map(float, pair.split(","))) for pair in found[1].split())
    assert left == (LEFT, HEIGHT - BOTTOM) and right == (WIDTH - RIGHT, TOP)
    assert middle == pytest.approx((LEFT + (WIDTH - LEFT - RIGHT) / 4, (HEIGHT - BOTTOM + TOP) / 2), abs=0.1)
    assert svg.startswith('<svg xmlns="http://www.w3.org/2000/svg"') and ">minutes</text>" in svg
