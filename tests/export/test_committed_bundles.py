"""The bundles in tests/bundles are what `export` makes today: same manifest, programs and numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from ditedge.runtime import open_bundle
from ditedge.runtime.loop.engine import EngineOptions
from ditedge.runtime.loop.engines import open_engine
from tests.conftest import BUNDLES, CASES, export_golden

REMEDY = "make test-bundles, and look at what changed"


def facts(bundle: Path) -> dict[str, Any]:
    """The manifest without the hashes: a torch of another version may write other bytes."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"] = sorted(manifest["files"])
    return manifest


def outputs(bundle: Path, graph: str) -> dict[str, np.ndarray]:
    """What a graph computes of the same random inputs, each symbol of its shapes standing for one number."""
    opened, rng = open_bundle(bundle), np.random.default_rng(0)
    engine, sizes = open_engine(opened.graph(graph), EngineOptions(threads=1)), {"K+2": 4}
    info = opened.manifest.graphs[graph]  # type: ignore[index]

    def array(tensor: Any) -> np.ndarray:
        shape = [sizes.setdefault(size, 2) if isinstance(size, str) else size for size in tensor.shape]
        if tensor.dtype == "int64":
            return rng.integers(0, 2, shape)
        return rng.random(shape, dtype=np.float32) if tensor.dtype == "float32" else np.zeros(shape, np.uint8)

    given = {tensor.name: array(tensor) for tensor in info.inputs}
    made = {tensor.name: array(tensor) for tensor in info.outputs}
    engine.run(given, made)
    return made


@pytest.mark.parametrize("case", CASES)
def test_committed_bundles_are_what_export_makes(case: str, tmp_path: Path) -> None:
    committed, fresh = BUNDLES / case, export_golden(case, tmp_path / case)
    assert facts(committed) == facts(fresh), REMEDY
    for program in (fresh / "programs").iterdir():
        assert (committed / "programs" / program.name).read_bytes() == program.read_bytes(), REMEDY
    for golden in (fresh / "golden").iterdir():
        ours, theirs = load_file(committed / "golden" / golden.name), load_file(golden)
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():  # another machine's matrix products round differently
            np.testing.assert_allclose(ours[name], value, rtol=1e-4, atol=1e-4, err_msg=REMEDY)
    for graph in ("conditioner", "step"):
        theirs = outputs(fresh, graph)
        for name, value in outputs(committed, graph).items():
            np.testing.assert_allclose(value, theirs[name], rtol=1e-4, atol=1e-4, err_msg=REMEDY)


def test_committed_bundles_are_small() -> None:
    assert sum(file.stat().st_size for case in CASES for file in (BUNDLES / case).rglob("*") if file.is_file()) < 2e6
