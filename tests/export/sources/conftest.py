"""Folders as diffusers writes them, with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ditedge.export import ExportOptions, bundle_from_checkpoint
from tests.export.sources.diffusers_models import diffusers_model, small_vae


@pytest.fixture(scope="session")
def transformer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diffusers") / "transformer"
    diffusers_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DiTPipeline with random weights, as the hub's: DDIM without clipping, a VAE, class names."""
    diffusers = pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("diffusers") / "pipeline"
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    diffusers.DiTPipeline(diffusers_model(), small_vae(), scheduler).save_pretrained(folder)
    index = json.loads(
        (folder / "model_index.json").read_text()
    )  # save_pretrained drops id2label; the hub's file has it
    index["id2label"] = {str(i): f"thing {i}, item {i}" for i in range(1000)}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="session")
def pipeline_bundle(pipeline_folder: Path) -> Path:
    out = pipeline_folder.parent / "bundle"
    bundle_from_checkpoint(pipeline_folder, out, ExportOptions())
    return out
