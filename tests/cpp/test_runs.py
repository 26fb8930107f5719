"""libditedge's images step by step: each is the one that it is alone, and the one that the Python runtime makes."""

from __future__ import annotations

import ctypes
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from capi_ctypes import DitedgeError

from ditedge.runtime import Session, generate, open_bundle
from ditedge.runtime.loop.verify import relative_error
from ditedge.runtime.samplers.program import read_program, write_program
from tests.conftest import CASES
from tests.cpp.support import ARGUMENT, CANCELLED, PROGRAM, REQUEST, TOLERANCE
from tests.second_step import with_half_step

# sampler, steps, label, seed, guidance, class to guide away from: the second one is not guided
WANTED = [("ddpm", 10, 1, 11, 4.0, 4), ("dpm++", 20, 3, 12, 1.0, -1), ("heun", 8, 4, 13, 2.5, 2)]
APART = 2  # steps between two starts


@pytest.mark.parametrize("case", CASES)
def test_a_mixed_batch_is_its_images_alone(opened, golden_bundle, tmp_path: Path, case: str) -> None:
    bundle, handle = open_bundle(golden_bundle(case)), opened(golden_bundle(case))
    wanted, alone = [], []
    for sampler, steps, label, seed, guidance, other in WANTED:
        write_program(bundle.program(sampler=sampler, steps=steps), tmp_path / f"{sampler}.json")
        fields = {"program_file": str(tmp_path / f"{sampler}.json").encode(), "guidance": guidance}
        wanted.append(fields | {"label": label, "seed": seed, "away_from": other})
        alone.append(handle.generate([label], [seed], images=False, away_from=[other], **fields)[0])
    runs, far = [], []
    while len(runs) < len(wanted) or any(done < steps for done, steps in map(handle.steps, runs)):
        if len(far) % APART == 0 and len(runs) < len(wanted):
            runs.append(handle.start(**wanted[len(runs)]))
        handle.advance(runs)
        far.append(tuple(handle.steps(run)[0] for run in runs))
    assert far[:5] == [(1,), (2,), (3, 1), (4, 2), (5, 3, 1)] and far[-1] == (10, 20, 15)
    for run, latent, chosen in zip(runs, alone, wanted, strict=True):
        assert np.array_equal(handle.latent(run), latent), chosen["program_file"]
        handle.close_run(run)
    for latent, (sampler, steps, label, seed, guidance, other) in zip(alone, WANTED, strict=True):
        options = {"program": bundle.program(sampler=sampler, steps=steps), "guidance": guidance}
        away = [None if other < 0 else other]
        assert (
            relative_error(latent, generate(bundle, [label], [seed], away_from=away, output="latents", **options)[0])
            < TOLERANCE
        )


def test_a_given_latent_is_where_an_image_starts(opened, gray_bundle: Path, tmp_path: Path) -> None:
    program = json.loads((gray_bundle / "programs" / "ddim-25.json").read_text()) | {"init": [0.5, 0.25]}
    (tmp_path / "p.json").write_text(json.dumps(program))
    handle, given = opened(gray_bundle), np.random.default_rng(0).standard_normal((1, 8, 8)).astype(np.float32)
    chosen = {"program_file": str(tmp_path / "p.json").encode()}
    run = handle.start(1, 2, given, **chosen)
    noise = handle.start(1, 2, program=b"ddim-25")
    assert np.array_equal(handle.latent(run), np.float32(0.5) * given + np.float32(0.25) * handle.latent(noise))
    with Session(open_bundle(gray_bundle)) as session:
        theirs = session.start(read_program(tmp_path / "p.json"), 1, 2, given=given)
        while not theirs.done:
            handle.advance([run])
            session.advance([theirs])
        assert relative_error(handle.latent(run), theirs.latent) < TOLERANCE
    for call in (lambda: handle.start(1, 2, **chosen), lambda: handle.generate([1], [2], **chosen)):
        with pytest.raises(DitedgeError, match=r"starts from a given latent") as caught:
            call()
        assert caught.value.status == REQUEST
    for some in (run, noise):
        handle.close_run(some)


def test_what_does_not_fit_is_refused(opened, gray_bundle: Path) -> None:
    handle, other = opened(gray_bundle), opened(gray_bundle)
    for fields, status, complaint in (
        ({"label": 99}, REQUEST, "class 99"),
        ({"away_from": 77}, REQUEST, "class 77"),
        ({"guidance": float("inf")}, REQUEST, "not a number up to 3e38"),
        ({"given": np.full((1, 8, 8), np.nan, np.float32)}, REQUEST, "infinite numbers or NaN"),
        ({"program": b"none"}, REQUEST, "none"),
        ({"size": 3}, ARGUMENT, "another version"),
    ):
        with pytest.raises(DitedgeError, match=complaint) as caught:
            handle.start(**{"label": 1, "seed": 2} | fields)
        assert caught.value.status == status
    run = handle.start(1, 2)
    for runs, complaint in (([run, run], "given twice"), ([ctypes.c_void_p()], "a run is null")):
        with pytest.raises(DitedgeError, match=complaint):
            handle.advance(runs)
    with pytest.raises(DitedgeError, match="another bundle"):
        other.advance([run])
    handle.advance([])
    assert handle.steps(run)[0] == 0
    handle.close_run(run)


def test_a_cancelled_step_can_be_taken_again(opened, golden_bundle) -> None:
    handle, over = opened(golden_bundle("gray1_cfg")), threading.Event()
    alone = handle.generate([1], [2], images=False, program=b"ddpm-250")[0]

    def cancels() -> None:
        while not over.wait(1e-4):
            handle.cancel()

    run, cancelled = handle.start(1, 2, program=b"ddpm-250"), 0
    canceller = threading.Thread(target=cancels)
    canceller.start()
    while handle.steps(run)[0] < 250:
        try:
            handle.advance([run])
        except DitedgeError as error:
            assert error.status == CANCELLED
            cancelled += 1
            if cancelled == 20:
                over.set()
    over.set()
    canceller.join()
    assert cancelled and np.array_equal(handle.latent(run), alone)
    handle.close_run(run)


def test_a_run_may_outlive_its_bundle(opened, gray_bundle: Path) -> None:
    handle = opened(gray_bundle)
    run = handle.start(1, 2)
    handle.advance([run])
    handle.close()
    assert handle.steps(run)[0] == 1 and np.isfinite(handle.latent(run)).all()
    handle.close_run(run)


def test_a_program_names_the_step_graph_of_each_step(opened, gray_bundle: Path, tmp_path: Path) -> None:
    """The last step by a graph that halves what "step" gives; alone, in a batch and step by step."""
    plain = opened(gray_bundle)
    with_half_step(gray_bundle)
    handle = opened(gray_bundle)
    program = json.loads((gray_bundle / "programs" / "ddim-10.json").read_text())
    for name, last in (("half", "step-half"), ("none", "step-none"), ("wrong", "decoder")):
        (tmp_path / f"{name}.json").write_text(json.dumps(program | {"graph": 9 * ["step"] + [last]}))
    half, none, wrong = ({"program_file": str(tmp_path / f"{n}.json").encode()} for n in ("half", "none", "wrong"))
    whole = plain.generate([3, 1], [5, 6], images=False, program=b"ddim-10")
    assert np.array_equal(handle.generate([3, 1], [5, 6], images=False, **half), whole / 2)
    runs = [handle.start(3, 5, **half), handle.start(1, 6, program=b"ddim-10")]
    for _ in range(10):
        handle.advance(runs)
    assert relative_error(handle.latent(runs[0]), whole[0] / 2) < TOLERANCE
    assert relative_error(handle.latent(runs[1]), whole[1]) < TOLERANCE
    for fields, status, complaint in ((none, REQUEST, "has no step-none"), (wrong, PROGRAM, "is not a step graph")):
        with pytest.raises(DitedgeError, match=complaint) as caught:
            handle.generate([1], [1], **fields)
        assert caught.value.status == status
    for run in runs:
        handle.close_run(run)
