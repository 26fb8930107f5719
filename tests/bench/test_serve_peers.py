"""The servers that `bench/serve_peers.py` compares with answer as ours does: the figures are of the same work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.serve_peers import naive, of_bundle, of_pipeline
from tests.runtime.serving.serving import client, decoded, pixels
from tests.runtime.serving.test_api import IMAGES


def test_naive_makes_our_pictures(golden_bundle) -> None:
    from starlette.testclient import TestClient

    folder, asked = golden_bundle("gray1_cfg"), {"prompt": "3", "seed": 5, "num_inference_steps": 4}
    with client(folder) as ours, TestClient(naive(of_bundle(folder, 1))) as theirs:
        one, other = (server.post(IMAGES, json=asked).json()["data"][0] for server in (ours, theirs))
        assert np.array_equal(pixels(decoded(one["b64_json"])), pixels(decoded(other["b64_json"])))


@pytest.mark.slow
def test_a_pipeline_of_diffusers(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
    from starlette.testclient import TestClient

    network = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        out_channels=4,
        num_layers=1,
        sample_size=8,
        num_embeds_ada_norm=1000,
    )
    decoder = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=8)
    DiTPipeline(network, decoder, DDIMScheduler()).save_pretrained(tmp_path)
    with TestClient(naive(of_pipeline(tmp_path, 1))) as server:
        said = server.post(IMAGES, json={"prompt": "3", "seed": 5, "num_inference_steps": 2}).json()
        assert pixels(decoded(said["data"][0]["b64_json"])).shape == (8, 8, 3)
