"""`make crash`: silent where the promise is kept, loud where it is broken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tools import crash_processes
from tools.crash import KINDS, Outcome, trial
from tools.crash_commands import Command
from tools.crash_processes import prepare

KEEPS = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from ditedge.interrupt import Interrupted, handle_signals
handle_signals()
try:
    from pathlib import Path
    from ditedge.runtime.errors import RequestError
    from ditedge.runtime.files import written_atomically
    with written_atomically(Path(sys.argv[1])) as path, path.open("w") as file:
        for _ in range(5):
            file.write(sys.argv[2] * 1000)
            file.flush()
            time.sleep(0.02)
except Interrupted as error:
    sys.exit(error.code)
except RequestError as error:
    print(f"Error: {{error}}", file=sys.stderr)
    sys.exit(2)
"""
BREAKS = """
import os, sys, time
open(sys.argv[1] + ".lock", "w").close()
with open(sys.argv[1], "w") as file:
    for _ in range(5):
        file.write(sys.argv[2] * 1000)
        file.flush()
        time.sleep(0.1)
os.unlink(sys.argv[1] + ".lock")
"""


def letter_of(path: Path) -> str:
    text = path.read_text()
    assert len(text) == 5000 and len(set(text)) == 1, f"{len(text)} letters"
    return text[0]


def outcomes(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Outcome]:
    """One trial of each kind, of a program in the place of ditedge."""
    (folder / "writer.py").write_text(script)
    monkeypatch.setattr(crash_processes, "CLI", (sys.executable, str(folder / "writer.py")))
    prepared = prepare(Command("write", "{place}/out", "a", "b", "out", letter_of), folder)
    return [trial(prepared, number, 0, folder) for number in map(KINDS.index, dict.fromkeys(KINDS))]


def test_a_writer_that_keeps_the_promise_has_no_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = outcomes(KEEPS, tmp_path, monkeypatch)
    assert [outcome for outcome in found if outcome.faults] == []
    assert {outcome.kind for outcome in found} == set(KINDS)


def test_a_writer_that_breaks_it_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = "\n".join(fault for outcome in outcomes(BREAKS, tmp_path, monkeypatch) for fault in outcome.faults)
    for fault in ("the target is not whole: AssertionError", "left behind: place/out.lock"):
        assert fault in faults, faults


@pytest.mark.slow
def test_run_keeps_the_promise() -> None:
    arguments = ["--kills", "8", "--only", "run"]
    result = subprocess.run([sys.executable, ROOT / "tools" / "crash.py", *arguments], capture_output=True, text=True)
    assert result.returncode == 0 and "FAULT" not in result.stdout, result.stdout + result.stderr
    assert "run                 8        2        2" in result.stdout
