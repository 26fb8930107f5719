"""What a killed process leaves is removed by the next run, and files are replaced whole or not at all."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ditedge.runtime import leftovers
from ditedge.runtime.errors import RequestError
from ditedge.runtime.files import check_writable, write_text, written_atomically
from ditedge.runtime.replacing import folder_written_atomically, scratch_beside, scratch_folder
from tests.conftest import ROOT
from tests.runtime.folders import agree, make, names

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
    handle = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "through the pipe")
    assert os.read(handle, 100) == b"through the pipe"
    os.close(handle)
    assert pipe.is_fifo() and names(tmp_path) == ["link.txt", "pipe", "real.txt"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), written_atomically(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and names(tmp_path) == ["file.txt"]
