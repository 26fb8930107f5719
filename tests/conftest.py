"""Shared fixtures: the recorded truth in tests/golden, and one bundle per golden model (tests/bundles)."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

PROCESSORS = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
if WORKER and PROCESSORS:
    # Each process of several keeps to a processor of its own. Before NumPy is imported, which starts a thread for each that
    # it may use: two threads of OpenBLAS on one processor wait for each other 17 times as long as they compute.
    os.sched_setaffinity(0, {sorted(PROCESSORS)[int(WORKER.removeprefix("gw")) % len(PROCESSORS)]})

import numpy as np  # noqa: E402
import pytest  # noqa: E402

from tests import exports_once, opened_once  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
BUNDLES = ROOT / "tests" / "bundles"
MODELS = ROOT / "models"
FASHION = tuple((MODELS / "fashion-dit.classes.txt").read_text().splitlines())
PIXART = "pixart"  # the small bundle that takes prompts
CASES = ("gray1_cfg", "latent4_learned_sigma", "pixel3_no_null_class")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # `make test &` in a script: tests of Ctrl-C, and their children
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_finish() -> None:
    """Modules live as long as the process: PyTorch's million objects are not looked through again at each collection."""
    opened_once.install()
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)  # tracing a graph makes millions of objects, most of which stay


@pytest.fixture(scope="session", autouse=True)
def graphs_once_of_fixtures(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A module's fixtures export, too, and come before what is of a test."""
    exports_once.install(tmp_path_factory)


@pytest.fixture(autouse=True)
def graphs_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    exports_once.install(tmp_path_factory)


def golden_case(name: str) -> dict[str, Any]:
    """case.json of a golden model: its config and its recorded loops."""
    return json.loads((GOLDEN / name / "case.json").read_text())


def has_null_class(name: str) -> bool:
    return golden_case(name)["config"].get("class_dropout_prob", 0.1) > 0


def export_golden(case: str, out: Path, prediction: str = "epsilon") -> Path:
    """Exports a golden model to `out`."""
    from ditedge.export import ExportOptions, bundle_from_checkpoint

    options = ExportOptions(
        heads=golden_case(case)["config"]["num_heads"],
        null_class=has_null_class(case),
        prediction=prediction,
        pixels=True if case == "pixel3_no_null_class" else None,
    )
    bundle_from_checkpoint(GOLDEN / case / "model.pt", out, options)
    return out


def with_labels(bundle: Path, out: Path) -> Path:
    """A copy of a bundle whose classes have names."""
    shutil.copytree(bundle, out)
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, "labels": FASHION}))
    return out


def with_prediction(bundle: Path, out: Path, prediction: str) -> Path:
    """A copy of a bundle as export would make it of a model that predicts something else: its graphs are the same.

    What a model predicts is in its programs' x0_from and in its manifest (tests/export/truth/test_golden.py exports such
    models). It has no golden trajectories.
    """
    from ditedge.export.truth.programs import golden_steps, write_programs
    from ditedge.runtime.bundle.manifest import Manifest
    from ditedge.runtime.bundle.writing import hashed_files
    from ditedge.runtime.samplers.process import FLOWS

    shutil.copytree(bundle, out)
    for folder in ("programs", "golden"):
        shutil.rmtree(out / folder)
    manifest = Manifest.model_validate_json((out / "manifest.json").read_text())
    flow = FLOWS.get(prediction)
    schedule = None if flow else manifest.schedule
    changes = {"prediction": prediction, **({"timestep_range": flow} if flow else {})}
    model = manifest.model.model_copy(update=changes)
    programs, default = write_programs(model, schedule, {}, out, golden_steps(model, None))
    defaults = manifest.defaults.model_copy(update={"program": default})
    said = {"model": model, "schedule": schedule, "programs": programs, "golden": [], "defaults": defaults}
    manifest = manifest.model_copy(update={**said, "files": hashed_files(out)})
    (out / "manifest.json").write_text(manifest.model_dump_json(indent=1))
    return out


@pytest.fixture(scope="session")
def golden_bundle(tmp_path_factory: pytest.TempPathFactory):
    """golden_bundle(case, prediction="epsilon", labels=False) -> folder of the bundle. Not to be changed.

    A copy of the one in tests/bundles, or one that says that the same graphs predict something else.
    """
    folder = tmp_path_factory.mktemp("bundles")

    def bundle(case: str, prediction: str = "epsilon", labels: bool = False) -> Path:
        out = folder / f"{case}-{prediction}{'-labels' if labels else ''}"
        if out.exists():
            return out
        if labels:
            return with_labels(bundle(case, prediction), out)
        if prediction != "epsilon":
            return with_prediction(BUNDLES / case, out, prediction)
        return Path(shutil.copytree(BUNDLES / case, out))

    return bundle


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported bundle of the demo model (models/). Not to be changed."""
    from ditedge.export import ExportOptions, bundle_from_checkpoint

    out = tmp_path_factory.mktemp("demo") / "fashion"
    bundle_from_checkpoint(MODELS / "fashion-dit.safetensors", out, ExportOptions(heads=3, labels=FASHION))
    return out


@pytest.fixture(scope="session")
def mean_flow_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small MeanFlow of random weights. Not to be changed."""
    from ditedge.export import ExportOptions, bundle_from_checkpoint
    from tests.export.sources.test_meanflow import saved

    folder = tmp_path_factory.mktemp("meanflow")
    bundle_from_checkpoint(saved(folder / "c.pt"), folder / "bundle", ExportOptions(heads=3))
    return folder / "bundle"


@pytest.fixture(scope="session")
def improved_mean_flow_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small improved MeanFlow of random weights, which reads its guidance. Not to be changed."""
    from ditedge.export import ExportOptions, bundle_from_checkpoint
    from tests.export.sources.test_imeanflow import saved

    folder = tmp_path_factory.mktemp("imeanflow")
    bundle_from_checkpoint(saved(folder / "c.pth"), folder / "bundle", ExportOptions())
    return folder / "bundle"


@pytest.fixture
def gray_bundle(golden_bundle, tmp_path: Path) -> Path:
    """A private copy of the smallest bundle (1 channel, null class), to damage at will."""
    return Path(shutil.copytree(golden_bundle("gray1_cfg"), tmp_path / "gray"))


def overheat(bundle: Path, label: int, factor: float | None = None) -> Path:
    """Makes class `label` of a bundle overflow from the first step on: its row of the label embedding is infinite.

    factor: the row is only so much larger.
    """
    import onnx
    from onnx import numpy_helper

    from ditedge.runtime.files import sha256_of_file

    manifest = json.loads((bundle / "manifest.json").read_text())
    path, rows = bundle / "conditioner.onnx", manifest["model"]["num_classes"] + 1
    model = onnx.load(path)
    (table,) = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 2 and tensor.dims[0] == rows]
    values = numpy_helper.to_array(table).copy()
    values[label] = float("inf") if factor is None else values[label] * np.float32(factor)
    table.CopyFrom(numpy_helper.from_array(values, table.name))
    onnx.save(model, path)
    manifest["files"][path.name] = {"sha256": sha256_of_file(path), "bytes": path.stat().st_size}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return bundle
