"""What examples/train_meanflow.py minimises: its derivative, its teacher as a velocity, its times."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from meanflow_losses import Guided, Teacher, derivative, mean_flow_loss, one_evaluation, sample_times
from pixart_of_dit import read_teacher
from safetensors.torch import load_file, save_file
from torch import nn
from train_meanflow import keep_mean

from ditedge.export.networks.meanflow import MeanFlow, MeanFlowConfig
from tests.conftest import ROOT

# torch.func.jvp compiles a decomposition of its own when it is called first.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
CONFIG = MeanFlowConfig(8, 4, 1, 32, 2, 2, num_classes=3, learn_sigma=False)


def random_network() -> MeanFlow:
    torch.manual_seed(0)
    model = MeanFlow(CONFIG)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def test_the_derivative_is_along_the_velocity_with_r_held() -> None:
    model, y = random_network(), torch.tensor([0, 2])
    x, v = torch.randn(2, 2, 1, 8, 8)
    t, interval = torch.tensor([0.8, 0.5]), torch.tensor([0.8, 0.2])
    found = derivative(model, x, t, interval, y, v)
    step = 5e-3
    with torch.no_grad():
        after, before = (model(x + s * v, t + s, y, interval + s) for s in (step, -step))
    difference = (after - before) / (2 * step)
    assert (found - difference).norm() < 1e-3 * difference.norm()  # measured: 5e-5


def test_an_average_velocity_that_is_right_has_no_loss_of_its_own() -> None:
    """With r = t everywhere the target is the velocity of the images; a network that says 0 is off by its square."""
    model, images = random_network(), torch.zeros(64, 1, 8, 8)
    nn.init.zeros_(model.final_layer.linear.weight)
    nn.init.zeros_(model.final_layer.linear.bias)
    guided = Guided(1.0, (0.2, 0.8), kept=0.0, dropped=0.0)
    _, error = mean_flow_loss(model, None, guided, images, torch.zeros(64, dtype=torch.int64), equal=1.0)
    assert abs(error.item() - 1) < 0.1  # the variance of the noise
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(one_evaluation(model, x, torch.ones(2), torch.zeros(2, dtype=torch.int64)), x)


def test_times_lie_where_they_are_told() -> None:
    t, r = sample_times(1000, 600, "cpu")
    assert (r <= t).all() and (t[600:] == r[600:]).all() and 0 < t.min() and t.max() == 1
    assert (r[:600] == 0).float().mean() > 0.2 and (t == 1).float().mean() > 0.1


def test_the_demo_model_as_a_velocity_finds_the_image() -> None:
    """Of flat gray images with little noise in them it says nearly noise - image."""
    teacher = Teacher(read_teacher(ROOT / "models" / "fashion-dit.safetensors"), "cpu")
    t = torch.tensor([0.02, 0.2, 0.5])
    ratio = torch.exp(teacher.log_ratio[teacher.timestep(t).round().long()])
    torch.testing.assert_close(ratio, t / (1 - t), rtol=0.1, atol=0)
    image, noise = torch.full((3, 1, 32, 32), -1.0), torch.randn(3, 1, 32, 32)
    share = t[:, None, None, None]
    x, y = (1 - share) * image + share * noise, torch.tensor([0, 1, 2])
    found = teacher.images(x, t, y, torch.ones(3))
    assert (found[0] - image[0]).abs().mean() < 0.05
    torch.testing.assert_close(teacher.velocity(x, t, y, torch.ones(3)), (x - found) / share)


def test_the_mean_of_two_files_is_half_of_each(tmp_path: Path) -> None:
    names = ("ema.safetensors", "without-adversary.safetensors")
    save_file({"w": torch.tensor([1.0, -3.0]).half()}, tmp_path / names[0])
    keep_mean(tmp_path)
    assert not (tmp_path / "mean.safetensors").exists()  # an adversary that never played
    save_file({"w": torch.tensor([2.0, 6.0]).half()}, tmp_path / names[1])
    keep_mean(tmp_path)
    mean = load_file(tmp_path / "mean.safetensors")["w"]
    assert mean.dtype == torch.float16 and mean.tolist() == [1.5, 1.5]
