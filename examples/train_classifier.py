"""Train the independent classifier that judges the demo model's samples: real images only, never a generated one.

    python examples/train_classifier.py --out models/fashion_classifier.onnx      # 2 CPU cores: about 5 minutes

A small convolutional network on the 60,000 training images of Fashion-MNIST, exported with its penultimate features as
a second output: image [N, 1, 32, 32] float32 in [-1, 1] -> logits [N, 10], features [N, 128]. Its accuracy on the
10,000 held-out images is stored in the file's metadata.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fashion_mnist import CLASSES, IMAGE_SIZE, load, to_model_range  # noqa: E402

from ditedge.export.graphs.to_onnx import onnx_from_module  # noqa: E402

FEATURES = 128


class Classifier(nn.Module):
    """Four stages of two 3x3 convolutions with batch norm; features are the global average of the last."""

    def __init__(self) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
            convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

        widths = [1, 16, 32, 64, FEATURES]
        stages = [[*block(a, b, 1), *block(b, b, 1)] for a, b in zip(widths, widths[1:], strict=False)]
        pool = nn.MaxPool2d(2)
        self.body = nn.Sequential(*stages[0], pool, *stages[1], pool, *stages[2], pool, *stages[3])
        self.head = nn.Linear(FEATURES, len(CLASSES))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(image).mean(dim=(2, 3))
        return self.head(features), features


def train(epochs: int, batch_size: int, data: Path | None) -> tuple[Classifier, float]:
    """AdamW with a one-cycle learning rate, random shifts and flips -> model in eval mode, held-out accuracy.

    bfloat16 and channels-last nearly halve the time on a CPU with bfloat16 instructions; the weights, the evaluation
    and the file are float32.
    """
    torch.manual_seed(0)
    images, labels = load("train", data)
    images = to_model_range(images)
    model = Classifier().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    steps = epochs * (len(images) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    for epoch in range(epochs):
        order = torch.randperm(len(images))
        model.train()
        for start in track(range(0, len(images) - batch_size + 1, batch_size), f"epoch {epoch + 1} of {epochs}"):
            index = order[start : start + batch_size]
            x = images[index]
            dx, dy = torch.randint(-2, 3, (2,)).tolist()
            x = torch.roll(x, (dy, dx), dims=(2, 3))  # the margin is background: rolling is shifting
            if torch.rand(()) < 0.5:
                x = x.flip(3)
            with torch.autocast("cpu", torch.bfloat16):
                logits, _ = model(x.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), labels[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval().to(memory_format=torch.contiguous_format)
    test_images, test_labels = load("test", data)
    with torch.no_grad():
        predicted = torch.cat([model(part)[0].argmax(1) for part in to_model_range(test_images).split(500)])
    return model, float((predicted == test_labels).float().mean())


def export(model: Classifier, accuracy: float, out: Path) -> None:
    """Writes the ONNX file after checking it against PyTorch."""
    temporary = out.with_suffix(".tmp.onnx")
    onnx_from_module(
        model,
        {"image": torch.randn(3, 1, IMAGE_SIZE, IMAGE_SIZE)},
        ["logits", "features"],
        {"image": {0: "N"}},
        temporary,
    )
    graph = onnx.load(temporary)
    metadata = {"classes": "\n".join(CLASSES), "test_accuracy": f"{accuracy:.4f}", "data": "Fashion-MNIST, MIT licence"}
    onnx.helper.set_model_props(graph, metadata)
    onnx.save(graph, temporary)
    image = torch.randn(5, 1, IMAGE_SIZE, IMAGE_SIZE)
    with torch.no_grad():
        expected = model(image)
    actual = onnxruntime.InferenceSession(temporary).run(None, {"image": image.numpy()})
    for have, want in zip(actual, expected, strict=True):
        np.testing.assert_allclose(have, want.numpy(), rtol=1e-3, atol=1e-4)
    os.replace(temporary, out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("models/fashion_classifier.onnx"))
    parser.add_argument("--data", type=Path, default=None, help="folder with the four gzipped IDX files")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=128)
    arguments = parser.parse_args()
    trained, held_out = train(arguments.epochs, arguments.batch_size, arguments.data)
    export(trained, held_out, arguments.out)
    print(f"wrote {arguments.out}: {100 * held_out:.2f} % on the 10,000 held-out images")
