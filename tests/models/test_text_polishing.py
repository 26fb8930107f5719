"""Training on pictures that the model draws itself: where they are, and what each half is told."""

from __future__ import annotations

import argparse
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from critic import LATE, Critic, blurred, critic, varied
from drawn_pictures import FIRST, LAST, STRIDE, Captions, Pictures, beside, read_captions, stacked
from pixart_of_dit import read_teacher
from polish_text import NONE, Run, new_run, taught, too_bright, train_step
from text_encoder import WIDTH
from train import Diffusion

from tests.conftest import MODELS

START = MODELS / "fashion-dit.safetensors"
WEIGHTS = MODELS / "fashion-pixart" / "transformer" / "diffusion_pytorch_model.safetensors"


def captions() -> Captions:
    """Of a bag beside a dark shirt, and of a coat beside a boot; rows are the numbers of the captions."""
    rows = torch.tensor([1.0, 2.0, 3.0]).half()[:, None, None].expand(-1, 6, WIDTH)
    labels, sides = torch.tensor([[8, 6], [4, 9]]), torch.tensor([[0, -1], [0, 0]])
    return Captions(rows, rows + 10, torch.tensor([6, 4, 2]), labels, sides, torch.tensor([[0.0, 90.0], [0.0, 0.0]]))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    torch.save(Critic().state_dict(), tmp_path / "critic.pt")
    args = {
        "guidance": 4.5,
        "critic_weight": 0.1,
        "brightness_weight": 0.3,
        "learning_rate": 1e-3,
        "ema_decay": 0.99,
        "steps": 10,
    }
    return new_run(argparse.Namespace(start=START, weights=WEIGHTS, out=tmp_path, data=None, **args))


def test_halves_are_stacked_and_laid_beside_each_other_again() -> None:
    pictures = torch.randn(3, 1, 4, 8)
    assert torch.equal(stacked(pictures, 2)[4, 0], pictures[1, 0, :, 4:])
    assert torch.equal(beside(stacked(pictures, 2), 2), pictures)


def test_pictures_go_on_until_they_are_done() -> None:
    torch.manual_seed(0)
    drawn, diffusion = Pictures(400, 2, captions()), Diffusion("cpu")
    drawn.t[:200], drawn.t[200:] = 500, LAST  # the latter are done with the next step, however short
    x0, noise = torch.randn(2, 400, 1, 32, 64)
    drawn.go_on(x0, noise, diffusion)
    went = 500 - drawn.t[:200]
    assert went.min() == STRIDE[0] and went.max() == STRIDE[1] - 1
    assert torch.equal(drawn.x[:200], diffusion.add_noise(x0, noise, drawn.t)[:200])
    assert drawn.t[200:].min() >= FIRST[0] and drawn.x[200:].std().sub(1).abs() < 0.02


def test_rows_are_between_those_of_both_encoders() -> None:
    torch.manual_seed(1)
    drawn, silent = Pictures(300, 2, captions()), torch.arange(300) < 50
    hidden, mask = drawn.prompts(silent)
    level, weak = hidden.mean((1, 2)), drawn.weakness.flatten()
    expected = torch.where(silent, 3, drawn.chosen + 1) + 10 * weak
    torch.testing.assert_close(level, expected, rtol=0, atol=0.2)
    assert 100 < (weak == 0).sum() < 200 and weak.max() > 0.9
    longest = torch.where(silent, 2, torch.tensor([6, 4])[drawn.chosen])
    assert (
        (mask.sum(1) <= longest).all() and mask[:, 0].all() and not (mask * (torch.arange(6) >= longest[:, None])).any()
    )
    plain, every = drawn.no_words()
    assert (plain == 3).all() and every.all() and plain.shape == (300, 2, WIDTH)


def test_files_of_other_captions_are_refused(tmp_path: Path) -> None:
    for name, text in (("a.pt", "a bag"), ("b.pt", "a coat")):
        torch.save({"captions": [(text, [(8, None)])]}, tmp_path / name)
    with pytest.raises(SystemExit, match="not of the same captions"):
        read_captions(tmp_path / "a.pt", tmp_path / "b.pt", None)


def test_each_half_is_told_what_the_class_conditional_model_says_of_it() -> None:
    torch.manual_seed(2)
    teacher, drawn = read_teacher(START), Pictures(3, 2, captions())
    labels = drawn.captions.labels[drawn.chosen]
    wanted, of_none = taught(teacher, drawn, labels.T.flatten(), torch.tensor([3.0, 3.0, 1.0])[:, None, None, None])
    for picture in range(3):
        for place in range(2):
            half = slice(32 * place, 32 * place + 32)
            x, t = drawn.x[picture : picture + 1, :, :, half], drawn.t[picture : picture + 1]
            said, unsaid = (teacher(x, t, label[None])[:, :1] for label in (labels[picture, place], torch.tensor(NONE)))
            for found, expected in ((of_none, unsaid), (wanted, said + (0 if picture == 2 else 2) * (said - unsaid))):
                torch.testing.assert_close(found[picture : picture + 1, :, :, half], expected, rtol=1e-3, atol=1e-3)


def test_brightness_beyond_its_limit() -> None:
    shown = torch.full((4, 1, 32, 32), -1.0)
    shown[:, :, 8:24, 8:24] = 100 / 127.5 - 1
    found = too_bright(shown, torch.tensor([36.0, 120.0, 164.0, 50.0]), torch.tensor([-1, -1, 1, 0]))
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0, 1.0, 0.0]))


def test_a_step_changes_the_model_and_its_average_alone(run: Run) -> None:
    torch.manual_seed(3)
    drawn, kept = Pictures(4, 2, captions()), deepcopy([run.teacher.state_dict(), run.critic.state_dict()])
    before, t = deepcopy(run.model.state_dict()), drawn.t.clone()
    found = train_step(run, drawn)
    assert found.isfinite().all() and (found > 0)[:2].all() and run.step == 1
    after, averaged = run.model.state_dict(), run.ema.state_dict()
    assert any(not torch.equal(after[name], before[name]) for name in before)
    for name in before:
        torch.testing.assert_close(averaged[name], 0.1 * before[name] + 0.9 * after[name], rtol=1e-4, atol=1e-6)
    for old, new in zip(kept, (run.teacher.state_dict(), run.critic.state_dict()), strict=True):
        assert all(torch.equal(old[name], new[name]) for name in old)
    assert (drawn.t != t).all()


def test_steps_bring_guided_pictures_nearer_to_what_is_taught(run: Run) -> None:
    """Always the same four pictures at the same steps."""
    torch.manual_seed(4)
    drawn, errors = Pictures(4, 2, captions()), []
    for _ in range(6):
        torch.manual_seed(5)
        errors.append(train_step(run, deepcopy(drawn))[:2])
    assert (errors[-1] < errors[0]).all()


def test_the_classifier_that_training_asks(tmp_path: Path) -> None:
    torch.manual_seed(6)
    made = Critic().eval()
    torch.save(made.state_dict(), tmp_path / "critic.pt")
    images, sigma = torch.rand(5, 1, 32, 32) * 2 - 1, LATE * torch.tensor([0.1, 0.9, 1.1, 5.0, 50.0])
    found = critic(tmp_path / "critic.pt", None)
    assert not any(each.requires_grad for each in found.parameters())
    logits = found(images, sigma)
    assert torch.equal(logits[:2], made.late(images)[:2]) and torch.equal(logits[2:], made.early(images)[2:])
    shown = varied(images)
    assert shown.shape == images.shape and shown.min() >= -1 and shown.max() <= 1
    soft = blurred(images, 1.5)
    assert soft.std() < 0.6 * images.std()
    torch.testing.assert_close(blurred(torch.full((1, 1, 8, 8), -1.0), 2.0), torch.full((1, 1, 8, 8), -1.0))
