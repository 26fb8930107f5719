"""Plans on the double of a GPU."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from ditedge.runtime import open_bundle
from ditedge.runtime.bundle.open import Bundle
from ditedge.runtime.loop import device, engine_trt
from tests.doubles.gpu_double import DoubleGpu
from tests.doubles.plans import write_plans


@pytest.fixture(scope="session")
def plan_bundle(golden_bundle, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """plan_bundle(case, prediction) -> an opened bundle with engines/double/."""
    folder = tmp_path_factory.mktemp("plans")

    def copy(case: str, prediction: str = "epsilon") -> Bundle:
        out = folder / f"{case}-{prediction}"
        if not out.exists():
            shutil.copytree(golden_bundle(case, prediction), out)
            write_plans(out)
        return open_bundle(out)

    return copy


@pytest.fixture(autouse=True)
def doubles_are_polled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """They work while they are asked, and at no other time."""
    monkeypatch.setattr(device, "time", SimpleNamespace(sleep=lambda seconds: None))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> DoubleGpu:
    """What `Session` finds instead of a GPU."""
    double = DoubleGpu()
    monkeypatch.setattr(engine_trt, "NvidiaGpu", lambda: double)
    return double
