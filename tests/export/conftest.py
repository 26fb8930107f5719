"""A tiny PixArt, exported once a process: what tests of models that take prompts share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PIXART


@dataclass(frozen=True)
class TinyPipeline:
    """diffusers' pipeline, the folder that it was saved to, and the bundle of that folder. None is to be changed."""

    pipeline: Any
    folder: Path
    bundle: Path


@pytest.fixture(scope="session")
def tiny_pixart(tmp_path_factory: pytest.TempPathFactory) -> TinyPipeline:
    """PixArt-alpha of random weights (tests/export/pixart_pipelines.py), the model of tests/bundles/pixart.

    A test that needs no PyTorch opens that bundle (`BUNDLES / PIXART`). One that needs another scheduler or changed
    files makes a `small_pipeline()` of its own: its networks are the same, so their graphs are traced once a session
    (tests/exports_once.py) and the export costs about a second.
    """
    from tests.export.pixart_pipelines import export_pixart, small_pipeline

    folder, pipeline = tmp_path_factory.mktemp("tiny"), small_pipeline()
    return TinyPipeline(pipeline, folder / "pipeline", export_pixart(pipeline, folder / "pipeline", folder / PIXART))
