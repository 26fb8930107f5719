"""Files, functions and parameter lists stay small enough to be read at a sitting."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

from tests.conftest import ROOT

LINES_OF_A_FILE, LINES_OF_A_FUNCTION, PARAMETERS = 300, 50, 8
# The parameters of `Step.forward` and `PromptStep.forward` are the inputs of step.onnx.
GRAPHS = {
    ROOT / "export" / "graphs" / "modules.py": ["forward has 10 parameters"],
    ROOT / "export" / "graphs" / "text_modules.py": ["forward has 10 parameters"],
}


def python_files() -> list[Path]:
    """Those that git tracks; without git (a source archive), those that are no one's environment or build."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        return [p for p in sorted(ROOT.rglob("*.py")) if not {".venv", "build"} & set(p.relative_to(ROOT).parts)]
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def too_large(source: str, most: int = LINES_OF_A_FILE) -> list[str]:
    """What is over a limit: "line 1: 301 lines", "line 7: f has 51 lines", "line 7: f has 9 parameters"."""
    found = [f"line 1: {count} lines"] if (count := len(source.splitlines())) > most else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            given = node.args
            names = [*given.posonlyargs, *given.args, *given.kwonlyargs]
            count = len(names) - (bool(names) and names[0].arg in ("self", "cls"))
            found += [f"line {node.lineno}: {node.name} has {lines} lines"] * (lines > LINES_OF_A_FUNCTION)
            found += [f"line {node.lineno}: {node.name} has {count} parameters"] * (count > PARAMETERS)
    return found


def test_nothing_is_too_large() -> None:
    """One test of all files: a test of each takes a tenth of the suite's bookkeeping."""
    most = {ROOT / "cli.py": 399}  # fifteen commands, with their help, on one page
    for path in python_files():
        found = [text.partition(": ")[2] for text in too_large(path.read_text(), most.get(path, LINES_OF_A_FILE))]
        assert found == GRAPHS.get(path, []), path.relative_to(ROOT)


def test_what_is_too_large_is_found() -> None:
    body = "\n".join(["    pass"] * 50)
    many = ", ".join(f"a{i}" for i in range(9))
    assert too_large(f"def f():\n{body}\n") == ["line 1: f has 51 lines"]
    assert too_large(f"class A:\n    def f(self, {many}): pass\n") == ["line 2: f has 9 parameters"]
    assert too_large("x = 1\n" * 301) == ["line 1: 301 lines"]
    assert too_large("x = 1\n" * 300) == []
