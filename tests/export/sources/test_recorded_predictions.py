"""SiT's checkpoints and recorded predictions; names of bundles after their runs."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from ditedge.cli import main
from ditedge.export import bundle_name, read_source
from ditedge.runtime import open_bundle
from ditedge.runtime.errors import CheckpointError
from ditedge.runtime.loop.verify import relative_error
from tests.export.networks.literal_dit import literal_dit
from tests.export.sources.layouts import EMA, RAW

SIT = {"model": "SiT-S/2", "image_size": 64, "num_classes": 5, "path_type": "Linear", "prediction": "velocity",
       "loss_weight": None, "sample_eps": 1e-3, "train_eps": 1e-5}  # fmt: skip


def test_sit_is_exported_as_the_flow_that_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """train.py's file of SiT from the command line: weights, settings and prediction are said, and right in the graph."""
    folder = tmp_path / "results" / "000-SiT-S-2-Linear-velocity-None" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save({"model": RAW, "ema": EMA, "opt": {}, "args": argparse.Namespace(**SIT)}, folder / "0050000.pt")
    monkeypatch.chdir(tmp_path)
    made = CliRunner().invoke(main, ["export", "--ckpt", str(folder / "0050000.pt"), "--heads", "3"])
    assert made.exit_code == 0, made.output
    for line in (
        "note: weights: 'ema', averaged over training (EMA), not 'model'",
        "note: settings: 3 heads (--heads), 5 classes and no class ('args' of the file: num_classes 5)",
        "note: predicts: flow-to-data ('args' of the file: path_type 'Linear')",
    ):
        assert line in made.output
    bundle = open_bundle(tmp_path / "000-SiT-S-2-Linear-velocity-None-0050000")
    model = bundle.manifest.model
    assert (model.prediction, model.mlp_ratio, model.frequency_divisor, model.out_channels) == (
        "flow-to-data",
        2.5,
        32,
        4,
    )
    z = np.random.default_rng(0).standard_normal((1, 4, 8, 8), dtype=np.float32)
    x = torch.from_numpy(z)
    for i in range(4):  # Euler's method with SiT's own forward: t from 0 (noise) to 1, the first C channels
        t = torch.full((1,), i / 4)
        x = x + literal_dit(EMA, 3, x, t, torch.tensor([2]))[:, :4] / 4
    from ditedge.runtime import generate
    from ditedge.runtime.loop.noise import GivenNoise

    noise = GivenNoise(z, np.zeros((4, *z.shape), np.float32))
    program = bundle.program(sampler="flow-euler", steps=4)
    ours = generate(bundle, [2], [0], program=program, guidance=1.0, noise=noise, output="latents")
    assert relative_error(ours, x.numpy()) < 1e-5


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"path_type": "GVP"}, "path_type 'GVP', .*: prediction 'velocity': not supported"),
        ({"path_type": "VP"}, "path_type 'VP'"),
        ({"prediction": "noise"}, "prediction 'noise': not supported"),
        ({"prediction": "score"}, "prediction 'score': not supported"),
        ({"path_type": "linear"}, "path_type 'linear', .*: prediction 'velocity': not supported"),  # REPA's and SiT's
        ({"prediction": "v"}, "path_type 'Linear', .*: prediction 'v': not supported"),
    ],
)
@pytest.mark.parametrize("asked", [None, "flow-to-data", "epsilon"])
def test_other_transports_are_refused_by_name(tmp_path: Path, changes: dict, complaint: str, asked: str | None) -> None:
    torch.save({"ema": EMA, "args": SIT | changes}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=complaint):
        read_source(tmp_path / "c.pt", heads=3, prediction=asked)


@pytest.mark.parametrize(
    ("settings", "asked", "expected"),
    [
        (SIT, None, "flow-to-data"),
        (SIT, "epsilon", "--prediction epsilon contradicts 'args' of the file: path_type 'Linear'"),
        (SIT | {"path_type": "linear", "prediction": "v"}, None, "flow"),  # REPA's
        (
            SIT | {"path_type": "linear", "prediction": "v"},
            "flow-to-data",
            "--prediction flow-to-data contradicts 'args' of the file: path_type 'linear'",
        ),
        ({"prediction": "v_prediction"}, None, "v"),
        ({"prediction_type": "x0"}, "epsilon", "epsilon"),
        ({"prediction": "velocity"}, None, "prediction 'velocity' is not known: give --prediction"),
        ({"prediction": "velocity"}, "v", "v"),
        ({}, None, "epsilon"),
    ],
)
def test_the_recorded_prediction_is_used(tmp_path: Path, settings: dict, asked: str | None, expected: str) -> None:
    torch.save({"ema": EMA, "args": settings}, tmp_path / "c.pt")
    if " " in expected:
        with pytest.raises(CheckpointError, match=expected):
            read_source(tmp_path / "c.pt", heads=3, prediction=asked)
    else:
        assert read_source(tmp_path / "c.pt", heads=3, prediction=asked).prediction == expected


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("results/000-DiT-S-2/checkpoints/0400000.pt", "000-DiT-S-2-0400000"),
        ("lightning_logs/version_3/checkpoints/epoch=3-step=100.ckpt", "version_3-epoch=3-step=100"),
        ("run/last.ckpt", "run-last"),
        ("run/DiT-XL-2-256x256.pt", "DiT-XL-2-256x256"),
        ("run/model.v2.safetensors", "model.v2"),
        ("/0400000.pt", "0400000"),
    ],
)
def test_bundles_are_named_after_their_run(tmp_path: Path, path: str, name: str) -> None:
    assert bundle_name(tmp_path / path) == name
