"""The step graph by itself: what one sample's broken evaluations do to it, and to the others."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from ditedge.runtime import open_bundle
from ditedge.runtime.bundle.open import Bundle
from ditedge.runtime.loop.engine import EngineOptions
from ditedge.runtime.loop.engines import open_engine
from ditedge.runtime.loop.tables import step_tables

LABELS, HOT = [3, 5, 0], 5


def next_state(bundle: Bundle, bound: float, poison: float | None) -> np.ndarray:
    """[B, K, C, H, W] after one guided DDPM step whose adaLN rows of class HOT hold `poison`."""
    model = bundle.manifest.model
    tables = step_tables(bundle.program(sampler="ddpm", steps=5), model, LABELS, 2.5)
    width = int(bundle.manifest.graphs["conditioner"].outputs[0].shape[1])
    random = np.random.default_rng(7)
    modulation = 0.1 * random.standard_normal((tables.rows, width)).astype(np.float32)
    if poison is not None:
        modulation[tables.conditions["label"][1].tolist().index(HOT)] = poison
    latent = model.latent_shape
    state, noise = random.standard_normal((2, len(LABELS), 1, *latent)).astype(np.float32)
    inputs = {"state": state, "modulation": modulation, "noise": np.ascontiguousarray(noise[:, 0])}
    out = np.empty_like(state)
    with closing(open_engine(bundle.graph_file("step"), EngineOptions())) as engine:
        bounds = np.full(len(LABELS), bound, np.float32)
        engine.run(inputs | tables.inputs(1) | {"x0_bound": bounds}, {"next_state": out})
    return out


@pytest.mark.parametrize("case", ["gray1_cfg", "latent4_learned_sigma"])
@pytest.mark.parametrize("bound", [1.0, 3e38])
@pytest.mark.parametrize("poison", [np.nan, np.inf, 3e38])
def test_what_breaks_one_sample_leaves_the_others_alone(golden_bundle, case: str, bound: float, poison: float) -> None:
    """NaN times a guidance weight of 0 is NaN; and a clamp must not make a number of what is none."""
    bundle = open_bundle(golden_bundle(case))
    expected, actual = next_state(bundle, bound, None), next_state(bundle, bound, poison)
    assert np.isfinite(expected).all()
    assert not np.isfinite(actual[1]).any()
    for good in (0, 2):
        np.testing.assert_array_equal(actual[good], expected[good])


def test_the_sampler_is_no_matrix_product(golden_bundle) -> None:
    """TensorRT-RTX has no float32 GEMM for GPUs before Ampere, and cannot fuse one with the sampler around it."""
    import onnx

    graph = onnx.load(Path(golden_bundle("gray1_cfg")) / "step.onnx").graph
    assert "Einsum" not in {node.op_type for node in graph.node}
