"""Rooflines: multiply-adds against sums by hand, limits of known times, a graph that is really run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper

from bench.roofline.__main__ import markdown
from bench.roofline.counts import FLOAT, INTEGER, Node, Tensor, count
from bench.roofline.limits import Work, limit_of, limits_of
from bench.roofline.peaks import measure_peaks, product_model
from bench.roofline.profiles import Profile, graphs_of, median_run, profiled
from ditedge.runtime import open_bundle
from tests.conftest import BUNDLES


def node(operator: str, inputs: list[tuple], output: tuple, dtype: str = "float") -> Node:
    return Node(operator, [Tensor(dtype, shape) for shape in inputs], [Tensor("float", output)])


@pytest.mark.parametrize(
    ("executed", "kind", "macs", "weights"),
    [
        (node("MatMul", [(2, 64, 192)], (2, 64, 576)), "linear", {FLOAT: 2 * 64 * 192 * 576}, 4 * 192 * 576),
        (node("MatMul", [(2, 64, 192), (192, 576)], (2, 64, 576)), "linear", {FLOAT: 2 * 64 * 192 * 576}, 4 * 192 * 576),
        (node("Gemm", [(3, 10)], (3, 7)), "linear", {FLOAT: 3 * 10 * 7}, 4 * 70),
        (node("MatMulIntegerToFloat", [(128, 192), ()], (128, 576), "uint8"), "linear", {INTEGER: 128 * 192 * 576}, 192 * 576),
        (node("DynamicQuantizeMatMul", [(128, 192)], (128, 576)), "linear", {INTEGER: 128 * 192 * 576}, 192 * 576),
        (node("MatMulNBits", [(4, 128)], (4, 32)), "linear", {FLOAT: 4 * 128 * 32}, 128 * 32 // 2),
        (node("MatMul", [(2, 3, 64, 64), (2, 3, 64, 64)], (2, 3, 64, 64)), "attention", {FLOAT: 2 * 3 * 64**3}, 0),
        (node("MultiHeadAttention", [(2, 64, 192)] * 3, (2, 64, 192)), "attention", {FLOAT: 2 * 2 * 64 * 64 * 192}, 0),
        (node("Attention", [(2, 3, 64, 32), (2, 3, 10, 32), (2, 3, 10, 32)], (2, 3, 64, 32)), "attention",
         {FLOAT: 2 * 2 * 3 * 64 * 10 * 32}, 0),
        (node("Conv", [(2, 1, 32, 32), (192, 1, 4, 4), (192,)], (2, 192, 8, 8)), "linear",
         {FLOAT: 2 * 192 * 8 * 8 * 1 * 4 * 4}, 4 * 192 * 16),
        (node("Transpose", [(2, 64, 192)], (2, 192, 64)), "moving", {}, 0),
        (node("Add", [(2, 64, 192), (192,)], (2, 64, 192)), "element by element", {}, 0),
    ],
)  # fmt: skip
def test_multiply_adds_are_those_of_the_sum_by_hand(executed: Node, kind: str, macs: dict, weights: int) -> None:
    found = count(executed)
    assert (found.kind, found.macs, found.weights) == (kind, macs, weights)


def test_bytes_of_activations() -> None:
    assert count(node("Add", [(2, 8), (8,)], (2, 8))).activations == 4 * (16 + 8 + 16)
    assert count(node("MatMul", [(2, 8)], (2, 4))).activations == 4 * (16 + 8), "weights are counted apart"


def macs_of_step(bundle: Path, evaluations: int) -> int:
    """Of the network's trunk, by its sizes: what a DiT's paper would say."""
    model = open_bundle(bundle).manifest.model
    tokens, width = (model.input_size // model.patch_size) ** 2, model.hidden_size
    block = 4 * width**2 + 2 * width * round(model.mlp_ratio * width) + 2 * tokens * width
    ends = model.patch_size**2 * (model.in_channels + model.out_channels) * width
    return evaluations * tokens * (model.depth * block + ends)


@pytest.mark.parametrize("name", ["gray1_cfg", "latent4_learned_sigma"])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_step_graph_has_the_multiply_adds_of_its_network(name: str, batch: int) -> None:
    bundle = BUNDLES / name
    graphs = graphs_of(bundle, batch)
    profile = profiled(*graphs["step"], threads=1)
    whole, kinds = limits_of("step", profile, {FLOAT: 1e9, INTEGER: 4e9, "memory": 1e9})
    guided = open_bundle(bundle).manifest.model.null_class is not None
    assert round(1e9 * whole.gigamacs[FLOAT]) == macs_of_step(bundle, batch * (2 if guided else 1))
    assert sum(kind.share for kind in kinds) == pytest.approx(1) and {"linear", "attention"} <= {k.name for k in kinds}
    assert whole.milliseconds > 0 and graphs.keys() >= {"conditioner", "step"}


def test_the_work_is_the_same_on_another_engine() -> None:
    """Counted on ONNX Runtime; the time is the other engine's, so kinds of layers have none in its table."""
    pytest.importorskip("openvino")
    graphs = graphs_of(BUNDLES / "gray1_cfg", 1)
    ours, theirs = (profiled(*graphs["step"], threads=1, provider=provider) for provider in ("cpu", "openvino"))
    works = [limits_of("step", profile, {FLOAT: 1e9, INTEGER: 4e9, "memory": 1e9})[0] for profile in (ours, theirs)]
    assert works[0].gigamacs == works[1].gigamacs and works[0].megabytes == works[1].megabytes
    assert ours.seconds != theirs.seconds > 0


def test_which_limit_binds() -> None:
    peaks = {FLOAT: 2e9, INTEGER: 8e9, "memory": 1e9}
    bound = limit_of("x", 0.010, Work({FLOAT: 2_000_000, INTEGER: 8_000_000}, 1_000_000), peaks)
    assert (bound.compute_ms, bound.memory_ms) == pytest.approx((2.0, 1.0))
    assert bound.binds == "arithmetic" and bound.fraction == pytest.approx(0.2)
    starved = limit_of("x", 0.010, Work({FLOAT: 2_000_000}, 5_000_000), peaks)
    assert starved.binds == "memory" and starved.fraction == pytest.approx(0.5)


def test_the_median_run_is_one_of_the_runs() -> None:
    """Three runs of two nodes; the first, in which memory is touched for the first time, does not count."""
    events = [
        {"cat": "Node", "name": f"n{i % 2}_kernel_time", "dur": dur,
         "args": {"op_name": "Add", "input_type_shape": [{"float": [i]}], "output_type_shape": [{"float": [i]}]}}
        for i, dur in enumerate([900, 900, 10, 20, 11, 25, 9, 21])
    ]  # fmt: skip
    events.insert(0, {"cat": "Session", "name": "model_run", "dur": 1})
    assert [round(1e6 * each.seconds) for each in median_run(events, 4)] == [10, 20]


def test_peaks_are_of_right_products() -> None:
    import onnxruntime

    for arithmetic, a in ((FLOAT, np.ones((2, 8), np.float32)), (INTEGER, np.full((2, 8), 3, np.uint8))):
        model = product_model(arithmetic, 8, 4)
        (weight,) = model.graph.initializer
        expected = a.astype(np.float64) @ numpy_helper.to_array(weight).astype(np.float64)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        assert np.allclose(session.run(None, {"a": a})[0], expected)


def test_peaks_and_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.roofline import peaks

    monkeypatch.setattr(peaks, "MEMORY_BYTES", 1 << 20)
    monkeypatch.setattr(peaks, "SECONDS", 0.002)
    found = measure_peaks(1, ((16, 32, 48),))
    assert set(found) == {FLOAT, INTEGER, "torch float32", "torch bf16", "memory"} and all(
        v > 0 for v in found.values()
    )
    executed = replace(node("MatMul", [(2, 8)], (2, 4)), seconds=0.003)
    profile = Profile(0.004, (executed,), 100)
    whole, kinds = limits_of("step", profile, found)
    row = {"bundle": "b", "batch": 2, "threads": 1, **whole.json(), "kinds": [kind.json() for kind in kinds]}
    single = row | {"batch": 1}
    machine = {"processor": "P", "processors": 2, "kernels": "K", "load": 0.5}
    text = markdown({"machine": machine, "peaks": {1: found}, "rows": [single, row]})
    assert "| b | step | 2 | 1 | 4 | 2 |" in text and "| b | linear | 100% | 3 |" in text
