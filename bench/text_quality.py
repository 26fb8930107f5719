"""How well the text demo does what captions say, judged by the classifier of real images (`make demo-text-report`).

    python bench/text_quality.py --engine build/demo/fashion-pixart

Pictures of two garments, 64 x 32 pixels: each half must be what its caption asks for, with words of training and with
paraphrases that were never in it (`HELD_OUT` of examples/text_captions.py). Then the effect of guidance, of words of
brightness, and of negative prompts. Captions are drawn with --seed, and image i has the seed --seed + i.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

from fashion_mnist import CLASSES, IMAGE_SIZE  # noqa: E402
from text_captions import HELD_OUT, TRAINED, Caption, Language, brightness_of, caption  # noqa: E402

from ditedge.calibration import image_features  # noqa: E402
from ditedge.runtime import open_bundle  # noqa: E402
from ditedge.runtime.loop.engine import EngineOptions  # noqa: E402
from ditedge.runtime.loop.generate import generate  # noqa: E402
from ditedge.runtime.loop.session import Session  # noqa: E402
from ditedge.runtime.samplers.guidance import guidance_interval_from_text  # noqa: E402

CLASSIFIER = ROOT / "models" / "fashion_classifier.onnx"
TWO = (2 * IMAGE_SIZE, IMAGE_SIZE)  # width, height


class Studio:
    """A bundle at work: captions to pictures, with progress."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.bundle, self.batch, self.seed = open_bundle(arguments.engine), arguments.batch, arguments.seed
        self.session, self.program = Session(self.bundle, EngineOptions(threads=arguments.threads)), None
        if arguments.guidance_interval:
            interval = guidance_interval_from_text(arguments.guidance_interval, self.bundle.schedule)
            self.program = self.bundle.program(guidance_interval=interval)

    def pictures(self, what: str, prompts: list[str], size: tuple[int, int], **settings: Any) -> np.ndarray:
        """uint8 [n, height, width]."""
        with Progress(transient=True) as progress:
            bar = progress.add_task(what)
            images = generate(
                self.bundle,
                seeds=range(self.seed, self.seed + len(prompts)),
                prompts=prompts,
                program=self.program,
                size=size,
                batch=self.batch,
                session=self.session,
                on_step=lambda event: progress.update(bar, completed=event.done, total=event.total),
                **settings,
            )
        return images[..., 0]


def classes_of(images: np.ndarray) -> np.ndarray:
    """uint8 [n, 32, 32] -> what the classifier takes each for, int64 [n]."""
    logits, _ = image_features(CLASSIFIER, np.ascontiguousarray(images[..., None]))
    return logits.argmax(1)


def halves(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return images[:, :, :IMAGE_SIZE], images[:, :, IMAGE_SIZE:]


def drawn(language: Language, count: int, seed: int) -> list[Caption]:
    source = random.Random(seed)
    return [caption(language, source, 2) for _ in range(count)]


def two_garments(studio: Studio, what: str, captions: list[Caption], guidance: float | None) -> dict[str, Any]:
    """Shares of pictures with both halves right, of halves right, and of the brightness that was asked for."""
    images = studio.pictures(what, [each.text for each in captions], TWO, guidance=guidance)
    right, asked_right = [], []
    for place, half in enumerate(halves(images)):
        right.append(classes_of(half) == [each.garments[place].label for each in captions])
        bright = brightness_of(half)
        for garment, value in zip((each.garments[place] for each in captions), bright, strict=True):
            if garment.brightness is not None:
                asked_right.append((garment.label, garment.brightness, float(value)))
    wrong = [each.text for each, good in zip(captions, np.logical_and(*right), strict=True) if not good]
    return {
        "what": what,
        "count": len(captions),
        "both": float(np.logical_and(*right).mean()),
        "halves": float(np.mean(right)),
        "dark": float(np.mean([value for _, word, value in asked_right if word == "dark"])),
        "bright": float(np.mean([value for _, word, value in asked_right if word == "bright"])),
        "by_class": _by_class(captions, right),
        "wrong": wrong[:10],
    }


def _by_class(captions: list[Caption], right: list[np.ndarray]) -> dict[str, float]:
    labels = np.array([[each.garments[place].label for each in captions] for place in range(2)]).ravel()
    good = np.concatenate(right)
    return {name: round(float(good[labels == i].mean()), 3) for i, name in enumerate(CLASSES) if (labels == i).any()}


def negatives(studio: Studio, each: int) -> dict[str, Any]:
    """Pictures of no words, guided away from each class in turn: how often it appears, with and without."""
    nouns, one = [words[0] for words in TRAINED.nouns], (IMAGE_SIZE, IMAGE_SIZE)
    plain = classes_of(studio.pictures("no words", [""] * each, one, guidance=1.0))
    without, with_it = [], []
    for label, noun in enumerate(nouns):
        images = studio.pictures(f"not {noun}", [""] * each, one, negative=f"a {noun}", guidance=4.5)
        without.append(float((plain == label).mean()))
        with_it.append(float((classes_of(images) == label).mean()))
    bags = {}
    for word in ("dark", "bright"):
        images = studio.pictures(f"not {word}", ["a bag"] * each, one, negative=f"a {word} bag")
        bags[word] = float(brightness_of(images).mean())
    return {
        "what": "share of a class in pictures of no words",
        "without": float(np.mean(without)),
        "guided_away": float(np.mean(with_it)),
        "worst_guided_away": max(with_it),
        "brightness_of_bags_not_dark": bags["dark"],
        "brightness_of_bags_not_bright": bags["bright"],
    }


def arguments_given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, required=True)
    parser.add_argument("--count", type=int, default=500, help="pictures of the two first rows")
    parser.add_argument("--fewer", type=int, default=200, help="of each other row")
    parser.add_argument("--guidance", type=float, action="append", default=None, help="other scales to measure")
    parser.add_argument("--guidance-interval", default=None, help="LO,HI: guide only there, as `ditedge run` does")
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=0, help="of ONNX Runtime; 0 is as many as there are cores")
    parser.add_argument("--json", type=Path, default=None, help="file for the numbers")
    return parser.parse_args()


def main() -> None:
    arguments = arguments_given()
    studio, rows = Studio(arguments), []
    known, new = (drawn(language, arguments.count, arguments.seed) for language in (TRAINED, HELD_OUT))
    wanted = [("words of training", known, None), ("paraphrases held out", new, None)]
    for scale in arguments.guidance or ():
        wanted += [(f"words of training, guidance {scale:g}", known[: arguments.fewer], scale)]
        wanted += [(f"paraphrases held out, guidance {scale:g}", new[: arguments.fewer], scale)]
    for what, captions, guidance in wanted:
        rows.append(two_garments(studio, what, captions, guidance))
        row = rows[-1]
        shares = f"both halves {100 * row['both']:5.1f} %, each {100 * row['halves']:5.1f} %"
        print(f"{what:42} {row['count']:4} pictures: {shares}; dark {row['dark']:.0f}, bright {row['bright']:.0f}")
        print("   " + ", ".join(f"{name} {100 * share:.0f}" for name, share in row["by_class"].items()), flush=True)
    if arguments.fewer:
        rows.append(negatives(studio, max(10, arguments.fewer // 4)))
        print(json.dumps(rows[-1], indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
