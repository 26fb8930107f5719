"""The fuzzing tool finds what it is there for, and a few cases of every reader pass (`make fuzz` runs many)."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest

from ditedge.runtime.errors import BundleError
from tests.conftest import ROOT
from tests.fuzz import fuzz_python
from tests.fuzz.fuzz_python import run_case
from tests.fuzz.mutations import mutated_json


def swallow(_: Path) -> None:
    try:
        while True:
            math.sqrt(2)
    except Exception:
        raise BundleError("all is well") from None


def refuse(_: Path) -> None:
    raise BundleError("a sentence")


READINGS: dict[str, tuple[Callable[[Path], object], str | None]] = {
    "a refusal": (refuse, None),
    "nothing wrong": (lambda path: path.exists(), None),
    "a bug": (lambda path: {}["key"], "KeyError: 'key'"),  # type: ignore[index]
    "a warning": (lambda path: warnings.warn("odd", RuntimeWarning, stacklevel=1), "RuntimeWarning: odd"),
    "an exit": (lambda path: sys.exit(3), "SystemExit: 3"),
    "too slow": (swallow, "TooSlow"),
    "too large": (lambda path: np.ones(40 << 20, np.uint8).sum(), "it took [45][0-9] MB"),
}


@pytest.mark.parametrize("name", READINGS)
def test_what_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    read, complaint = READINGS[name]
    monkeypatch.setattr(fuzz_python, "MEGABYTES", 30)
    monkeypatch.setattr(fuzz_python, "SECONDS", 0.2)
    fuzz_python.watch_time()
    result = run_case(read, tmp_path)
    finding = result["finding"]
    assert result["taken"] is (name in ("nothing wrong", "too large"))
    assert (finding is None) if complaint is None else re.search(complaint, finding), finding


def test_a_seed_makes_the_same_documents() -> None:
    document = {"a": [1, 2.5, {"b": "text"}], "c": None, "d": {"e": True}}
    made = [[mutated_json(Random(f"7/{i}"), document) for i in range(200)] for _ in range(2)]
    assert made[0] == made[1] and len(set(made[0])) > 150
    assert document == {"a": [1, 2.5, {"b": "text"}], "c": None, "d": {"e": True}}


def test_a_child_that_dies_is_a_finding_and_the_next_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in child: case 1 ends it, as a fault in a library would."""
    code = "import json, os, sys; first = int(sys.argv[1])\n" + (
        "for case in range(first, 4):\n"
        "    told = {'case': case, 'target': 't', 'folder': '.', 'files': []}\n"
        "    print(json.dumps(told), flush=True)\n"
        "    if case == 1: os.abort()\n"
        "    print(json.dumps(told | {'seconds': 0, 'megabytes': 0, 'finding': None}), flush=True)\n"
    )
    (tmp_path / "stderr").write_text("Fatal error")
    monkeypatch.setattr(
        fuzz_python,
        "_child",
        lambda options, first, last, seconds: subprocess.Popen(
            [sys.executable, "-c", code, str(first)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ),
    )
    options = fuzz_python.parsed(["--cases", "4", "--out", str(tmp_path)])
    results = list(fuzz_python.supervised(options))
    assert [result["case"] for result in results] == [0, 1, 2, 3]
    assert [bool(result["finding"]) for result in results] == [False, True, False, False]
    assert "ended with -6: Fatal error" in results[1]["finding"]


@pytest.mark.slow
def test_a_few_cases_of_every_reader(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz.fuzz_python", "--cases", "210", "--seed", "5", "--out", tmp_path]
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "210 cases of seed 5" in done.stdout, done.stdout + done.stderr
    assert json.loads((tmp_path / "around" / "bundle" / "manifest.json").read_text())["format"] == "ditedge-bundle"
