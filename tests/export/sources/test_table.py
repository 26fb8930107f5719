"""SOURCES: every row can be read, errors and help list the table, and a new source is one file and one line."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from ditedge.export import read_source
from ditedge.export.sources import SOURCES, is_source, listed
from ditedge.runtime.errors import CheckpointError
from tests.conftest import GOLDEN
from tests.growing import add_line, blocks, copied_package
from tests.test_cli import ditedge as command


def test_every_row_has_its_reader() -> None:
    for source in SOURCES.values():
        assert callable(importlib.import_module(f"ditedge.export.sources.{source.reader}").read)


def test_errors_and_help_list_the_table(tmp_path: Path) -> None:
    (tmp_path / "model.h5").write_bytes(b"HDF")
    for path in (tmp_path, tmp_path / "model.h5"):
        assert not is_source(path)
        with pytest.raises(CheckpointError, match="is not a checkpoint; what is read: ") as caught:
            read_source(path)
        assert all(source.what in str(caught.value) for source in SOURCES.values())
    assert listed() in " ".join(command("export", "--help").stdout.split())
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        read_source(Path("nowhere"))


def test_a_new_source(tmp_path: Path) -> None:
    (copy, ditedge), (code, line) = copied_package(tmp_path), blocks("adding-a-source.md")
    sources = copy / "export" / "sources"
    (sources / "npz.py").write_text(code)
    add_line(sources / "__init__.py", line)
    assert "Checkpoint: .npz, .pt" in ditedge("export", "--help")
    np.savez(tmp_path / "m.npz", **load_file(GOLDEN / "gray1_cfg" / "model.safetensors"))
    said = ditedge("export", "--ckpt", tmp_path / "m.npz", "--heads", 2, "--out", tmp_path / "b")
    assert f"wrote {tmp_path / 'b'}" in said and "passed" in ditedge("verify", "--engine", tmp_path / "b")
