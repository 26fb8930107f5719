"""The one order of work of derived bundles: graphs, replay, judgement; written whole, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ditedge.calibration import derived
from ditedge.calibration.derived import Derivation, derive_bundle
from ditedge.runtime import open_bundle
from ditedge.runtime.bundle.open import Bundle
from ditedge.runtime.bundle.writing import copy_graph
from ditedge.runtime.errors import BundleError
from ditedge.runtime.loop.verify import Replay


def derivation(source: Bundle, log: list[str], fails: str = "", **more: Any) -> Derivation:
    """Copies the step graph; writes down what is asked of it, and fails where it is to."""

    def step(name: str) -> None:
        log.append(name)
        if name == fails:
            raise BundleError(f"{name} fails")

    def rewrite(folder: Path, scratch: Path) -> dict[str, Any]:
        assert not (folder / "step.onnx").exists() and (folder / "conditioner.onnx").exists()
        (scratch / "temporary").write_text("")
        copy_graph(source, "step", folder)
        step("rewrite")
        return {"labels": [f"class {i}" for i in range(source.manifest.model.num_classes)]}

    def tolerance(replayed: Replay) -> float:
        step("replay")
        assert replayed.worst < 1e-4
        return 0.25

    def judge(new: Bundle, seconds: float) -> None:
        assert {golden.tolerance for golden in new.manifest.golden} == {0.25} and seconds > 0
        (new.folder / "verdict.txt").write_text("good")
        step("judge")

    return Derivation(("step",), rewrite, **{"tolerance": tolerance, "judge": judge, **more})


def test_the_order_of_work(gray_bundle: Path, tmp_path: Path) -> None:
    source, log = open_bundle(gray_bundle), []
    manifest = derive_bundle(source, tmp_path / "new", derivation(source, log))
    assert log == ["rewrite", *["replay"] * len(source.manifest.golden), "judge"]
    new = open_bundle(tmp_path / "new")  # every hash is right
    assert new.manifest == manifest and manifest.name == "new" and new.label_name(1) == "class 1"
    assert new.read("verdict.txt") == b"good" and {golden.tolerance for golden in manifest.golden} == {0.25}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gray", "new"]


@pytest.mark.parametrize("fails", ["rewrite", "replay", "judge"])
def test_nothing_is_left_of_what_failed(gray_bundle: Path, tmp_path: Path, fails: str) -> None:
    source = open_bundle(gray_bundle)
    with pytest.raises(BundleError, match=f"{fails} fails"):
        derive_bundle(source, tmp_path / "new", derivation(source, [], fails))
    assert [path.name for path in tmp_path.iterdir()] == ["gray"]


def test_what_was_written_is_opened_once(gray_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    monkeypatch.setattr(
        derived, "open_bundle", lambda path, **more: [opened.append(path), open_bundle(path, **more)][1]
    )
    source = open_bundle(gray_bundle)
    derive_bundle(source, tmp_path / "new", derivation(source, [], judge=None))
    assert len(opened) == 1


def test_weights_of_a_graph_that_is_written_anew_stay_behind(gray_bundle: Path, tmp_path: Path) -> None:
    """The old step.onnx.data, and no other file whose name begins as the graph's does."""
    source = open_bundle(gray_bundle)
    for name in ("step.onnx.data", "step.onnx.txt"):
        (gray_bundle / name).write_text(name)
    files = derived.hashed_files(gray_bundle)
    source = Bundle(source.folder, source.manifest.model_copy(update={"files": files}), source.sha256)
    assert source.manifest.graph_files("step") == ["step.onnx", "step.onnx.data"]
    (tmp_path / "copy").mkdir()
    derived.copy_files(source, tmp_path / "copy", ["step"])
    assert sorted(path.name for path in (tmp_path / "copy").glob("step*")) == ["step.onnx.txt"]
