"""What it ran on, from files that a system may not have."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from ditedge.runtime.bench import machine


def test_the_processor_by_name_where_the_system_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert machine.processor() == "riscv64"
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: One: of two\n\nmodel name\t: Another\n")
    assert machine.processor() == machine.this_machine().processor == "One: of two"
