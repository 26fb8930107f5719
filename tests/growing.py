"""A page on adding something to a table, tried out: its file and its line are put into a copy of the package."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.conftest import ROOT

IN_THE_COPY = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]
sys.path.insert(0, {copy!r})
import ditedge
assert ditedge.__file__.startswith({copy!r}), ditedge.__file__
from ditedge.cli import main
main(sys.argv[1:])
"""


def blocks(page: str) -> list[str]:
    """The page's code: a file, and a line of a table."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


def copied_package(tmp_path: Path) -> tuple[Path, Callable[..., str]]:
    """A copy of the package's folders, and a function that calls its command line and returns what it says."""
    copy = tmp_path / "copy"
    for folder in ("ditedge", "runtime", "calibration", "export"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("cpp", "__pycache__"))
    shutil.copy(ROOT / "cli.py", copy)

    def ditedge(*arguments: object) -> str:
        command = [sys.executable, "-c", IN_THE_COPY.format(copy=str(copy)), *map(str, arguments)]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return " ".join(result.stdout.split())

    return copy, ditedge


def add_line(table: Path, line: str, *more: tuple[str, str]) -> None:
    """At the end of the one dictionary of the file."""
    text = table.read_text()
    for old, new in (("\n}\n", f"\n{line}}}\n"), *more):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    table.write_text(text)
