"""Ranking layers and choosing which stay in float32."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ditedge.calibration.formats.int4 import dequantised_blocks
from ditedge.calibration.formats.int8 import dynamic_int8
from ditedge.calibration.options import QuantizeOptions
from ditedge.calibration.pool import pool_of
from ditedge.calibration.quantize import quantize_bundle
from ditedge.calibration.statistics.sensitivity import drift, fewest_kept, latents_of, layer_sensitivities
from ditedge.runtime import open_bundle
from ditedge.runtime.bundle.open import Bundle
from ditedge.runtime.errors import RequestError


def test_contributions_add_up_to_the_drift(golden_bundle, tmp_path: Path) -> None:
    """Squares of independent errors add; these are neither quite independent nor small, hence a factor."""
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    program, pool = bundle.program("ddim-10"), pool_of(bundle)
    layers = [f"blocks.{i}.{x}" for i in range(bundle.manifest.model.depth) for x in ("attn.qkv", "mlp.fc1", "mlp.fc2")]
    coarse = layer_sensitivities(bundle, pool, program, layers, dequantised_blocks, 4)
    fine = layer_sensitivities(bundle, pool, program, layers, dynamic_int8, 8)
    assert {entry.layer for entry in coarse} == {entry.layer for entry in fine} == set(layers)
    assert [entry.gain for entry in coarse] == sorted((entry.gain for entry in coarse), reverse=True)
    by_name = {entry.layer: entry.contribution for entry in fine}
    assert all(entry.contribution > by_name[entry.layer] > 0 for entry in coarse), "4 bits cost more than 8"
    # the same layers rounded together, in a bundle whose conditioner is exact
    quantize_bundle(bundle.folder, tmp_path / "int4", QuantizeOptions("int4", "tensorrt", keep=("attn.proj",)))
    shutil.copyfile(bundle.graph_file("conditioner"), tmp_path / "int4" / "conditioner.onnx")
    together = Bundle(tmp_path / "int4", bundle.manifest, "")
    measured = drift(latents_of(together, pool, program), latents_of(bundle, pool, program))
    predicted = np.sqrt(sum(entry.contribution**2 for entry in coarse))
    assert 1 / 2.5 < predicted / measured < 2.5


def test_keep_takes_the_head_of_the_ranking(golden_bundle, tmp_path: Path) -> None:
    source, out = golden_bundle("gray1_cfg"), tmp_path / "kept"
    manifest = quantize_bundle(source, out, QuantizeOptions(keep_count=2, program="ddim-10"))
    ranking = json.loads((out / "sensitivity.json").read_text())
    assert manifest.quantization is not None
    assert manifest.quantization.kept == ["final_layer.linear", ranking[0]["layer"], ranking[1]["layer"]]
    assert "sensitivity.json" in manifest.files


def test_budget_is_kept_as_measured(golden_bundle, tmp_path: Path) -> None:
    source = golden_bundle("gray1_cfg")
    exact, program = open_bundle(source), open_bundle(source).program("ddim-10")
    pool = pool_of(exact)
    reference = latents_of(exact, pool, program)
    quantize_bundle(source, tmp_path / "plain", QuantizeOptions("int4"))
    plain = drift(latents_of(open_bundle(tmp_path / "plain"), pool, program), reference)
    options = QuantizeOptions("int4", budget=f"drift={plain / 2}", program="ddim-10")
    manifest = quantize_bundle(source, tmp_path / "budget", options)
    assert drift(latents_of(open_bundle(tmp_path / "budget"), pool, program), reference) <= plain / 2 * 1.001
    assert manifest.quantization is not None and 1 < len(manifest.quantization.kept)
    with pytest.raises(RequestError, match="not reached even"):
        quantize_bundle(source, tmp_path / "never", QuantizeOptions("int4", budget="drift=1e-7", program="ddim-10"))
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("needed", range(6))
def test_fewest_kept_is_the_smallest_that_fits(needed: int) -> None:
    names = [f"layer{i}" for i in range(5)]
    found = fewest_kept(names, lambda kept: 0.01 if len(kept) >= needed else 0.2, 0.05)
    assert found == ((needed, 0.01) if needed <= 5 else None)
    assert fewest_kept(names, lambda kept: 0.2, 0.05) is None


def test_budget_text() -> None:
    assert QuantizeOptions(budget="drift=0.02").drift_budget == 0.02 and QuantizeOptions().drift_budget is None
    for text in ("0.02", "drift=", "drift=2", "size=0.1", "drift=nan"):
        with pytest.raises(RequestError, match="write drift=X"):
            assert QuantizeOptions(budget=text).drift_budget
