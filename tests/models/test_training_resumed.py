"""What the three trainers of examples/ share: a run is taken up where its checkpoint left it, weights ship in float16."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from torch import nn
from train import halved, learning_rate, save, take_up


def parts(seed: int) -> dict[str, nn.Module | torch.optim.Optimizer]:
    """A network and its optimiser after one step."""
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    return {"model": model, "opt": optimizer}


def test_a_run_is_taken_up_where_its_checkpoint_left_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after, path = parts(0), parts(1), tmp_path / "checkpoint.pt"
    beside = {"args": argparse.Namespace(steps=9), "step": 5, "seconds": 2.5}
    save(path, {name: part.state_dict() for name, part in before.items()} | beside)
    assert take_up(path, after, "cpu") == beside
    assert capsys.readouterr().out == f"going on from {path} at step 5\n"
    torch.testing.assert_close(after["model"].state_dict(), before["model"].state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(after["opt"].state_dict(), before["opt"].state_dict(), rtol=0, atol=0)


def test_weights_are_shipped_in_float16() -> None:
    model = nn.Linear(3, 2)
    model.weight.data = torch.randn(3, 2).T
    shipped = halved(model)
    assert {value.dtype for value in shipped.values()} == {torch.float16} and shipped["weight"].is_contiguous()
    torch.testing.assert_close(shipped["weight"], model.weight.data.half(), rtol=0, atol=0)


def test_the_learning_rate_falls_by_steps_or_by_time_whichever_is_further() -> None:
    args = argparse.Namespace(learning_rate=1.0, warmup_steps=10, steps=110, minutes=1.0)
    assert learning_rate(args, 4, 0.0) == 0.5
    found = [learning_rate(args, step, seconds) for step, seconds in ((10, 0.0), (60, 0.0), (10, 30.0), (110, 5.0))]
    assert found == pytest.approx([1.0, 0.51, 0.51, 0.02])
