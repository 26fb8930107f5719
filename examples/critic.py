"""Classifiers that training may ask, for examples/polish_text.py; never the judge of models/, which only measures.

Other networks than the judge, and other seeds. What a diffusion model takes for the picture while there is much noise
is blurred: the first is trained on blurred, faint and noisy images, too. The second, for the end, sees real images
alone, and is put out by grain as the judge is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from fashion_mnist import CLASSES, load, to_model_range
from torch import Tensor, nn

EPOCHS, BATCH = 2, 128
BLURRED = 0.6  # share of batches
LATE = 2.0  # sigma below which the second is asked


class Critic(nn.Module):
    """shown [N, 1, 32, 32] in [-1, 1], sigma [N] of the noise that is left (noise / signal) -> logits [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.early, self.late = early(), late()

    def forward(self, shown: Tensor, sigma: Tensor) -> Tensor:
        return torch.where((sigma < LATE)[:, None], self.late(shown).float(), self.early(shown).float())


def block(inputs: int, outputs: int, size: int, stride: int, active: nn.Module) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, size, stride, size // 2), nn.BatchNorm2d(outputs), active]


def early() -> nn.Sequential:
    first, last = block(1, 32, 5, 2, nn.GELU()), block(96, 128, 3, 1, nn.GELU())
    second, third = block(32, 64, 3, 1, nn.GELU()), block(64, 96, 3, 1, nn.GELU())
    head = nn.Flatten(), nn.Dropout(0.3), nn.Linear(2048, len(CLASSES))
    return nn.Sequential(*first, *second, nn.MaxPool2d(2), *third, nn.MaxPool2d(2), *last, *head)


def late() -> nn.Sequential:
    first, second = block(1, 24, 3, 1, nn.ReLU()), block(24, 64, 3, 1, nn.ReLU())
    third, last = block(64, 128, 3, 1, nn.ReLU()), block(128, 128, 3, 2, nn.ReLU())
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, len(CLASSES))
    return nn.Sequential(*first, nn.MaxPool2d(2), *second, nn.MaxPool2d(2), *third, *last, *head)


def blurred(images: Tensor, spread: float) -> Tensor:
    """images [N, 1, H, W], spread in pixels -> the same shape; beyond the margin is background."""
    line = torch.exp(-torch.arange(-3, 4).float().square() / (2 * spread**2))
    line = line / line.sum()
    padded = F.pad(images, [3] * 4, value=-1)
    return F.conv2d(F.conv2d(padded, line.view(1, 1, 1, -1)), line.view(1, 1, -1, 1))


def moved(images: Tensor) -> Tensor:
    """Shifted by a pixel at most, and mirrored half of the time."""
    down, across = torch.randint(-1, 2, (2,)).tolist()
    images = torch.roll(images, (down, across), dims=(2, 3))
    return images.flip(3) if torch.rand(()) < 0.5 else images


def varied(images: Tensor) -> Tensor:
    """Blurred, fainter or stronger, and noisy: [N, 1, H, W] in [-1, 1] -> the same."""
    count = len(images)
    if torch.rand(()) < BLURRED:
        images = blurred(images, 0.4 + 2 * float(torch.rand(())))
    strength, grain = 0.75 + 0.5 * torch.rand(count, 1, 1, 1), 0.25 * torch.rand(count, 1, 1, 1).square()
    return ((images + 1) * strength - 1 + grain * torch.randn_like(images)).clamp(-1, 1)


def train(model: nn.Module, images: Tensor, labels: Tensor, change: Callable[[Tensor], Tensor]) -> None:
    """Two epochs of AdamW with a one-cycle learning rate: two minutes on a CPU."""
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=EPOCHS * (len(images) // BATCH))
    for _ in range(EPOCHS):
        order = torch.randperm(len(images))
        for index in order[: len(order) // BATCH * BATCH].split(BATCH):
            shown = change(moved(images[index])).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(shown)
            optimizer.zero_grad()
            F.cross_entropy(logits.float(), labels[index]).backward()
            optimizer.step()
            schedule.step()


def critic(file: Path, data: Path | None) -> Critic:
    """What was saved in `file`; where it is missing, both are trained and saved there first."""
    model = Critic()
    if file.exists():
        model.load_state_dict(torch.load(file, weights_only=True))
    else:
        images, labels = load("train", data)
        torch.manual_seed(11)
        train(model.early, to_model_range(images), labels, varied)
        train(model.late, to_model_range(images), labels, lambda shown: shown)
        torch.save(model.state_dict(), file)
    return model.eval().requires_grad_(False)
