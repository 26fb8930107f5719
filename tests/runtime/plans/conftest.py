"""Plans that several tests look at."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ditedge.runtime import open_bundle
from ditedge.runtime.plans.build import build_bundle
from ditedge.runtime.plans.options import BuildOptions
from tests.runtime.plans.here import Built


@pytest.fixture(scope="session")
def a_build(golden_bundle, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The smallest bundle with plans for three architectures, and what their build told. Not to be changed."""
    folder = Path(shutil.copytree(golden_bundle("gray1_cfg"), tmp_path_factory.mktemp("built") / "gray"))
    options = BuildOptions("tensorrt-rtx", archs=("sm86", "sm89", "sm120"), max_batch=3, max_rows=5)
    told: list[tuple[str, int, int]] = []
    build_bundle(open_bundle(folder), options, lambda *event: told.append(event))
    return Built(folder, told)


@pytest.fixture(scope="session")
def built(a_build: Built) -> Path:
    return a_build.folder
