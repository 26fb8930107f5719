"""The layouts that training scripts save: which weights are taken, what is said of it, and that they compute the same."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ditedge.export import read_checkpoint, read_source
from ditedge.export.sources.checkpoint import load_tensors
from ditedge.runtime.errors import CheckpointError
from ditedge.runtime.loop.verify import relative_error
from tests.export.sources.layouts import CONFIG, EMA, RAW, State, output, prefixed

RANDOM_STATE = np.random.RandomState(0).get_state()


def litema(owner: str, prefix: str, state: State) -> State:
    """latent-diffusion's LitEma: buffers of what is trained, named without dots."""
    return {owner + (prefix + key).replace(".", ""): value for key, value in state.items() if key != "pos_embed"}


TRAINED = [value for key, value in EMA.items() if key != "pos_embed"]
# What is saved -> what the sentence says of the weights.
LAYOUTS: dict[str, tuple[Any, str]] = {
    "train.py": ({"model": RAW, "ema": EMA, "opt": {}, "args": argparse.Namespace()}, "'ema', averaged"),
    "DDP inside compile": ({"ema": prefixed("_orig_mod.module.", EMA)}, "'ema._orig_mod.module', averaged"),
    "compile inside DDP": ({"model": RAW, "ema": prefixed("module._orig_mod.", EMA)}, "'ema.module._orig_mod'"),
    "model_ema": ({"model": RAW, "model_ema": EMA}, "'model_ema', averaged over training (EMA), not 'model'"),
    "ema_model": ({"model": prefixed("module.", RAW), "ema_model": EMA}, "'ema_model', averaged"),
    "timm": ({"state_dict": RAW, "state_dict_ema": EMA}, "'state_dict_ema', averaged"),
    "ema with a module": ({"model": RAW, "ema": {"module": EMA, "updates": 7}}, "'ema.module', averaged"),
    "ema-pytorch": (
        {"model": RAW, "ema": {**prefixed("ema_model.", EMA), **prefixed("online_model.", RAW), "step": torch.tensor(1)}},
        "'ema.ema_model', averaged over training (EMA), not 'model', 'ema.online_model'",
    ),
    "torch's AveragedModel": (
        {"model": RAW, "averager": {"n_averaged": torch.tensor(5), **prefixed("module.", EMA)}},
        "'averager.module', averaged",
    ),
    "Lightning, one network of two": (
        {"state_dict": {**prefixed("model.", RAW), **prefixed("ema_model.", EMA), "vae.conv": torch.ones(3, 3)}, "epoch": 1},
        "'state_dict.ema_model', averaged",
    ),
    "Lightning's WeightAveraging": (
        {"state_dict": prefixed("net.", EMA), "current_model_state": prefixed("net.", RAW), "averaging_state": {}},
        "'state_dict.net', averaged",
    ),
    "LitEma": (
        {"state_dict": {**prefixed("model.diffusion_model.", RAW), **litema("model_ema.", "diffusion_model.", EMA)}},
        "'state_dict.model_ema', averaged",
    ),
    "shadow_params": ({"model": RAW, "ema": {"shadow_params": list(EMA.values()), "decay": 0.9}}, "'ema.shadow_params'"),
    "shadow_params alone": ({"ema": {"shadow_params": list(EMA.values())}}, "'ema.shadow_params', averaged"),
    "shadow_params of what is trained": ({"model": RAW, "ema": {"shadow_params": TRAINED}}, "'ema.shadow_params'"),
    "flat": (EMA, "the file's own keys, the only ones in the file"),
    "flat DDP": (prefixed("module.", EMA), "'module', the only ones in the file"),
    "numpy beside": ({"ema": EMA, "loss": np.float64(0.1), "n": np.int64(3), "rng": RANDOM_STATE}, "'ema', averaged"),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_average_is_taken_and_said(tmp_path: Path, layout: str) -> None:
    data, sentence = LAYOUTS[layout]
    torch.save(data, tmp_path / "c.pt")
    checkpoint = read_source(tmp_path / "c.pt", heads=3)
    assert checkpoint.config == CONFIG
    assert checkpoint.notes[0].startswith(f"weights: {sentence}")
    positions = checkpoint.weights["pos_embed"]  # of the raw model, where the average has what is trained alone
    assert torch.equal(positions, EMA["pos_embed"]) or torch.equal(positions, RAW["pos_embed"])
    expected, inputs = output({**EMA, "pos_embed": positions})
    assert relative_error(checkpoint.model()(*inputs).numpy(), expected.numpy()) < 1e-5
    assert relative_error(expected.numpy(), output(RAW)[0].numpy()) > 0.1, "the raw weights would show"


def test_weights_can_be_chosen(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    torch.save({"model": RAW, "ema_a": EMA, "ema_b": RAW}, path)
    with pytest.raises(CheckpointError, match=r"2 state dicts of a DiT, 'ema_a', 'ema_b': say which with --weights"):
        read_checkpoint(path, heads=3)
    taken = read_checkpoint(path, heads=3, weights="model")
    assert torch.equal(taken.weights["pos_embed"], RAW["pos_embed"])
    assert taken.notes[0] == "weights: 'model', as --weights says, not 'ema_a', 'ema_b'"
    with pytest.raises(CheckpointError, match="--weights 'x' is not one of 'model', 'ema_a', 'ema_b'"):
        read_checkpoint(path, heads=3, weights="x")


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({"net": {"w": torch.ones(3, 3)}, "epoch": 3}, "no state dict of a DiT; keys found: 'net', 'epoch'"),
        ({"\x1b[31m": 1}, r"keys found: '\\x1b\[31m'"),
        ([RAW["pos_embed"]], "it holds an object of type list"),
        ({"model": RAW, "opt_states": [{"ema": [torch.ones(2, 2)]}]}, r"layout that is not known, 'opt_states.0.ema.0'"),
        ({"model": RAW, "ema": {"shadow_params": TRAINED[:-1]}}, "not known, 'ema.shadow_params.0'.*keys found: 'model', 'ema'"),
        ({"a": RAW, "b": RAW}, "say which with --weights"),
        ({"m": {f"{i}.x_embedder.proj.weight": torch.ones(1) for i in range(40)}}, "40 state dicts"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused_with_its_keys(tmp_path: Path, data: Any, complaint: str) -> None:
    torch.save(data, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=complaint):
        read_checkpoint(tmp_path / "c.pt", heads=3)


def test_any_network_gets_its_average(tmp_path: Path) -> None:
    mine, other = {"module.conv": torch.ones(2)}, {"module.conv": torch.zeros(2)}
    torch.save(
        {"model": other, "ema": mine, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}, tmp_path / "c.pt"
    )
    assert load_tensors(tmp_path / "c.pt")["conv"].tolist() == [1, 1]
