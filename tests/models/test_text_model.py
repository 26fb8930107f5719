"""The text demo's weights: small enough to ship, and what they draw is what captions say.

Token rows of the captions come recorded, so that no text encoder is needed: `caption_rows.safetensors` has what
all-MiniLM-L6-v2 with the demo's LoRA makes of each, in float16, by the caption itself.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fashion_mnist import CLASSES
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ditedge.calibration import image_features
from ditedge.export.networks.pixart import PixArt
from ditedge.export.sources.pixart_folder import read_pixart
from ditedge.export.truth.reference import guided, reference_trajectory, trained_alphas_cumprod
from ditedge.runtime.samplers.schedule import respaced_timesteps
from tests.conftest import MODELS

FOLDER = MODELS / "fashion-pixart"
ROWS = Path(__file__).parent / "caption_rows.safetensors"
STEPS, GUIDANCE = 10, 4.5
ASKED = {
    "a pair of jeans on the left of a sneaker": ("Trouser", "Sneaker"),
    "an ankle boot and a pair of trousers": ("Ankle boot", "Trouser"),
    "left: a t-shirt, right: a pair of slacks": ("T-shirt/top", "Trouser"),
    "a sandal on the left and a pullover on the right": ("Sandal", "Pullover"),
}


def test_size() -> None:
    shipped = [MODELS / "fashion-minilm-lora.safetensors", *(path for path in FOLDER.rglob("*") if path.is_file())]
    assert sum(path.stat().st_size for path in shipped) <= 15e6


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """uint8 [captions, 32, 64]: DDIM with guidance, in PyTorch alone."""
    checkpoint, rows = read_pixart(FOLDER), load_file(ROWS)
    model, count = checkpoint.model(), len(ASKED)
    prompts = [rows[caption].float() for caption in ASKED] + [rows[""].float()] * count
    hidden = pad_sequence(prompts, batch_first=True)
    mask = pad_sequence([torch.ones(len(row), dtype=torch.int64) for row in prompts], batch_first=True)
    context, bias = model.context(hidden, mask)

    def network(x: Tensor, t: float) -> Tensor:
        found = evaluated(model, torch.cat([x, x]), t, context, bias)
        return guided(found[:count], found[count:], GUIDANCE, 1)

    z = torch.randn(count, 1, 32, 64, generator=torch.Generator().manual_seed(0))
    schedule = checkpoint.process.schedule
    assert schedule is not None
    timesteps = respaced_timesteps(str(STEPS), schedule.steps).tolist()
    noise, alphas = torch.zeros(STEPS, *z.shape), trained_alphas_cumprod(schedule)
    x = reference_trajectory(network, z, noise, timesteps, "ddim", False, "epsilon", alphas)[-1]
    return (127.5 * (x.clamp(-1, 1) + 1)).round().byte()[:, 0].numpy()


def evaluated(model: PixArt, x: Tensor, t: float, context: Tensor, bias: Tensor) -> Tensor:
    position = model.position(torch.arange(8.0), torch.arange(16.0))
    return model.trunk(
        x, model.conditioner(torch.full((len(x),), float(t))), context, bias, torch.arange(len(x)), position
    )


def test_each_half_is_what_its_caption_asks_for(pictures: np.ndarray) -> None:
    """8 halves; bench/text_quality.py measures hundreds of pictures."""
    wanted = [CLASSES.index(pair[place]) for place in range(2) for pair in ASKED.values()]
    halves = np.concatenate([pictures[:, :, :32], pictures[:, :, 32:]])
    logits, _ = image_features(MODELS / "fashion_classifier.onnx", np.ascontiguousarray(halves[..., None]))
    assert (logits.argmax(1) == wanted).sum() >= 7
