"""Quality of a bundle's samples on Fashion-MNIST: classifier accuracy, kernel distance, Frechet distance.

    python bench/quality.py --engine build/demo/fashion --count 500 --guidance 4
    python bench/quality.py --engine build/demo/fashion --count 2000 --sampler ddim --steps 25 --json

Classes are cycled, image i has seed i. The distances are in the feature space of `models/fashion_classifier.onnx`
(trained on real images only), against the 10,000 held-out real images. Both depend on the number of samples (the
Frechet distance is biased upwards by about 1/n) and on their balance of classes, so the floor is measured on as many
real training images, as many of each class.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

import fashion_mnist  # noqa: E402

from ditedge.calibration import accuracy, frechet_distance, image_features, kernel_distance  # noqa: E402
from ditedge.runtime import generate, open_bundle  # noqa: E402


def measure(images: np.ndarray, labels: np.ndarray, real: np.ndarray, classifier: Path) -> dict[str, float]:
    """images uint8 [N, h, w, 1], real features [M, F] -> accuracy and distances."""
    logits, features = image_features(classifier, images)
    kernel, error = kernel_distance(features, real)
    return {
        "accuracy": accuracy(logits, labels),
        "kernel_distance": kernel,
        "kernel_distance_error": error,
        "frechet_distance": frechet_distance(features, real),
    }


def real_images(split: str) -> tuple[np.ndarray, np.ndarray]:
    images, labels = fashion_mnist.load(split)
    return images.permute(0, 2, 3, 1).contiguous().numpy(), labels.numpy()


def real_like(labels: np.ndarray) -> np.ndarray:
    """Real training images with exactly these labels [N]."""
    images, real_labels = real_images("train")
    chosen = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        wanted = np.flatnonzero(labels == label)
        chosen[wanted] = np.flatnonzero(real_labels == label)[: len(wanted)]
    return images[chosen]


def arguments_given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, required=True)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--guidance", type=float, default=None)
    parser.add_argument("--sampler", default=None)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--features", type=Path, default=ROOT / "models" / "fashion_classifier.onnx")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    arguments = arguments_given()
    bundle = open_bundle(arguments.engine)
    program = bundle.program(sampler=arguments.sampler, steps=arguments.steps)
    labels = [i % bundle.manifest.model.num_classes for i in range(arguments.count)]
    start = time.perf_counter()
    with Progress() as progress:
        bar = progress.add_task(program.name)
        images = generate(
            bundle,
            labels,
            seeds=range(arguments.count),
            program=program,
            guidance=arguments.guidance,
            batch=arguments.batch,
            on_step=lambda p: progress.update(bar, completed=p.done, total=p.total),
        )
    seconds = time.perf_counter() - start
    test_images, test_labels = real_images("test")
    _, real = image_features(arguments.features, test_images)
    guidance = bundle.manifest.defaults.guidance if arguments.guidance is None else arguments.guidance
    result: dict[str, Any] = {
        "program": program.name,
        "guidance": guidance,
        "count": arguments.count,
        "seconds_per_image": seconds / arguments.count,
        "samples": measure(images, np.array(labels), real, arguments.features),
        "real_training_images": measure(real_like(np.array(labels)), np.array(labels), real, arguments.features),
        "classifier_on_held_out": accuracy(image_features(arguments.features, test_images)[0], test_labels),
    }
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    per_image = result["seconds_per_image"]
    print(f"{arguments.count} samples, {program.name}, guidance {guidance:g}, {per_image:.3f} s per image")
    print(f"classifier on 10,000 held-out real images: {100 * result['classifier_on_held_out']:.2f} %")
    for name in ("samples", "real_training_images"):
        row = result[name]
        print(
            f"{name:22} accuracy {100 * row['accuracy']:6.2f} %   kernel distance x 1000 "
            f"{1000 * row['kernel_distance']:8.3f} +- {1000 * row['kernel_distance_error']:.3f}   "
            f"Frechet distance {row['frechet_distance']:8.4f}"
        )


if __name__ == "__main__":
    main()
