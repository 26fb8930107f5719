"""docs/commands.md says what `--help` says: an option that comes, goes or changes its default is seen in a review."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import ROOT


def test_the_page_of_commands_is_the_help() -> None:
    made = subprocess.run(
        [sys.executable, "tools/commands_page.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    words = (ROOT / "docs" / "commands.md").read_text().split()  # another click wraps its lines elsewhere
    assert words == made.split(), "make commands, and look at what changed"
    for command in ("export", "run", "convert", "quantize", "build", "compare", "verify"):
        assert f"## {command}" in made and f"Usage: ditedge {command} [OPTIONS]" in made
