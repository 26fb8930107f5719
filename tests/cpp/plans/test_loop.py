"""libditedge's engine for plans, as it is shipped, over a double of libcudart and libnvinfer (gpu_double.cpp)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from capi_ctypes import Ditedge, DitedgeError

from ditedge.runtime import generate, open_bundle
from ditedge.runtime.bundle.open import Bundle
from ditedge.runtime.loop.verify import relative_error
from ditedge.runtime.samplers.program import write_program
from tests.cpp.plan_text import with_cpp_plans
from tests.cpp.plans.support import LABELS, SEEDS, Double, check_seeded_pictures, replay
from tests.cpp.support import CANCELLED, LOOPS, REQUEST, TOLERANCE, program_of
from tests.cpp.test_guards import check_one_bad_image
from tests.second_step import with_half_step


def by_python(bundle: Bundle) -> np.ndarray:
    """What a C++ run of "ddim-25" with LABELS and SEEDS should give."""
    return generate(bundle, LABELS, SEEDS, program=bundle.program("ddim-25"), output="latents")


@pytest.mark.parametrize(("case", "loop"), LOOPS, ids=[f"{case}-{loop['name']}" for case, loop in LOOPS])
def test_recorded_trajectories(opened, double: Double, plan_bundle, tmp_path: Path, case: str, loop: dict) -> None:
    """Enqueued plainly, captured, replayed, and with a callback: PyTorch's latents each time."""
    folder = plan_bundle(case, "x0" if loop.get("predict_xstart") else "epsilon")
    program, done = program_of(folder, loop), []
    write_program(program, tmp_path / "p.json")
    handle = opened(folder)
    for _ in range(3):
        assert replay(handle, case, loop, tmp_path / "p.json") < TOLERANCE
    counts = double.report["counts"]
    assert counts["capture"] == (1 if program.steps % 4 == 0 else 2), "four steps, and the rest"
    assert counts["launch"] >= 2 * (program.steps // 4)
    assert replay(handle, case, loop, tmp_path / "p.json", on_progress=lambda p: done.append(p.done)) < TOLERANCE
    assert done == list(range(1, program.steps + 1))
    assert double.report["longest_queue"] > 8, "work was enqueued ahead of the host"


def test_seeded_pictures_equal_pythons(opened, double: Double, plan_bundle) -> None:
    """Batches, a smaller last one, other labels, guidance and seeds on the same graphs, classes to guide away from."""
    folder = plan_bundle("gray1_cfg")
    bundle, handle = open_bundle(folder), opened(folder)
    check_seeded_pictures(handle, bundle)


@pytest.mark.parametrize("case", ["gray1_cfg", "latent4_learned_sigma"])
def test_previews_decode_while_steps_are_enqueued(
    opened, plan_bundle, golden_bundle, built, onnxruntime_library, case: str
) -> None:
    """By the plan of the decoder, and by that of the preview."""
    folder = plan_bundle(case)
    shown: dict[str, list[np.ndarray]] = {"plans": [], "onnxruntime": []}
    host = Ditedge(built / "libditedge.so", folder, onnxruntime_library, threads=1)
    for name, handle in (("plans", opened(folder)), ("onnxruntime", host)):
        handle.generate(
            LABELS, SEEDS, images=False, program=b"ddim-25", preview_every=3, batch=3,
            on_preview=lambda step, pictures, name=name: shown[name].append(pictures),
        )  # fmt: skip
    host.close()
    assert len(shown["plans"]) == len(shown["onnxruntime"]) == 16
    for mine, theirs in zip(shown["plans"], shown["onnxruntime"], strict=True):
        assert np.mean(mine == theirs) >= 0.999


@pytest.mark.parametrize("rows", [9, 20, 64])
def test_the_conditioner_runs_few_times(opened, double: Double, plan_bundle, rows: int) -> None:
    """Once for as many steps as its profile has rows for, not once a step."""
    folder = plan_bundle("gray1_cfg", conditioner_rows=rows)
    bundle, handle = open_bundle(folder), opened(folder)
    mine = handle.generate(LABELS, SEEDS, images=False, program=b"ddim-25")
    assert relative_error(mine, by_python(bundle)) < TOLERANCE
    counts, distinct = double.report["counts"], len({*LABELS}) + 1
    assert counts["step"] == 25
    assert counts["conditioner"] == -(-25 // (rows // distinct))


def test_one_image_takes_the_second_profile(opened, double: Double, plan_bundle) -> None:
    """Guided, with the default program's slots; two images, one evaluation and other slots take the first."""
    handle, plain = opened(plan_bundle("gray1_cfg", one_image=True)), opened(plan_bundle("gray1_cfg"))
    bundle = open_bundle(plan_bundle("gray1_cfg"))
    program = bundle.program().name.encode()

    def steps(handle: Ditedge, count: int, program: bytes, **fields: object) -> tuple[np.ndarray, int, int]:
        before = dict(double.report["counts"])
        made = handle.generate(LABELS[:count], SEEDS[:count], images=False, program=program, **fields)
        counts = double.report["counts"]
        return made, *(counts.get(name, 0) - before.get(name, 0) for name in ("step", "step of one image"))

    alone, whole, on_second = steps(handle, 1, program)
    assert whole == on_second >= 20
    assert relative_error(alone, steps(plain, 1, program)[0]) < TOLERANCE
    for count, which, fields in ((2, program, {}), (1, program, {"guidance": 1.0}), (1, b"ddim-25", {})):
        made, whole, on_second = steps(handle, count, which, **fields)
        assert whole >= 20 and on_second == 0
    assert steps(plain, 1, program)[2] == 0


def test_samplers_without_noise_upload_none(opened, double: Double, plan_bundle) -> None:
    opened(plan_bundle("gray1_cfg")).generate(LABELS, SEEDS, images=False, program=b"ddim-25")
    counts = double.report["counts"]
    assert counts["upload"] == 2 and counts["download"] == 1  # tables, initial state; result


def watching(kind: str, shown: list[int]) -> dict[str, object]:
    """Fields of ditedge_params for a caller that looks at nothing, every fifth step, or all."""
    return {
        "unwatched": {},
        "a progress bar": {"on_progress": lambda p: shown.append(p.done)},
        "previews": {"on_preview": lambda step, pictures: shown.append(step), "preview_every": 5},
        "every step": {"check_finite": 1},
    }[kind]


@pytest.mark.parametrize("steps", [10, 250])
@pytest.mark.parametrize("kind", ["unwatched", "a progress bar", "previews", "every step"])
def test_graphs_and_copies_to_the_host(
    opened, double: Double, plan_bundle, tmp_path: Path, kind: str, steps: int
) -> None:
    """In three runs, neither grows with steps that nobody looks at."""
    folder = plan_bundle("gray1_cfg")
    write_program(open_bundle(folder).program(sampler="ddim", steps=steps), tmp_path / "p.json")
    handle, shown = opened(folder), []
    for _ in range(3):
        program = {"program_file": str(tmp_path / "p.json").encode()}
        handle.generate([1], [2], images=False, **program, **watching(kind, shown))
    counts = double.report["counts"]
    states = {"unwatched": 0, "a progress bar": 0, "previews": steps // 5, "every step": steps}[kind]
    pictures = states if kind == "previews" else 0
    assert counts["download"] == 3 * (states + pictures + 1)
    assert counts["capture"] <= (4 if kind == "previews" else 2)
    told = {"a progress bar": list(range(1, steps + 1)), "previews": list(range(5, steps + 1, 5))}
    assert shown == 3 * told.get(kind, [])


@pytest.mark.parametrize("good", [0, 1])
def test_a_capture_that_fails_is_said_and_the_steps_are_enqueued(
    opened, double: Double, plan_bundle, good: int
) -> None:
    """The first one, or the second, when there is a graph already; it is not tried again."""
    folder = plan_bundle("gray1_cfg")
    bundle, handle = open_bundle(folder), opened(folder)
    double.refuse_captures(good)
    assert handle.warnings() == []
    for _ in range(3):
        mine = handle.generate(LABELS, SEEDS, images=False, program=b"ddim-25")
        assert relative_error(mine, by_python(bundle)) < TOLERANCE
    (warning,) = handle.warnings()
    assert "cannot be captured as a CUDA graph: every step is enqueued anew, which is slower" in warning
    assert "cudaStreamEndCapture failed with cudaErrorStreamCaptureInvalidated" in warning
    assert double.report["counts"].get("capture", 0) == good


def test_no_cuda_graph_captures_none(opened, double: Double, plan_bundle) -> None:
    folder = plan_bundle("gray1_cfg")
    bundle, handle = open_bundle(folder), opened(folder, no_cuda_graph=1)
    for _ in range(2):
        mine = handle.generate(LABELS, SEEDS, images=False, program=b"ddim-25")
        assert relative_error(mine, by_python(bundle)) < TOLERANCE
    assert not double.report["counts"].keys() & {"capture", "launch"} and handle.warnings() == []


@pytest.mark.parametrize("option", [[], ["--no-cuda-graph"]])
def test_the_command_says_it(double: Double, built: Path, plan_bundle, tmp_path: Path, option: list[str]) -> None:
    """A capture that fails; nothing where none was asked for."""
    picture = tmp_path / "a.png"
    command = [built / "ditedge-run", "--bundle", plan_bundle("gray1_cfg"), "--class", "3;1", "-o", picture, *option]
    engine = ["--engine", "tensorrt", "--library", double.path, "--batch", "1", "--program", "ddim-25"]
    environment = {**os.environ, "DOUBLE_CAPTURES": "0"}
    done = subprocess.run([*command, *engine], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and picture.is_file(), done.stderr
    said = [line for line in done.stderr.splitlines() if "warning: these plans cannot be captured" in line]
    assert len(said) == (0 if option else 1), done.stderr


def test_weight_streaming_is_not_captured(opened, double: Double, plan_bundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plan_bundle("gray1_cfg"), tmp_path / "b"))
    record = folder / "engines" / "tensorrt" / "build.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"weight_streaming_mb": 100}))
    bundle = open_bundle(folder)
    mine = opened(folder).generate(LABELS, SEEDS, images=False, program=b"ddim-25")
    assert relative_error(mine, by_python(bundle)) < TOLERANCE
    counts = double.report["counts"]
    assert counts["weight budget MB"] == 100 and "launch" not in counts and "capture" not in counts


@pytest.mark.parametrize("watched", [False, True])
def test_cancel_leaves_the_sampler_usable(opened, double: Double, plan_bundle, watched: bool) -> None:
    folder = plan_bundle("gray1_cfg")
    bundle, handle, started = open_bundle(folder), opened(folder), threading.Event()
    if watched:
        thread = threading.Thread(target=lambda: (started.wait(), handle.cancel()))
    else:
        thread = threading.Timer(0.3, handle.cancel)
    thread.start()
    told = {"on_progress": lambda _: started.set()} if watched else {}
    with pytest.raises(DitedgeError, match="stopped before step") as caught:
        handle.generate([1] * 4000, range(4000), images=False, batch=2, **told)
    thread.join()
    assert caught.value.status == CANCELLED
    again = handle.generate(LABELS, SEEDS, images=False, program=b"ddim-25")
    assert relative_error(again, by_python(bundle)) < TOLERANCE


def test_an_image_that_is_not_finite(opened, plan_bundle) -> None:
    check_one_bad_image(opened(plan_bundle("gray1_cfg")))


def test_memory_stays_bounded(opened, double: Double, plan_bundle) -> None:
    """Buffers and graphs of two shapes are kept, those of older ones freed."""
    handle, live = opened(plan_bundle("gray1_cfg")), []
    for count in (1, 2, 3, 4, 3, 2, 1):
        handle.generate(LABELS[:count], SEEDS[:count], images=False, program=b"ddim-25")
        live.append(double.report["live"])
        assert double.report["graphs"] <= 2 * 2  # four steps, and the rest
    assert len(set(live[1:])) == 1


def test_bundles_without_a_decoder(opened, plan_bundle) -> None:
    handle = opened(plan_bundle("latent4_learned_sigma"))
    assert handle.generate([1], [1], images=False, program=b"ddim-25").shape == (1, 4, 8, 8)
    with pytest.raises(DitedgeError, match="no decoder"):
        handle.generate([1], [1])


def test_a_ramp_of_guidance_equals_pythons(opened, plan_bundle, tmp_path: Path) -> None:
    """Twice: graphs are captured, then replayed with the tables of another ramp."""
    folder = plan_bundle("gray1_cfg")
    bundle, handle, ramp = open_bundle(folder), opened(folder), np.maximum(0, np.linspace(-0.5, 1.5, 10))
    for column in (ramp, ramp**2, ramp):
        program = replace(bundle.program("ddim-10"), guidance=column)
        write_program(program, tmp_path / "p.json")
        fields = {"program_file": str(tmp_path / "p.json").encode(), "guidance": 4.0}
        mine = handle.generate(LABELS, SEEDS, images=False, **fields)
        theirs = generate(bundle, LABELS, SEEDS, program=program, guidance=4.0, output="latents")
        assert relative_error(mine, theirs) < TOLERANCE


def test_what_plans_cannot_do_is_refused(opened, golden_bundle, tensorrt_version: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(golden_bundle("gray1_cfg"), tmp_path / "bundle"))
    with_half_step(folder)
    with_cpp_plans(folder, tensorrt_version)
    handle, program = opened(folder), json.loads((folder / "programs" / "ddim-10.json").read_text())
    (tmp_path / "p.json").write_text(json.dumps(program | {"graph": [*9 * ["step"], "step-half"]}))
    run = handle.start(1, 2)
    for call, complaint in (
        (lambda: handle.advance([run]), "plans run whole programs"),
        (
            lambda: handle.generate([1], [2], images=False, program_file=str(tmp_path / "p.json").encode()),
            "runs graph 'step-half', and plans have 'step' alone",
        ),
    ):
        with pytest.raises(DitedgeError, match=complaint) as caught:
            call()
        assert caught.value.status == REQUEST
    handle.close_run(run)
