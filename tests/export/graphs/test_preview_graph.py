"""`preview.onnx`: the best linear picture of a VAE's latents, and what stands in for it without a VAE."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ditedge.export.graphs import write as write_module
from ditedge.export.graphs.preview import Preview, fitted_preview
from ditedge.export.graphs.write import write_preview
from ditedge.export.pictures import preview_of
from ditedge.export.sources.vae_checkpoint import read_vae
from ditedge.runtime import Session, open_bundle
from ditedge.runtime.errors import BundleError
from ditedge.runtime.loop.engine import EngineOptions
from ditedge.runtime.loop.engines import open_engine
from ditedge.runtime.report import silent
from tests.export.networks.vaes import make_tiny, make_vae
from tests.runtime.pictures.test_preview import linear_picture

WEIGHT = [[0.1, 0.0, -0.05, 0.02], [0.0, 0.08, 0.0, 0.0], [-0.03, 0.0, 0.0, 0.09]]


@pytest.fixture
def info(golden_bundle):
    return open_bundle(golden_bundle("latent4_learned_sigma")).manifest.model


def test_a_linear_decoder_is_reproduced(tmp_path: Path) -> None:
    """Least squares over smooth latents find its numbers."""
    make_vae(tmp_path)

    class Linear(torch.nn.Module):
        config = read_vae(tmp_path).decoder.config

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            colour = torch.einsum("kc,bchw->bkhw", torch.tensor(WEIGHT), z) + 0.05
            return colour.repeat_interleave(4, 2).repeat_interleave(4, 3)

    fitted = fitted_preview(Linear())
    np.testing.assert_allclose(fitted.colour.weight.detach()[:, :, 0, 0], WEIGHT, atol=2e-5)
    np.testing.assert_allclose(fitted.colour.bias.detach(), [0.05] * 3, atol=2e-5)


def test_the_graph_of_a_vae_is_the_formula(info, tmp_path: Path) -> None:
    """To 1 of 255; a tiny decoder is quick enough itself."""
    make_vae(tmp_path / "kl")
    fitted = preview_of(info, read_vae(tmp_path / "kl"), pixels=False)
    assert fitted is not None
    graph = write_preview(fitted, info, tmp_path, 20, silent)
    weight, bias = fitted.colour.weight.detach().numpy()[:, :, 0, 0], fitted.colour.bias.detach().numpy()
    z = np.random.default_rng(1).normal(0, 2, (3, 4, 8, 8)).astype(np.float32)
    picture, engine = np.empty((3, 32, 32, 3), np.uint8), open_engine(tmp_path / graph.file, EngineOptions())
    engine.run({"latent": z}, {"image": picture})
    engine.close()
    assert np.abs(picture.astype(int) - linear_picture(z, weight, bias, 4)).max() <= 1 and picture.std() > 5
    make_tiny(tmp_path / "tiny")
    assert preview_of(info, read_vae(tmp_path / "tiny"), pixels=False) is None


def test_a_graph_that_is_another_one_is_noticed(info, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preview = Preview(torch.eye(3, 4) / 3, torch.zeros(3), 8)
    export = write_module.export_graph

    def other(spec, *rest) -> None:
        export(replace(spec, module=Preview(torch.eye(3, 4) / 3, torch.full((3,), 0.02), 8)), *rest)

    monkeypatch.setattr(write_module, "export_graph", other)
    with pytest.raises(BundleError, match=r"preview\.onnx does not compute what PyTorch does"):
        write_preview(preview, info, tmp_path, 20, silent)


def test_a_latent_model_without_vae(golden_bundle) -> None:
    z = np.zeros((2, 4, 8, 8), np.float32)
    z[1, 0], z[1, 2] = 3.5, -3.5
    with Session(open_bundle(golden_bundle("latent4_learned_sigma"))) as session:
        picture = session.preview(z)
    assert picture.shape == (2, 64, 64, 3)
    assert (picture[0] == 128).all() and (picture[1] == [255, 128, 0]).all()
