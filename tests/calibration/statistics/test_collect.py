"""Statistics against numpy reductions of the activations themselves; interruption, memory, and what invalidates them."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from ditedge.calibration.graph.linears import find_linears
from ditedge.calibration.graph.surgery import load_graph, save_graph
from ditedge.calibration.pool import pool_of, spread
from ditedge.calibration.statistics.collect import CalibrationSet, Statistics, collect_statistics
from ditedge.runtime import Session, open_bundle
from ditedge.runtime.errors import RequestError
from ditedge.runtime.loop.noise import SeededNoise
from tests.conftest import ROOT

ONE_BATCH = CalibrationSet(samples=2, timesteps=2, groups=2, batch=2)


def assert_same(a: Statistics, b: Statistics) -> None:
    assert a.fingerprint == b.fingerprint and set(a.layers) == set(b.layers)
    for name, layer in a.layers.items():
        for field, array in vars(layer).items():
            np.testing.assert_array_equal(array, vars(b.layers[name])[field], err_msg=f"{name} {field}")


class Spy:
    """A step engine with every linear's input as an output: what the statistics are statistics of."""

    def __init__(self, path: Path) -> None:
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.inputs = frozenset(tensor.name for tensor in self.session.get_inputs())
        self.names = [tensor.name for tensor in self.session.get_outputs()]
        self.runs: list[dict[str, np.ndarray]] = []

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
        cancel: threading.Event | None = None,
    ) -> None:
        values = self.session.run(self.names, {k: v for k, v in inputs.items() if k in self.inputs})
        self.runs.append(dict(zip(self.names, values, strict=True)))
        outputs["next_state"][...] = self.runs[-1]["next_state"]

    def close(self) -> None:
        pass


def test_statistics_are_those_of_the_activations(golden_bundle, tmp_path: Path) -> None:
    """samples=2 is one guided image and one that is not, in two batches; of 3 steps the first and the last count."""
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    program, info = bundle.program(sampler="ddim", steps=3), bundle.manifest.model
    statistics = collect_statistics(bundle, pool_of(bundle), program, ONE_BATCH, tmp_path / "cache.safetensors")

    model = load_graph(bundle.graph_file("step"))
    inputs = {linear.name: linear.input for linear in find_linears(model)}
    model.graph.outputs.extend(inputs.values())
    save_graph(model, tmp_path / "spy.onnx")
    spy = Spy(tmp_path / "spy.onnx")
    shape = info.latent_shape
    with Session(bundle, engines={"step": spy}) as session:
        for half, guidance in enumerate((bundle.manifest.defaults.guidance, 1.0)):
            session.latents(program, spread(1, info.num_classes), guidance, SeededNoise([(1 << 32) + half], shape))
    guided, plain = spy.runs[:3], spy.runs[3:]
    for name, layer in statistics.layers.items():
        for group, step in enumerate((0, 2)):
            seen = np.concatenate([run[step][inputs[name].name] for run in (guided, plain)]).astype(
                np.float64
            )  # [3,T,I]
            rows = seen.reshape(-1, seen.shape[-1])
            assert layer.rows[group] == len(rows)
            np.testing.assert_array_equal(layer.channel_max[group], rows.max(0))
            np.testing.assert_array_equal(layer.channel_min[group], rows.min(0))
            # float32 sums of a few hundred terms inside the graph
            np.testing.assert_allclose(layer.channel_sum[group], rows.sum(0), rtol=1e-4, atol=1e-4 * np.abs(rows).max())
            np.testing.assert_allclose(layer.channel_square[group], (rows**2).sum(0), rtol=1e-4)
            np.testing.assert_array_equal(layer.token_amax[group], np.abs(seen).max(axis=(0, 2)))
            np.testing.assert_allclose(layer.token_amax_sum[group], np.abs(seen).max(axis=2).sum(0), rtol=1e-5)


KILLED = """
import sys, time
sys.path.insert(0, ".")
from pathlib import Path
from ditedge.calibration.statistics.collect import CalibrationSet, collect_statistics
from ditedge.calibration.pool import pool_of
from ditedge.runtime import open_bundle
bundle = open_bundle(sys.argv[1])
def stop(what, done, total):
    if done > total * 0.6:
        print("past the middle", flush=True)
        time.sleep(600)
collect_statistics(bundle, pool_of(bundle), bundle.program("ddim-10"), CalibrationSet(4, 4, 2, 2), Path(sys.argv[2]), stop)
"""


def test_killed_and_resumed_is_the_same(collected, tmp_path: Path) -> None:
    folder, _, expected = collected()
    cache, bundle = tmp_path / "cache.safetensors", open_bundle(folder)
    child = subprocess.Popen([sys.executable, "-c", KILLED, folder, cache], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "past the middle\n"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL and cache.is_file()
    steps: list[int] = []
    resumed = collect_statistics(
        bundle,
        pool_of(bundle),
        bundle.program("ddim-10"),
        CalibrationSet(4, 4, 2, 2),
        cache,
        lambda what, done, total: steps.append(done),
    )
    assert steps == list(range(11, 21)), "the first batch's 10 steps must not run again"
    assert_same(resumed, expected)


def test_twice_the_set_takes_the_same_memory(golden_bundle, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    peaks = []
    gc.collect()
    gc.freeze()  # what earlier tests left is not looked through at every step
    for samples in (4, 4, 8, 16):  # the first run also fills the caches of Python and ONNX Runtime
        gc.collect()
        tracemalloc.start()
        points, cache = CalibrationSet(samples=samples, timesteps=3, groups=3, batch=2), f"{samples}-{len(peaks)}"
        program = bundle.program(sampler="ddim", steps=3)
        # Garbage in cycles waits for the collector, which comes when it likes: 5 % of the peak. Called at every step, 0.3 %.
        collect_statistics(
            bundle, pool_of(bundle), program, points, tmp_path / cache, lambda what, done, total: gc.collect()
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks[2:]) < 1.05 * peaks[1], peaks


def test_the_cache_is_used_only_for_what_it_is_of(collected, tmp_path: Path) -> None:
    folder, cache, expected = collected()
    bundle, points = open_bundle(folder), CalibrationSet(4, 4, 2, 2)
    ran: list[int] = []
    again = collect_statistics(
        bundle, pool_of(bundle), bundle.program("ddim-10"), points, cache, lambda what, done, total: ran.append(done)
    )
    assert not ran
    assert_same(again, expected)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(cache.read_bytes()[:-100])
    assert_same(collect_statistics(bundle, pool_of(bundle), bundle.program("ddim-10"), points, damaged), expected)
    other = tmp_path / "other.safetensors"
    other.write_bytes(cache.read_bytes())
    program = bundle.program(sampler="ddim", steps=2)
    assert collect_statistics(bundle, pool_of(bundle), program, points, other).fingerprint != expected.fingerprint


def test_a_set_that_makes_no_sense_is_refused(golden_bundle, tmp_path: Path) -> None:
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    for points in (replace(ONE_BATCH, samples=0), replace(ONE_BATCH, groups=3)):
        with pytest.raises(RequestError, match="calibration set"):
            collect_statistics(bundle, pool_of(bundle), bundle.program(), points, tmp_path / "cache")
