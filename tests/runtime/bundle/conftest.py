"""A signed bundle, its keys, and a GPU that notes what is done with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ditedge.runtime.loop import engine_trt
from ditedge.runtime.signing import new_key_pair, sign_bundle
from tests.doubles.gpu_double import DoubleGpu


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """(private, public) of a new pair."""
    (tmp_path / "keys").mkdir()
    private = tmp_path / "keys" / "release.pem"
    return private, new_key_pair(private)


@pytest.fixture
def signed(gray_bundle: Path, keys: tuple[Path, Path]) -> Path:
    sign_bundle(gray_bundle, keys[0])
    return gray_bundle


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> DoubleGpu:
    gpu = DoubleGpu()
    monkeypatch.setattr(engine_trt, "NvidiaGpu", lambda: gpu)
    return gpu
