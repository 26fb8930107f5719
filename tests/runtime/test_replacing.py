"""Replacing folders: whole or not at all, nothing of the user's destroyed."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest

from ditedge.runtime import leftovers, replacing
from ditedge.runtime.bundle.writing import new_bundle
from ditedge.runtime.errors import RequestError
from ditedge.runtime.files import write_text
from ditedge.runtime.replacing import placed
from tests.runtime.folders import bundle, make, names


@pytest.fixture(params=["renameat2", "two renames"])
def exchange(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to exchange folders; the second is that of systems without renameat2."""
    if request.param == "two renames":
        monkeypatch.setattr(replacing, "_renameat2", lambda *_: False)
    return str(request.param)


def test_a_bundle_is_replaced_by_force_alone(tmp_path: Path, exchange: str) -> None:
    out = bundle(tmp_path / "out")
    with pytest.raises(RequestError, match="--force"):
        make(out)
    make(out, force=True)
    assert (out / "step.onnx").read_text() == "new" and not (out / "manifest.json").exists()
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("manifest", ['{"name": "a web application"}', "[]", "{", "[" * 100_000, '{"format": []}'])
def test_force_spares_what_is_no_bundle(tmp_path: Path, manifest: str) -> None:
    out = tmp_path / "webapp"
    out.mkdir()
    (out / "manifest.json").write_text(manifest)
    with pytest.raises(RequestError, match="not a bundle"):
        make(out, force=True)
    assert names(out) == ["manifest.json"]


def test_force_spares_what_the_user_keeps_in_a_bundle(tmp_path: Path) -> None:
    out = bundle(tmp_path / "out", **{"only-copy.pt": "years"})
    with pytest.raises(RequestError, match="only-copy.pt"):
        make(out, force=True)
    assert (out / "only-copy.pt").read_text() == "years"


def test_force_spares_the_source_and_folders_around_it(tmp_path: Path) -> None:
    outer = bundle(tmp_path / "outer")
    for source in (outer, outer / "step.onnx"):
        with pytest.raises(RequestError, match="which is read"):
            make(outer, force=True, inputs=(source,))
    assert (outer / "step.onnx").read_text() == "old"


def test_plans_belong_to_a_bundle(tmp_path: Path) -> None:
    out = bundle(tmp_path / "out")
    (out / "engines" / "tensorrt").mkdir(parents=True)
    (out / "engines" / "tensorrt" / "dit.plan").touch()
    make(out, force=True)
    assert names(out) == ["step.onnx"]


def test_what_appears_meanwhile_stays(tmp_path: Path, exchange: str) -> None:
    out = tmp_path / "photos"
    with pytest.raises(RequestError, match="not a bundle"), new_bundle(out, True, ()) as folder:
        (folder / "step.onnx").touch()
        out.mkdir()
        (out / "wedding.txt").write_text("precious")
    assert (out / "wedding.txt").read_text() == "precious" and names(tmp_path) == ["photos"]


def test_a_bundle_that_appears_meanwhile_needs_force(tmp_path: Path, exchange: str) -> None:
    out = tmp_path / "out"
    with pytest.raises(RequestError, match="--force"), new_bundle(out, False, ()) as folder:
        (folder / "step.onnx").touch()
        bundle(out, "another's")
    assert (out / "step.onnx").read_text() == "another's"


def test_an_interrupt_between_two_renames_restores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = bundle(tmp_path / "out")
    monkeypatch.setattr(replacing, "_renameat2", lambda *_: False)
    rename, calls = os.replace, []

    def interrupted(a: Path, b: Path) -> None:
        calls.append(a)
        rename(a, b)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(out, force=True)
    monkeypatch.undo()
    assert (out / "step.onnx").read_text() == "old" and names(tmp_path) == ["out"]


def test_a_death_between_two_renames_is_mended_by_the_next_run(tmp_path: Path) -> None:
    bundle(tmp_path / f"{leftovers.prefix(tmp_path / 'out', leftovers.OLD)}abc")
    with pytest.raises(RequestError, match="--force"):
        make(tmp_path / "out")
    assert (tmp_path / "out" / "step.onnx").read_text() == "old" and names(tmp_path) == ["out"]


def test_any_exception_leaves_the_old_one(tmp_path: Path) -> None:
    out = bundle(tmp_path / "out")
    with pytest.raises(ZeroDivisionError), new_bundle(out, True, ()):
        raise ZeroDivisionError
    assert (out / "step.onnx").read_text() == "old" and names(tmp_path) == ["out"]


def interrupted_at(line: int, work: Callable[[], None]) -> bool:
    """Runs `work` with a Ctrl-C before the line-th line of replacing.py, leftovers.py and files.py -> whether it came."""
    seen = 0

    def trace(frame: FrameType, event: str, _: object) -> object:
        nonlocal seen
        if not frame.f_code.co_filename.endswith(("/replacing.py", "/leftovers.py", "/files.py")):
            return None
        seen += event == "line"
        if seen == line:
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


@pytest.mark.parametrize("apart", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_an_interrupt_at_any_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: str, apart: int) -> None:
    """The folder and the file are old or new, what is said of them is so, and nothing is left when the process ends."""
    monkeypatch.setattr(leftovers.signal, "signal", lambda *_: None)
    monkeypatch.setattr(leftovers, "LOCK_SECONDS", 0)  # for a lock that was lost between two lines of a process gone on
    out, file = tmp_path / "out", tmp_path / "file.txt"

    def work() -> None:
        make(out, "new", force=True)
        write_text(file, "new")

    line, came = 1 - apart, True
    while came:
        line += apart
        if out.exists():
            shutil.rmtree(out)
        bundle(out)
        file.write_text("old")
        came = interrupted_at(line, work)
        told, leftover_names = placed(), names(tmp_path)
        leftovers._end_all()
        assert names(tmp_path) == ["file.txt", "out"], f"line {line}: {leftover_names}"
        for path, text in ((out, (out / "step.onnx").read_text()), (file, file.read_text())):
            assert text == ("new" if path in told else "old"), f"line {line}: {path.name} is {text}, told of {told}"
    assert line > 100 and told[-2:] == [out, file]
