"""SOURCES: every row can be read, errors and help list the table, and a new source is one file and one line."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from ditedge.export import read_source
from ditedge.export.sources import SOURCES, is_source, listed
from ditedge.runtime.errors import CheckpointError
from tests.export.sources.diffusers_models import GRAY
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


EQUAL = """
from pathlib import Path
from ditedge.export import read_source
theirs, known = (read_source(Path(path), heads=2) for path in ("m.npz", {gray!r}))
print(theirs.config == known.config, all((theirs.weights[key] == known.weights[key]).all() for key in known.weights))
"""


def with_npz(tmp_path: Path) -> Callable[..., list[str]]:
    """The commands of a copy of the package that reads m.npz, too: the weights of a golden model."""
    (copy, ditedge), (code, line) = copied_package(tmp_path), blocks("adding-a-source.md")
    sources = copy / "export" / "sources"
    (sources / "npz.py").write_text(code)
    add_line(sources / "__init__.py", line)
    np.savez(tmp_path / "m.npz", **load_file(GRAY))
    return ditedge


def test_a_new_source(tmp_path: Path) -> None:
    said, same = with_npz(tmp_path)(["export", "--help"], EQUAL.format(gray=str(GRAY)))
    assert "Checkpoint: .npz, .pt" in said and same == "True True"


@pytest.mark.slow  # one more export: of a network that is known, once it is read
def test_a_new_source_is_exported(tmp_path: Path) -> None:
    said, verdict = with_npz(tmp_path)(
        ["export", "--ckpt", "m.npz", "--heads", 2, "--out", "b"], ["verify", "--engine", "b"]
    )
    assert "wrote b" in said and "passed" in verdict
