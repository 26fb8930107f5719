"""Images of prompts, step by step in one batch: each is the one that it is alone, whatever prompts are beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ditedge.runtime import Session, generate, open_bundle
from ditedge.runtime.bundle.open import Bundle
from ditedge.runtime.errors import RequestError
from ditedge.runtime.loop.image_run import ImageRun
from ditedge.runtime.loop.prompts import Prompt, prompt_of_ids
from tests.conftest import BUNDLES, PIXART
from tests.counting import Counting

CLASSES = BUNDLES / "gray1_cfg"
# program, prompt, seed, guidance, negative, (width, height)
WANTED: list[tuple[str, str | Prompt, int, float, str | None, tuple[int, int] | None]] = [
    ("ddpm-10", "a red fox", 11, 4.0, None, None),
    ("ddim-10", prompt_of_ids([9, 5, 1]), 12, 1.0, None, None),
    ("ddim-10", "A dark ankle boot on the left of a handbag in the snow", 13, 2.5, "a red fox", None),
    ("dpm++-20", "snow", 14, 3.0, "dark", (96, 48)),
]
APART = 2  # steps between two starts


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle(BUNDLES / PIXART)


def started(bundle: Bundle, session: Session, index: int) -> ImageRun:
    program, prompt, seed, guidance, negative, size = WANTED[index]
    options = {"guidance": guidance, "away_from": negative, "size": size}
    return session.start(bundle.program(program), prompt, seed, **options)  # type: ignore[arg-type]


def alone(bundle: Bundle, session: Session, index: int) -> np.ndarray:
    """[C, H, W], sampled as a batch of one."""
    program, prompt, seed, guidance, negative, size = WANTED[index]
    options: dict[str, Any] = {"guidance": guidance, "negative": negative, "size": size, "output": "latents"}
    return generate(
        bundle, seeds=[seed], prompts=[prompt], program=bundle.program(program), session=session, **options
    )[0]


def test_a_mixed_batch_is_its_images_alone(bundle: Bundle) -> None:
    """Started one after the other: other steps, programs, guidance, negative prompts, lengths and sizes side by side."""
    with Session(bundle) as session:
        expected = [alone(bundle, session, index) for index in range(len(WANTED))]
        runs: list[ImageRun] = []
        turns = 0
        while len(runs) < len(WANTED) or not all(run.done for run in runs):
            if turns % APART == 0 and len(runs) < len(WANTED):
                runs.append(started(bundle, session, len(runs)))
            session.advance(runs)
            turns += 1
    assert turns == 20 + 3 * APART
    for run, latent in zip(runs, expected, strict=True):
        assert run.latent.shape == latent.shape and np.abs(run.latent - latent).max() < 1e-6, run.program.name


def test_only_images_of_one_size_share_a_call_and_graphs_of_prompts_run_once(bundle: Bundle) -> None:
    with Session(bundle) as plain:
        graphs = {name: Counting(plain.engine(name)) for name in ("text", "context", "position", "step")}
        with Session(bundle, engines=graphs) as session:  # type: ignore[arg-type]
            runs = [started(bundle, session, index) for index in range(4)]
            for _ in range(3):
                session.advance(runs)
    # three words of WANTED, two negatives (one is the fox, one of no words is recorded), and one given as ids
    assert {name: graph.runs for name, graph in graphs.items()} == {"text": 5, "context": 6, "position": 2, "step": 6}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"subject": 3}, "takes prompts, and no classes"),
        ({"subject": "a", "away_from": 3}, "prompt 3 is neither a text nor a Prompt"),
        ({"subject": "a", "size": (64, 24)}, "height 24 is not a multiple of 16 from 16 to 128 pixels"),
        ({"subject": prompt_of_ids([1] * 121)}, "has 121 tokens, the model reads 120"),
        ({"subject": "a", "seed": -1}, "seed -1"),
        ({"subject": "a", "given": np.zeros((4, 4, 4), np.float32)}, r"not \[4, 8, 8\] finite"),
    ],
)
def test_what_does_not_fit_is_refused(bundle: Bundle, options: dict[str, Any], complaint: str) -> None:
    with Session(bundle) as session, pytest.raises(RequestError, match=complaint):
        session.start(bundle.program(), **({"seed": 1} | options))


@pytest.mark.parametrize(
    "options", [{"subject": prompt_of_ids([1])}, {"away_from": prompt_of_ids([1])}, {"size": (8, 8)}]
)
def test_a_model_of_classes_takes_no_prompts(options: dict[str, Any]) -> None:
    classes = open_bundle(CLASSES)
    with Session(classes) as session, pytest.raises(RequestError, match="takes classes, and no prompts: leave prompts"):
        session.start(classes.program(), **({"subject": 1, "seed": 1} | options))
