"""A page on adding something to a table, tried out: its file and its line are put into a copy of the package."""

from __future__ import annotations

import json
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
import json, shlex
from ditedge.cli import main
for command in json.loads(sys.argv[1]):
    print({cut!r}, flush=True)
    try:
        exec(command) if isinstance(command, str) else main(command)
    except SystemExit as end:
        if end.code:
            sys.exit(f"{{shlex.join(command)}} ended with {{end.code}}")
"""
CUT = "--- the next command ---"


def blocks(page: str) -> list[str]:
    """The page's code: a file, and a line of a table."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


def copied_package(tmp_path: Path) -> tuple[Path, Callable[..., list[str]]]:
    """A copy of the package's folders, and a function that gives its command line one command after another.

    It takes lists of arguments, or lines of Python, and returns what each says: all in one process, since its start
    takes a second.
    """
    copy = tmp_path / "copy"
    for folder in ("ditedge", "runtime", "calibration", "export"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("cpp", "__pycache__"))
    shutil.copy(ROOT / "cli.py", copy)

    def ditedge(*commands: list[object] | str) -> list[str]:
        told = json.dumps([c if isinstance(c, str) else [*map(str, c)] for c in commands])
        code = IN_THE_COPY.format(copy=str(copy), cut=CUT)
        result = subprocess.run([sys.executable, "-c", code, told], cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        said = result.stdout.split(CUT)[1:]
        assert len(said) == len(commands)
        return [" ".join(text.split()) for text in said]

    return copy, ditedge


def add_line(table: Path, line: str, *more: tuple[str, str]) -> None:
    """At the end of the one dictionary of the file."""
    text = table.read_text()
    for old, new in (("\n}\n", f"\n{line}}}\n"), *more):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    table.write_text(text)
