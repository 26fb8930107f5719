"""A step that never ends still hears a cancel from another thread, and Ctrl-C, twice if need be."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ditedge.runtime import Cancelled, Session, generate, open_bundle
from ditedge.runtime.loop.interruptible import Worker

PATIENCE = 20  # seconds that a busy machine may need for what takes 50 ms


def endless(folder: Path) -> None:
    """The step graph becomes a loop of 2**62 rounds that hands the state on."""
    model = onnx.load(folder / "step.onnx")
    state, result = model.graph.input[0].name, model.graph.output[0].name
    body = helper.make_graph(
        [helper.make_node("Identity", ["more"], ["go_on"]), helper.make_node("Neg", ["old"], ["new"])],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("more", TensorProto.BOOL, []),
            helper.make_tensor_value_info("old", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("new", TensorProto.FLOAT, None),
        ],
    )
    model.graph.ClearField("node")
    model.graph.ClearField("initializer")
    model.graph.initializer.append(helper.make_tensor("rounds", TensorProto.INT64, [], [2**62]))
    model.graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
    model.graph.node.append(helper.make_node("Loop", ["rounds", "yes", state], [result], body=body))
    raw = model.SerializeToString()
    (folder / "step.onnx").write_bytes(raw)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["step.onnx"] = {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@contextmanager
def soon(*actions: Callable[[], object]) -> Iterator[None]:
    """Each action half a second after the one before."""
    timers = [threading.Timer(0.5 * (i + 1), action) for i, action in enumerate(actions)]
    for timer in timers:
        timer.start()
    started = time.monotonic()
    yield
    for timer in timers:
        timer.join()
    assert time.monotonic() - started < PATIENCE


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_a_cancel_is_heard_within_a_step(gray_bundle: Path) -> None:
    endless(gray_bundle)
    cancel, bundle = threading.Event(), open_bundle(gray_bundle)
    with Session(bundle) as session:
        with soon(cancel.set), pytest.raises(Cancelled, match="within a step"):
            generate(bundle, [1], [1], guidance=1.0, cancel=cancel, session=session)
        images = session.images(np.zeros((1, 1, 8, 8), np.float32))  # the sampler goes on
    assert images.shape == (1, 8, 8, 1)


def test_ctrl_c_is_heard_within_a_step(gray_bundle: Path) -> None:
    endless(gray_bundle)
    with soon(ctrl_c), pytest.raises(KeyboardInterrupt):
        generate(open_bundle(gray_bundle), [1], [1], guidance=1.0)


def test_a_second_ctrl_c_leaves_what_does_not_stop() -> None:
    worker, release, asked, ended = Worker(), threading.Event(), [], threading.Event()

    def work() -> None:
        release.wait(PATIENCE)
        ended.set()

    with soon(ctrl_c, ctrl_c), pytest.raises(KeyboardInterrupt):
        worker.run(work, lambda: asked.append(1))
    assert asked == [1] and not ended.is_set()
    release.set()
    assert ended.wait(PATIENCE)


def test_calls_are_made_one_after_another_and_raise_what_they_raise() -> None:
    worker, made = Worker(), []
    for _ in range(3):
        worker.run(lambda: made.append(threading.current_thread().name), lambda: None)
    with pytest.raises(ZeroDivisionError):
        worker.run(lambda: 1 // 0, lambda: None)
    assert made == ["ditedge-engine"] * 3


def test_a_worker_that_is_gone_leaves_no_thread() -> None:
    def threads() -> int:
        return sum(thread.name == "ditedge-engine" for thread in threading.enumerate())

    before, worker = threads(), Worker()
    assert threads() == before + 1
    del worker
    deadline = time.monotonic() + PATIENCE
    while threads() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() == before
