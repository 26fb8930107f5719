"""What `inspect` says of a plan: from the list that its builder left, or from the plan itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from ditedge.cli import main
from ditedge.runtime import open_bundle
from ditedge.runtime.plans import lint
from ditedge.runtime.plans.layers import LAYERS_NAME, Layer
from ditedge.runtime.plans.library import GpuInfo
from tests.runtime.plans.here import needs_rtx, without_gpu


@needs_rtx
def test_inspecting_a_plan_needs_no_gpu(built: Path) -> None:
    plan = built / "engines" / "tensorrt-rtx" / "dit.plan"
    result = CliRunner().invoke(main, ["inspect", str(plan), "--json"])
    found = json.loads(result.stdout)
    depth = open_bundle(built).manifest.model.depth
    assert len(found["attention"]) == depth and not any(attention["fused"] for attention in found["attention"])
    assert set(found["gemms"]) == {"float32"} and found["bytes"] == plan.stat().st_size
    assert found["activation_bytes"] > 0
    assert CliRunner().invoke(main, ["inspect", str(plan), "--strict"]).exit_code == 1


@needs_rtx
@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / "build.json").unlink(), "cannot read"),
        (lambda folder: (folder / "dit.plan").write_bytes(b"x"), "does not match its hash"),
        (lambda folder: (folder / "layers.json").write_text("[]"), "no readable list of the layers"),
    ],
)
def test_a_damaged_plan_is_refused(built: Path, tmp_path: Path, damage, sentence: str) -> None:
    folder = Path(shutil.copytree(built / "engines" / "tensorrt-rtx", tmp_path / "plans"))
    damage(folder)
    result = CliRunner().invoke(main, ["inspect", str(folder / "dit.plan")])
    assert result.exit_code == 2 and sentence in result.stderr


@needs_rtx
@without_gpu
def test_a_plan_without_its_list_needs_a_gpu(built: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(built / "engines" / "tensorrt-rtx", tmp_path / "plans"))
    (folder / LAYERS_NAME).unlink()
    result = CliRunner().invoke(main, ["inspect", str(folder / "dit.plan")])
    assert result.exit_code == 2 and "needs a GPU" in result.stderr


@needs_rtx
def test_an_empty_list_is_not_fused_and_where_there_is_a_gpu_the_plan_is_asked(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(built / "engines" / "tensorrt-rtx", tmp_path / "plans"))
    listed, asked = json.loads((folder / LAYERS_NAME).read_text()), []
    listed["step"]["layers"] = []
    (folder / LAYERS_NAME).write_text(json.dumps(listed))
    monkeypatch.setattr(lint, "first_gpu", lambda: None)
    assert not lint.lint_plan(folder / "dit.plan").fused
    assert CliRunner().invoke(main, ["inspect", str(folder / "dit.plan"), "--strict"]).exit_code == 1
    kernel = Layer("mha", "kgen", ("float16",), (), ("float16",), "", ("softmax",))
    monkeypatch.setattr(lint, "first_gpu", lambda: GpuInfo("RTX", "sm89", 8 << 30))
    monkeypatch.setattr(lint, "_inspected", lambda library, plan: asked.append(library) or [kernel])
    assert lint.lint_plan(folder / "dit.plan").fused and asked == ["tensorrt-rtx"]
    lint.lint_plan(folder / "decoder.plan")  # its list is there
    assert asked == ["tensorrt-rtx"]
