"""What `deploy/` and the docs tell others to run are commands of ours."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from ditedge.cli import main
from tests.conftest import ROOT

FILES = [*sorted((ROOT / "deploy").iterdir()), ROOT / "docs" / "serving.md", ROOT / "docs" / "scaling.md"]
COMMANDS = {"serve": "ditedge serve", "sample-set": "ditedge sample-set"}


def options(command: str) -> set[str]:
    params = main.commands[command].get_params(click.Context(main.commands[command]))
    return {name for param in params for name in (*param.opts, *param.secondary_opts)}


@pytest.mark.parametrize("command", COMMANDS)
def test_options_in_commands_are_options(command: str) -> None:
    known = options(command)
    found = 0
    for path in FILES:
        for line in re.findall(rf"{COMMANDS[command]} [^\n`#]*", path.read_text()):
            used = set(re.findall(r"(?<= )--[a-z-]+", line))
            assert used <= known, (path.name, line)
            found += len(used)
    assert found >= 3


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.nvidia"])
def test_an_image_begins_the_server(name: str) -> None:
    lines = dict(line.split(" ", 1) for line in (ROOT / "deploy" / name).read_text().splitlines() if " [" in line)
    entry = json.loads(lines["ENTRYPOINT"])
    assert entry[:2] == ["ditedge", "serve"] and json.loads(lines["CMD"])
    assert {word for word in entry if word.startswith("--")} <= options("serve")
    compile(json.loads(lines["HEALTHCHECK"].partition("CMD ")[2])[2], name, "exec")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_the_unit_is_one(tmp_path: Path) -> None:
    unit = (ROOT / "deploy" / "ditedge.service").read_text().replace("/opt/ditedge/bin/ditedge", "/bin/true")
    (tmp_path / "ditedge.service").write_text(unit)
    (tmp_path / "ditedge.service").chmod(0o644)  # systemd complains of what everybody may write
    ran = subprocess.run(["systemd-analyze", "verify", tmp_path / "ditedge.service"], capture_output=True, text=True)
    assert "ditedge.service" not in ran.stderr, ran.stderr
