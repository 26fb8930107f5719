"""Compiled kernels are executable code: where they may lie, and what is not read."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from ditedge.runtime.plans import kernels
from ditedge.runtime.plans.kernels import keep_kernels, kernel_file, kernel_folder, read_kernels
from ditedge.runtime.plans.library import GpuInfo

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="modes of files")
GPU = GpuInfo("NVIDIA RTX A/../6000", "sm86", 48 << 30)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = kernel_file("ab" * 32, GPU)
    assert file is not None
    return file


def test_kept_and_read_again(file: Path, tmp_path: Path) -> None:
    assert file == tmp_path / "cache" / "ditedge" / "kernels" / f"{'ab' * 32}-sm86-NVIDIA-RTX-A----6000"
    assert read_kernels(file) == b""
    mask = os.umask(0)
    try:
        keep_kernels(file, memoryview(b"one"))
    finally:
        os.umask(mask)
    keep_kernels(file, b"two")
    assert read_kernels(file) == b"two"
    assert file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o777 == 0o700
    assert [*file.parent.iterdir()] == [file], "a temporary file was left"


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o720])
def test_a_folder_that_others_write_to(file: Path, mode: int) -> None:
    keep_kernels(file, b"mine")
    file.parent.chmod(mode)
    with pytest.warns(RuntimeWarning, match="not a folder of this user alone"):
        assert read_kernels(file) == b""
    with pytest.warns(RuntimeWarning, match="not a folder of this user alone"):
        keep_kernels(file, b"other")
    assert file.read_bytes() == b"mine"


def test_a_folder_of_another_user(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_kernels(file, b"mine")
    monkeypatch.setattr(kernels.os, "geteuid", lambda: os.getuid() + 1)
    with pytest.warns(RuntimeWarning, match="not a folder of this user alone"):
        assert read_kernels(file) == b""


def test_what_is_no_file_of_ours(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link, a file that others write to, a pipe, one that is far too large: nothing, without a word."""
    keep_kernels(file, b"mine")
    file.chmod(0o666)
    assert read_kernels(file) == b""
    (tmp_path / "elsewhere").write_bytes(b"theirs")
    file.unlink()
    file.symlink_to(tmp_path / "elsewhere")
    assert read_kernels(file) == b""
    file.unlink()
    file.mkdir()
    assert read_kernels(file) == b""
    file.rmdir()
    keep_kernels(file, b"mine")
    monkeypatch.setattr(kernels, "MOST_BYTES", 3)
    assert read_kernels(file) == b""


def test_a_folder_that_is_a_link(file: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    file.parent.parent.mkdir(parents=True)
    file.parent.symlink_to(tmp_path / "elsewhere")
    with pytest.warns(RuntimeWarning, match="not a folder of this user alone"):
        keep_kernels(file, b"mine")
    assert not [*(tmp_path / "elsewhere").iterdir()]


def test_where_nothing_can_be_written_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    keep_kernels(kernel_file("ab" * 32, GPU), b"mine")
    assert read_kernels(kernel_file("ab" * 32, GPU)) == b""
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert kernel_folder() == Path.home() / ".cache" / "ditedge" / "kernels"
    monkeypatch.setattr(Path, "home", classmethod(lambda cls: (_ for _ in ()).throw(RuntimeError())))
    assert kernel_file("ab" * 32, GPU) is None
    keep_kernels(None, b"mine")
