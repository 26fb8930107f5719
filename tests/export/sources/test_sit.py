"""SiT: a flow from a DiT's checkpoint, against a literal Euler loop; v prediction."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ditedge.export import ExportOptions, bundle_from_checkpoint, read_source
from ditedge.runtime import generate, open_bundle
from ditedge.runtime.errors import ProgramError, RequestError
from ditedge.runtime.loop.noise import GivenNoise
from ditedge.runtime.loop.verify import relative_error
from tests.export.sources.diffusers_models import GRAY, LATENT


@pytest.fixture(scope="module")
def sit_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded 4-channel model with learned sigma, taken for a SiT: 8 output channels, the first 4 in use."""
    out = tmp_path_factory.mktemp("sit") / "bundle"
    bundle_from_checkpoint(LATENT, out, ExportOptions(heads=2, prediction="flow-to-data"))
    return out


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_sit_equals_a_literal_euler_loop(sit_bundle: Path, guidance: float) -> None:
    original = read_source(LATENT, heads=2).model()  # all 8 output channels
    bundle = open_bundle(sit_bundle)
    size, steps, y = bundle.manifest.model.input_size, 20, torch.tensor([1, 2])
    z = torch.randn(2, 4, size, size, generator=torch.Generator().manual_seed(1))
    x = z
    with torch.no_grad():
        for i in range(steps):
            t = torch.full((2,), i / steps)
            velocity = original(x, t, y)[:, :4]
            if guidance != 1.0:  # SiT's forward_with_cfg: three channels
                null = original(x, t, torch.full_like(y, original.config.num_classes))[:, :3]
                velocity = torch.cat([null + guidance * (velocity[:, :3] - null), velocity[:, 3:]], dim=1)
            x = x + velocity / steps
    program = bundle.program(sampler="flow-euler", steps=steps)
    silence = np.zeros((steps, *z.shape), np.float32)
    ours = generate(
        bundle,
        [1, 2],
        [0, 0],
        program=program,
        guidance=guidance,
        noise=GivenNoise(z.numpy(), silence),
        output="latents",
    )
    assert relative_error(ours, x.numpy()) < 1e-5


def test_sit_bundle_says_what_it_is(sit_bundle: Path) -> None:
    manifest = open_bundle(sit_bundle).manifest
    model = manifest.model
    assert (model.prediction, model.timestep_range, model.learned_variance) == ("flow-to-data", (0.0, 1.0), False)
    assert model.out_channels == model.in_channels == 4 and manifest.schedule is None
    assert manifest.defaults.program == "flow-euler-50"
    assert [(golden.program, golden.guidance) for golden in manifest.golden] == [
        ("flow-euler-10", 4.0),
        ("flow-euler-10", 1.0),
    ]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"sampler": "ddim"}, "not one of flow-euler"),
        ({"respacing": "ddim50"}, "not one of flow-euler"),
        ({"steps": 0}, "steps 0"),
    ],
)
def test_samplers_that_do_not_fit_a_flow(sit_bundle: Path, settings: dict, complaint: str) -> None:
    with pytest.raises((ProgramError, RequestError), match=complaint):
        open_bundle(sit_bundle).program(**settings)


def test_v_prediction_follows_the_reference(tmp_path: Path) -> None:
    """Export replays trajectories of reference.py, which has v on its own: they agree, or there is no bundle."""
    manifest = bundle_from_checkpoint(GRAY, tmp_path / "b", ExportOptions(heads=2, prediction="v"))
    assert manifest.model.prediction == "v"


def test_a_manifest_from_before_these_fields_opens(gray_bundle: Path) -> None:
    path = gray_bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    for key in ("timestep_range", "frequency_divisor", "mlp_norm_eps"):
        del manifest["model"][key]
    path.write_text(json.dumps(manifest))
    model = open_bundle(gray_bundle).manifest.model
    assert (model.timestep_range, model.frequency_divisor, model.mlp_norm_eps) == ((999.0, 0.0), 128, 1e-6)
