"""`verify --layers` through polygraphy, in its own process: the layer that was broken is the one that is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from ditedge.calibration.formats.int8 import dynamic_int8
from ditedge.calibration.graph import surgery
from ditedge.calibration.graph.linears import find_linears
from ditedge.calibration.graph.lowering import lower
from ditedge.calibration.layers import prepare
from ditedge.calibration.layers.child import errors_of
from ditedge.calibration.layers.compare import _measured, compare_layers
from ditedge.calibration.layers.inputs import inputs_of, letters_of, real_step
from ditedge.calibration.layers.record import Layers
from ditedge.calibration.layers.request import LayersOptions
from ditedge.runtime import open_bundle
from ditedge.runtime.errors import EngineError, RequestError
from ditedge.runtime.loop.engine import EngineOptions
from ditedge.runtime.loop.verification import VerifyRequest
from ditedge.runtime.loop.verify import read_golden, relative_error
from ditedge.runtime.report import silent
from tests.calibration.layers.conftest import scaled

BROKEN = "blocks.1.mlp.fc1"


def layers(engine: Path, reference: Path | None, provider: str = "cpu", **options: object) -> Layers:
    request = VerifyRequest(engine, EngineOptions(provider))
    return compare_layers(request, LayersOptions(True, reference, **options))  # type: ignore[arg-type]


def test_the_scaled_layer_is_named(gray: Path, derived) -> None:
    found = layers(derived("broken", scaled(BROKEN, 1.5)), gray)
    assert not found.passed and found.same == ["conditioner", "decoder"]
    graph, first = found.first_beyond or pytest.fail("nothing is beyond")
    assert (graph, first.point.layer, first.point.own) == ("step", BROKEN, True)
    assert first.error == pytest.approx(0.5, rel=1e-3) and first.jump == pytest.approx(0.5, rel=1e-3)
    assert (found.largest_jump or found.first_beyond)[1] == first
    tensors = found.graphs[0].compared
    place = tensors.index(first)
    assert all(tensor.error == 0 for tensor in tensors[:place]), "what comes before it is the same graph"
    assert all(tensor.error for tensor in tensors if tensor.point.layer == "blocks.1.mlp.fc2" and tensor.point.own)
    assert tensors[-1].point.tensor == "next_state" and tensors[-1].error
    assert not found.unmatched


def test_the_layer_that_overflows_in_float16_is_named(gray: Path, derived) -> None:
    """Its product is of 1e7 in float32, which is fine there."""
    reference = derived("large", scaled(BROKEN, 1e7))
    half = derived("half", lambda model: lower(model, ir.DataType.FLOAT16), "float16", reference)
    found = layers(half, reference)
    _, first = found.first_beyond or pytest.fail("nothing is beyond")
    assert (first.point.layer, first.point.own, first.error) == (BROKEN, True, np.inf)
    before = [t.error for t in found.graphs[0].compared[: found.graphs[0].compared.index(first)]]
    assert 0 < max(before) < 2e-2, "rounded as a GPU rounds, and no more than that"
    assert json.loads(json.dumps(found.summary(), allow_nan=True))["first_beyond"]["layer"] == BROKEN


def test_an_int8_graph_that_is_right_passes(gray: Path, derived) -> None:
    found = layers(derived("int8", lambda model: dynamic_int8(model, find_linears(model))), gray, tolerance=0.2)
    assert found.passed
    errors = {row.layer: row.error for row in found.graphs[0].rows()}
    assert 1e-4 < errors["blocks.0.attn.qkv"] < 0.05
    assert [tensor.point.op for _, tensor in found.unmatched] == ["Softmax", "Softmax"]
    text = "\n".join(found.lines())
    assert "not compared, not in that graph: step's softmax, step's softmax_1" in text


def test_the_conditioner_is_compared_too(gray: Path, tmp_path: Path) -> None:
    from tests.calibration.variants import edit_weights, variant

    crooked = variant(gray, tmp_path / "crooked", edit_weights(lambda weight: weight * 1.2), "conditioner.onnx")
    found = layers(crooked, gray)
    assert found.same == ["decoder", "step"] or found.same == ["step", "decoder"]
    graph, first = found.first_beyond or pytest.fail("nothing is beyond")
    assert (graph, first.point.layer) == ("conditioner", "t_embedder.mlp.0")


def test_few_tensors_at_a_time(gray: Path, derived, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured does not depend on how many tensors are held, or on where the weights are."""
    broken = derived("broken", scaled(BROKEN, 1.01))
    whole = layers(broken, gray)
    monkeypatch.setattr(prepare, "CHUNK_BYTES", 40_000)
    monkeypatch.setattr(surgery, "EXTERNAL_DATA_BYTES", 1000)
    told: list[tuple[int, int]] = []
    request, options = VerifyRequest(broken), LayersOptions(True, gray)
    parts = compare_layers(request, options, lambda what, done=0, total=0: told.append((done, total)))
    assert max(total for _, total in told) > 5
    assert [t.error for _, t in parts.compared] == pytest.approx([t.error for _, t in whole.compared], abs=1e-6)


@pytest.mark.parametrize("number", [1, 4])
def test_inputs_are_those_of_the_recorded_trajectory(gray: Path, tmp_path: Path, number: int) -> None:
    bundle = open_bundle(gray)
    golden = bundle.manifest.golden[0]
    tensors = read_golden(bundle, golden, bundle.program(golden.program).steps)
    before = tensors["x"][number - 2] if number > 1 else tensors["z"]
    step = real_step(bundle, number, silent)
    assert relative_error(step.latents, before) < 1e-5
    assert step.what.startswith(f"step {number} of ") and golden.program in step.what
    inputs = inputs_of(bundle, step, tmp_path)
    letters = letters_of(bundle, inputs)
    assert letters["U"] == len(inputs["timestep"]) == len(inputs["modulation"]) == step.tables.rows
    assert letters["E"] == len(inputs["condition"]) == len(inputs["sample"]) and letters["B"] == len(before)


def test_without_a_recorded_trajectory_the_default_program_is_taken(golden_bundle) -> None:
    bundle = open_bundle(golden_bundle("gray1_cfg", prediction="v"))
    assert not bundle.manifest.golden
    assert f"program {bundle.manifest.defaults.program}" in real_step(bundle, 2, silent).what


def test_errors_of() -> None:
    a = np.array([3.0, -4.0], np.float32)
    assert errors_of(a, a) == (0, 0)
    assert errors_of(a, np.array([3.0, -3.0], np.float32)) == (0.2, 0.25)
    assert errors_of(a, np.array([3.0, np.nan], np.float32)) == (np.inf, np.inf)
    assert errors_of(a * 0, a) == (np.inf, np.inf) and errors_of(a * 0, a * 0) == (0, 0)


def test_polygraphy_is_missing(gray: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"polygraphy is not installed: pip install 'ditedge\[calibrate\]'"):
        layers(gray, gray)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"reference": None}, "float32 bundle that it was made from: give that with --reference"),
        ({"step": 11}, "--step 11: program 'ddpm-10' has steps 1 to 10"),
        ({"provider": "openvino"}, "not into provider 'openvino'"),
    ],
)
def test_what_cannot_be_compared(gray: Path, options: dict[str, object], complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        layers(gray, **{"reference": gray, **options})  # type: ignore[arg-type]


def test_references_that_are_none(gray: Path, derived, golden_bundle) -> None:
    half = derived("half", lambda model: lower(model, ir.DataType.FLOAT16), "float16")
    with pytest.raises(RequestError, match="half is not in float32, so it is no reference: give the float32 bundle"):
        layers(gray, half)
    with pytest.raises(RequestError, match="was not made from .*: latent channels 1 against 4"):
        layers(gray, golden_bundle("latent4_learned_sigma"))


def test_a_process_that_ends_says_why(tmp_path: Path) -> None:
    (tmp_path / "specification.json").write_text("{}")
    with pytest.raises(EngineError, match="the process that compares layers ended .KeyError: 'target'"):
        list(_measured(tmp_path / "specification.json", 1, silent))


def test_a_provider_that_is_not_here_is_refused_before_any_work(gray: Path) -> None:
    told: list[str] = []
    request = VerifyRequest(gray, EngineOptions("directml"))
    with pytest.raises(EngineError, match="^provider 'directml' needs an ONNX Runtime build that has it: see `ditedge"):
        compare_layers(request, LayersOptions(True), lambda what, *_: told.append(what))
    assert not told
