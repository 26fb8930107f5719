"""Replacing folders and files: whole or not at all, nothing of the user's destroyed, nothing left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest

from ditedge.runtime import leftovers, replacing
from ditedge.runtime.bundle.writing import new_bundle
from ditedge.runtime.errors import RequestError
from ditedge.runtime.files import check_writable, write_text, written_atomically
from ditedge.runtime.replacing import folder_written_atomically, placed, scratch_beside, scratch_folder
from tests.conftest import ROOT


def agree(_: Path) -> None:
    """may_replace: whatever lies there may go."""


def bundle(folder: Path, text: str = "old", **more: str) -> Path:
    """The least that counts as a bundle of ours. more: files that its manifest does not list."""
    folder.mkdir(parents=True)
    (folder / "step.onnx").write_text(text)
    (folder / "manifest.json").write_text(json.dumps({"format": "ditedge-bundle", "files": {"step.onnx": {}}}))
    for name, content in more.items():
        (folder / name).write_text(content)
    return folder


def make(out: Path, text: str = "new", force: bool = False, inputs: tuple[Path, ...] = ()) -> None:
    with new_bundle(out, force, inputs) as folder:
        (folder / "step.onnx").write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


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
        if Path(frame.f_code.co_filename).name not in ("replacing.py", "leftovers.py", "files.py"):
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


def test_an_interrupt_at_any_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: str) -> None:
    """The folder and the file are old or new, what is said of them is so, and nothing is left when the process ends."""
    monkeypatch.setattr(leftovers.signal, "signal", lambda *_: None)
    monkeypatch.setattr(leftovers, "LOCK_SECONDS", 0)  # for a lock that was lost between two lines of a process gone on
    out, file = tmp_path / "out", tmp_path / "file.txt"

    def work() -> None:
        make(out, "new", force=True)
        write_text(file, "new")

    line, came = 0, True
    while came:
        line += 1
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


CHILD = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from ditedge.runtime.files import written_atomically
from ditedge.runtime.replacing import folder_written_atomically, scratch_beside
out = Path(sys.argv[2])
with folder_written_atomically(out, lambda _: None) as folder, scratch_beside(out) as scratch:
    (folder / "big").write_text("x"); (scratch / "big").write_text("x")
    with written_atomically(out.with_name("file.txt")) as file:
        print("writing", flush=True)
        time.sleep(60)
"""


@pytest.fixture
def writer(tmp_path: Path):
    """A process in the middle of writing tmp_path/out and tmp_path/file.txt."""
    child = subprocess.Popen([sys.executable, "-c", CHILD, ROOT, tmp_path / "out"], stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"writing\n"
    yield child
    child.kill()
    child.wait()
    child.stdout.close()


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path, writer: subprocess.Popen[bytes]) -> None:
    assert len(names(tmp_path)) == 3
    with pytest.raises(RequestError, match="another process"), folder_written_atomically(tmp_path / "out", agree):
        raise AssertionError("two writers at once")
    assert len(names(tmp_path)) == 3, "what a living process writes stays"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    make(tmp_path / "out")
    write_text(tmp_path / "file.txt", "whole")
    assert names(tmp_path) == ["file.txt", "out"] and names(tmp_path / "out") == ["step.onnx"]


def test_scratch_of_a_killed_process_is_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    child = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom ditedge.runtime.replacing import scratch_folder\n"
    subprocess.run(
        [sys.executable, "-c", f"{child}with scratch_folder() as f: (f / 'big').touch(); {kill}"],
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    (left,) = names(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with scratch_folder() as folder:
        assert names(tmp_path) == [folder.name] != [left]
    assert names(tmp_path) == []


def test_what_cannot_be_removed_is_tried_again_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers.signal, "signal", lambda *_: None)
    with monkeypatch.context() as refused, scratch_beside(tmp_path / "out"):
        refused.setattr(os, "rmdir", lambda *_, **__: (_ for _ in ()).throw(PermissionError()))
    assert len(names(tmp_path)) == 1
    leftovers._end_all()
    assert names(tmp_path) == []


def test_temporary_folders_are_those_that_the_next_run_removes() -> None:
    """In the shipped code: none in TMPDIR but `scratch_folder`; tempfile's own only inside of a folder of ours."""
    for package in ("runtime", "export", "calibration", "ditedge"):
        for source in (ROOT / package).rglob("*.py"):
            for call in re.findall(
                r"\b(?:TemporaryDirectory|NamedTemporaryFile|mkdtemp|mkstemp)\((.*)", source.read_text()
            ):
                assert call.startswith("dir="), f"{source}: {call}"


def test_other_targets_leftovers_are_not_ours(tmp_path: Path) -> None:
    (tmp_path / ".outer.ditedge-abc").mkdir()
    make(tmp_path / "out")
    assert names(tmp_path) == [".outer.ditedge-abc", "out"]


def test_long_names_have_temporary_names(tmp_path: Path) -> None:
    for name in ("n" * 250, "ü" * 120):
        write_text(tmp_path / name, "whole")
        make(tmp_path / f"{name[:-1]}b")
    assert len(names(tmp_path)) == 4


def test_a_bundle_inside_scratch_does_not_wait_for_its_own_lock(tmp_path: Path) -> None:
    with scratch_beside(tmp_path / "out") as scratch:
        make(scratch / "float32")
        make(tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_devices_pipes_and_links_are_not_replaced(tmp_path: Path) -> None:
    write_text(Path(os.devnull), "nothing")
    assert not Path(os.devnull).is_file()
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "real.txt").read_text() == "new"

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for refused in (check_writable, lambda path: write_text(path, "to nobody")):
        with pytest.raises(RequestError, match="nobody reads"):
            refused(pipe)
    received: list[str] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()))
    handle = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # so that the writer finds a reader, whoever comes first
    reader.start()
    write_text(pipe, "through the pipe")
    os.close(handle)
    reader.join(10)
    assert pipe.is_fifo() and names(tmp_path) == ["link.txt", "pipe", "real.txt"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), written_atomically(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and names(tmp_path) == ["file.txt"]
