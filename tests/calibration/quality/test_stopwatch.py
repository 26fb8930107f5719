"""The processes that time steps import nothing from the folder in which the user stands."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ditedge.calibration.quality.stopwatch import bundle_contender, bundle_step
from ditedge.runtime import EngineOptions, open_bundle
from ditedge.runtime.errors import BundleError


@pytest.mark.parametrize(
    "planted", ["numpy.py", "json.py", "runpy.py", "ditedge.py", "sitecustomize.py", "onnxruntime.py"]
)
def test_nothing_runs_from_the_working_folder(planted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a bundle could carry it. An argument that is no bundle makes the child end with a sentence, all imports done."""
    (tmp_path / planted).write_text("open('ran', 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = bundle_contender(Path("no-bundle"), EngineOptions(), batch=1, guidance=1.0)
    done = subprocess.run(command, capture_output=True, text=True)
    assert "does not exist" in done.stdout, done.stderr
    assert not (tmp_path / "ran").exists()


def test_what_is_measured_is_what_was_opened(golden_bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opened the bundle has seen to its signature: the process is told its hash, and runs no other one."""
    folder = golden_bundle("gray1_cfg")
    monkeypatch.setenv("DITEDGE_TRUSTED_KEYS", str(tmp_path / "none.pem"))
    bundle = open_bundle(folder, trusted_keys=())
    bundle_step(folder, EngineOptions(threads=1), 1, 1.0, bundle.sha256)()
    with pytest.raises(BundleError, match="was replaced while its speed was measured"):
        bundle_step(folder, EngineOptions(threads=1), 1, 1.0, "0" * 64)
