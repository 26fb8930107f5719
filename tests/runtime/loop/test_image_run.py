"""Images at different steps of different programs in one batch: each is the one that it is alone."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ditedge.runtime import Cancelled, Session, generate, open_bundle
from ditedge.runtime.bundle.open import Bundle
from ditedge.runtime.errors import RequestError
from ditedge.runtime.loop import image_run
from ditedge.runtime.loop.engine import Engine
from ditedge.runtime.loop.image_run import ImageRun
from ditedge.runtime.loop.verify import relative_error
from tests.conftest import CASES
from tests.second_step import with_half_step

# sampler, steps, label, seed, guidance, class to guide away from: 1, 2 and 2 slots; the second one is not guided
WANTED = [("ddpm", 10, 1, 11, 4.0, 4), ("dpm++", 20, 3, 12, 1.0, None), ("heun", 8, 4, 13, 2.5, 2)]
APART = 2  # steps between two starts


def alone(bundle: Bundle, session: Session, count: int = len(WANTED)) -> list[np.ndarray]:
    """[C, H, W] of each of the first wanted images, sampled as a batch of one."""
    latents = []
    for sampler, steps, label, seed, guidance, other in WANTED[:count]:
        program = bundle.program(sampler=sampler, steps=steps)
        options = {"program": program, "guidance": guidance, "away_from": [other], "output": "latents"}
        latents.append(generate(bundle, [label], [seed], session=session, **options)[0])
    return latents


def started(bundle: Bundle, session: Session, index: int) -> ImageRun:
    sampler, steps, label, seed, guidance, other = WANTED[index]
    program = bundle.program(sampler=sampler, steps=steps)
    return session.start(program, label, seed, guidance=guidance, away_from=other)


def one_after_the_other(bundle: Bundle, session: Session) -> tuple[list[ImageRun], list[tuple[int, ...]]]:
    """Every wanted image, each started APART steps after the one before -> them, and how far all were at every turn."""
    runs: list[ImageRun] = []
    far = []
    while len(runs) < len(WANTED) or not all(run.done for run in runs):
        if len(far) % APART == 0 and len(runs) < len(WANTED):
            runs.append(started(bundle, session, len(runs)))
        session.advance(runs)
        far.append(tuple(run.step for run in runs))
    return runs, far


class Counted:
    """An engine, and with how many images and evaluations each call of it came."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.calls = engine, []
        self.inputs = engine.inputs

    def run(self, inputs, outputs, cancel=None) -> None:
        if "condition" in inputs:
            self.calls.append((len(inputs["x0_bound"]), len(inputs["condition"])))
        self._engine.run(inputs, outputs, cancel)

    def close(self) -> None:
        self._engine.close()


@pytest.mark.parametrize("case", CASES)
def test_a_mixed_batch_is_its_images_alone(golden_bundle, case: str) -> None:
    bundle = open_bundle(golden_bundle(case))
    with Session(bundle) as session:
        expected = alone(bundle, session)
        runs, far = one_after_the_other(bundle, session)
    for run, latent in zip(runs, expected, strict=True):
        assert np.array_equal(run.latent, latent), run.program.name
    assert far[:5] == [(1,), (2,), (3, 1), (4, 2), (5, 3, 1)] and far[-1] == (10, 20, 15)


@pytest.mark.slow
def test_a_mixed_batch_of_the_demo_is_its_images_alone(demo_bundle) -> None:
    """A network of the size that people train, where a batch of another size takes other kernels, maybe."""
    bundle = open_bundle(demo_bundle)
    with Session(bundle) as session:
        expected = alone(bundle, session)
        runs, _ = one_after_the_other(bundle, session)
    for run, latent in zip(runs, expected, strict=True):
        assert np.abs(run.latent - latent).max() < 1e-6, run.program.name


def test_images_with_as_many_slots_share_a_call(golden_bundle) -> None:
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    with Session(bundle) as plain:
        step = Counted(plain.engine("step"))
        with Session(bundle, engines={"step": step}) as session:
            session.advance([started(bundle, session, index) for index in range(3)])
            assert sorted(step.calls) == [(1, 2), (2, 3)]  # DDPM guided; DPM++ not guided beside Heun guided


@pytest.mark.parametrize("held", [1, 3 * 4 * 480 * 2])
def test_modulation_is_held_for_a_few_steps_at_a_time(golden_bundle, monkeypatch, held: int) -> None:
    monkeypatch.setattr(image_run, "MODULATION_BYTES", held)
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    with Session(bundle) as session:
        expected = alone(bundle, session, 1)[0]
        run = started(bundle, session, 0)
        while not run.done:
            session.advance([run])
    assert np.array_equal(run.latent, expected)


def test_a_given_latent_is_where_an_image_starts(golden_bundle) -> None:
    """init (a, s): a times the latent and s times the noise, what adding noise to a picture begins with."""
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    program = replace(bundle.program(steps=3), init=(0.5, 0.25))
    given = np.random.default_rng(0).standard_normal((1, 8, 8)).astype(np.float32)
    with Session(bundle) as session:
        run = session.start(program, 1, 2, given=given)
        noise = session.start(replace(program, init=(0.0, 1.0)), 1, 2)
        assert np.array_equal(run.latent, np.float32(0.5) * given + np.float32(0.25) * noise.latent)
        for complaint, wrong in (("starts from a given latent", None), ("not .1, 8, 8. finite", given[:, :4])):
            with pytest.raises(RequestError, match=complaint):
                session.start(program, 1, 2, given=wrong)
    with pytest.raises(RequestError, match="starts from a given latent"):
        generate(bundle, [1], [2], program=program)


def refused(bundle: Bundle, complaint: str, steps: Sequence[int] = (4,), **options) -> None:
    with Session(bundle) as session, pytest.raises(RequestError, match=complaint):
        session.start(bundle.program(steps=steps[0]), **{"subject": 1, "seed": 2} | options)


def test_what_does_not_fit_is_refused(golden_bundle) -> None:
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    refused(bundle, "class 99", subject=99)
    refused(bundle, "seed -1", seed=-1)
    refused(bundle, "label 'x' is not a whole number", subject="x")
    refused(bundle, "class 77", away_from=77)
    refused(bundle, "not a number up to 3e38", guidance=float("nan"))
    with Session(bundle) as session:
        run = started(bundle, session, 0)
        with pytest.raises(RequestError, match="given twice"):
            session.advance([run, run])
        assert run.step == 0


def test_a_cancelled_step_can_be_taken_again(golden_bundle) -> None:
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    stop = threading.Event()
    with Session(bundle) as session:
        expected = alone(bundle, session, 1)[0]
        run = started(bundle, session, 0)
        session.advance([run])
        stop.set()
        with pytest.raises(Cancelled):
            session.advance([run], cancel=stop)
        while not run.done:
            session.advance([run])
        session.advance([run])  # nothing is left to do
        assert run.step == 10 and np.array_equal(run.latent, expected)


def test_a_program_names_the_step_graph_of_each_step(gray_bundle: Path) -> None:
    """The last step by a graph that halves what "step" gives; in a batch, and step by step beside another image."""
    with_half_step(gray_bundle)
    bundle = open_bundle(gray_bundle)
    program = bundle.program("ddim-10")
    half = replace(program, graph=(*9 * ("step",), "step-half"))
    with Session(bundle) as session:
        whole = generate(bundle, [3, 1], [5, 6], program=program, output="latents", session=session)
        assert np.array_equal(
            generate(bundle, [3, 1], [5, 6], program=half, output="latents", session=session), whole / 2
        )
        runs = [session.start(half, 3, 5), session.start(program, 1, 6)]
        for _ in range(10):
            session.advance(runs)
        for run, latent in zip(runs, (whole[0] / 2, whole[1]), strict=True):
            assert relative_error(run.latent, latent) < 1e-6
        with pytest.raises(RequestError, match="has no step-none: take another program"):
            generate(bundle, [1], [1], program=replace(program, graph=10 * ("step-none",)), session=session)
        with pytest.raises(RequestError, match="has no step-none"):
            session.start(replace(program, graph=10 * ("step-none",)), 1, 1)
