"""MeanFlow: a step of one evaluation or of several against the network and its sampler, written out (literal_dit.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ditedge.export import read_source
from ditedge.export.networks.meanflow import MeanFlow, MeanFlowConfig
from ditedge.runtime import generate, open_bundle
from ditedge.runtime.errors import BundleError, CheckpointError, ProgramError, RequestError
from ditedge.runtime.loop.noise import GivenNoise
from ditedge.runtime.loop.verify import relative_error
from ditedge.runtime.samplers.program import Program, read_program, write_program
from tests.export.networks.literal_dit import literal_dit
from tests.export.sources.layouts import CONFIG, prefixed

LABELS, NULL = [0, 3, 4], 5


def random_mean_flow() -> dict[str, Tensor]:
    torch.manual_seed(3)
    config = MeanFlowConfig(**vars(CONFIG) | {"learn_sigma": False})
    return {key: torch.randn_like(value) * 0.3 for key, value in MeanFlow(config).state_dict().items()}


STATE = random_mean_flow()
TORCH_PORT = {key.replace("h_embedder.", "r_embedder."): value for key, value in STATE.items()}


def saved(path: Path, state: dict[str, Tensor] = STATE, **beside: object) -> Path:
    torch.save({"model": state, **beside}, path)
    return path


def literal_run(z: Tensor, times: list[float], guidance: float = 1.0) -> Tensor:
    """Eq. 12 of the paper from time to time, guidance as of two velocities."""
    x = z
    for t, r in zip(times, times[1:], strict=False):

        def velocity(label: list[int], x: Tensor = x, t: float = t, r: float = r) -> Tensor:
            told = torch.full((len(x),), t), torch.tensor(label), torch.full((len(x),), t - r)
            return literal_dit(STATE, 3, x, *told)

        u = velocity(LABELS)
        if guidance != 1:
            u = guidance * u + (1 - guidance) * velocity([NULL] * len(x))
        x = x - (t - r) * u
    return x


def sampled(folder: Path, z: Tensor, program: Program, guidance: float = 1.0) -> np.ndarray:
    noise = GivenNoise(z.numpy(), np.zeros((program.steps, *z.shape), np.float32))
    return generate(
        open_bundle(folder), LABELS, [0, 0, 0], program=program, guidance=guidance, noise=noise, output="latents"
    )


@pytest.mark.parametrize("state", [STATE, TORCH_PORT, prefixed("net.", STATE)], ids=["jax", "torch", "prefixed"])
def test_the_network_is_theirs(tmp_path: Path, state: dict[str, Tensor]) -> None:
    found = read_source(saved(tmp_path / "c.pt", state), heads=3)
    assert (found.prediction, found.guidance, found.config.num_classes) == ("mean-flow", 1.0, 5)
    x, t, y, h = torch.randn(3, 4, 8, 8), torch.tensor([1.0, 0.6, 0.2]), torch.tensor([0, 4, 5]), torch.rand(3)
    ours = found.model()(x, t, y, h)
    assert relative_error(ours.numpy(), literal_dit(STATE, 3, x, t, y, h).numpy()) < 1e-5


@pytest.mark.parametrize(("steps", "guidance"), [(1, 1.0), (2, 1.0), (4, 1.5)])
def test_steps_of_one_evaluation_each(mean_flow_bundle: Path, steps: int, guidance: float) -> None:
    program = open_bundle(mean_flow_bundle).program(f"mean-flow-{steps}")
    assert program.steps == steps
    z = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    theirs = literal_run(z, [1 - i / steps for i in range(steps + 1)], guidance)
    assert relative_error(sampled(mean_flow_bundle, z, program, guidance), theirs.numpy()) < 1e-4


def test_uneven_steps_are_told_how_far_they_go(mean_flow_bundle: Path, tmp_path: Path) -> None:
    program = open_bundle(mean_flow_bundle).program(sampler="mean-flow", steps=2, shift=3.0)
    write_program(program, tmp_path / "p.json")
    program = read_program(tmp_path / "p.json")
    np.testing.assert_allclose(program.interval, [0.25, 0.75], atol=1e-12)
    z = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    assert relative_error(sampled(mean_flow_bundle, z, program), literal_run(z, [1.0, 0.75, 0.0]).numpy()) < 1e-4


def test_to_an_image_and_noise_again(mean_flow_bundle: Path) -> None:
    """mean-consistency: all the way at each step, x = (1 - t) x0 + t noise between."""
    program = open_bundle(mean_flow_bundle).program("mean-consistency-2")
    z, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    first = literal_run(z, [1.0, 0.0])
    theirs = literal_run(0.5 * first + 0.5 * noise, [0.5, 0.0])
    given = GivenNoise(z.numpy(), np.stack([noise.numpy(), np.zeros_like(noise.numpy())]))
    ours = generate(
        open_bundle(mean_flow_bundle), LABELS, [0, 0, 0], program=program, guidance=1.0, noise=given, output="latents"
    )
    assert relative_error(ours, theirs.numpy()) < 1e-4


def test_the_bundle_says_what_it_is(mean_flow_bundle: Path) -> None:
    manifest = open_bundle(mean_flow_bundle).manifest
    assert (manifest.model.prediction, manifest.schedule, manifest.model.guided_channels) == ("mean-flow", None, 4)
    assert (manifest.defaults.program, manifest.defaults.guidance) == ("mean-flow-1", 1.0)
    assert [tensor.name for tensor in manifest.graphs["conditioner"].inputs] == ["timestep", "label", "interval"]
    assert {golden.program for golden in manifest.golden} == {"mean-flow-2"}


def test_other_programs_are_refused(mean_flow_bundle: Path, tmp_path: Path) -> None:
    bundle = open_bundle(mean_flow_bundle)
    with pytest.raises(ProgramError, match="'flow-euler' is not one of mean-flow, mean-consistency"):
        bundle.program(sampler="flow-euler", steps=4)
    program = bundle.program("mean-flow-2")
    path = tmp_path / "p.json"
    write_program(program, path)
    text = path.read_text()
    for damaged, complaint in (("[0.5]", "interval has shape"), ("[0.5, null]", "interval holds something else")):
        path.write_text(text.replace('"interval": [0.5, 0.5]', f'"interval": {damaged}'))
        with pytest.raises(ProgramError, match=complaint):
            read_program(path)
    path.write_text(text.replace('"interval": [0.5, 0.5], ', ""))
    with pytest.raises(RequestError, match="'mean-flow-2' does not say how far its steps go"):
        generate(bundle, [0], [0], program=read_program(path), output="latents")


def test_a_manifest_cannot_keep_the_interval_from_the_conditioner(mean_flow_bundle: Path, tmp_path: Path) -> None:
    text = (mean_flow_bundle / "manifest.json").read_text()
    for damaged in (
        text.replace('"prediction": "mean-flow"', '"prediction": "flow"'),
        text.replace("interval", "inter"),
    ):
        assert damaged != text
        (tmp_path / "manifest.json").write_text(damaged)
        with pytest.raises(BundleError, match="interval' is told where|input 'inter' is not one"):
            open_bundle(tmp_path)


@pytest.mark.parametrize(
    ("changes", "beside", "asked", "complaint"),
    [
        ({"r_embedder.mlp.0.weight": torch.zeros(48, 64)}, {}, {}, "'h_embedder.' and 'r_embedder.': one of them"),
        ({}, {"args": {"path_type": "cosine"}}, {}, "path_type 'cosine': MeanFlow is supported along path_type"),
        ({"final_layer.linear.weight": torch.zeros(32, 48)}, {}, {}, "MeanFlow with learn_sigma is not supported"),
        ({"h_embedder.mlp.2.weight": torch.zeros(48, 47)}, {}, {}, "h_embedder.mlp.2.weight' has shape"),
        ({}, {}, {"prediction": "flow"}, "--prediction flow: this network is MeanFlow's; leave the option out"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused(
    tmp_path: Path, changes: dict[str, Tensor], beside: dict[str, object], asked: dict[str, str], complaint: str
) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        read_source(saved(tmp_path / "c.pt", STATE | changes, **beside), heads=3, **asked)


def test_mean_flow_is_not_asked_of_a_dit(tmp_path: Path) -> None:
    plain = {key: value for key, value in STATE.items() if not key.startswith("h_embedder.")}
    with pytest.raises(CheckpointError, match="has no embedder of how far a step goes"):
        read_source(saved(tmp_path / "c.pt", plain), heads=3, prediction="mean-flow")
