"""libditedge against the Python runtime and PyTorch's recordings: latents, noise, pictures."""

from __future__ import annotations

import ctypes
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from capi_ctypes import DitedgeError, load
from safetensors.numpy import load_file

from ditedge.runtime import Session, generate, open_bundle
from ditedge.runtime.loop.noise import GivenNoise, standard_normal
from ditedge.runtime.loop.verify import relative_error
from ditedge.runtime.samplers.program import read_program, with_x0_slot, write_program
from tests.conftest import GOLDEN, ROOT
from tests.cpp.support import (
    ARGUMENT,
    LOOPS,
    TOLERANCE,
    program_of,
)


@pytest.mark.parametrize(("case", "loop"), LOOPS, ids=[f"{case}-{loop['name']}" for case, loop in LOOPS])
def test_recorded_trajectories(opened, golden_bundle, tmp_path: Path, case: str, loop: dict) -> None:
    """Against PyTorch's recording, and against the Python runtime on the same noise."""
    folder = golden_bundle(case, "x0" if loop.get("predict_xstart") else "epsilon")
    recorded = load_file(GOLDEN / case / f"{loop['name']}.safetensors")
    program = program_of(folder, loop)
    write_program(program, tmp_path / "program.json")
    labels, guidance = recorded["y"].tolist(), loop["cfg"] or 1.0
    noise = (recorded["z"], recorded["noise"])
    fields = {"guidance": guidance, "program_file": str(tmp_path / "program.json").encode(), "batch": len(labels)}
    mine = opened(folder).generate(labels, [0] * len(labels), images=False, noise=noise, **fields)
    theirs = generate(
        open_bundle(folder), labels, [0] * len(labels), program=program, guidance=guidance, output="latents",
        noise=GivenNoise(*noise), batch=len(labels),
    )  # fmt: skip
    assert relative_error(mine, theirs) < TOLERANCE
    assert relative_error(mine, recorded["x"][-1]) < TOLERANCE  # PyTorch's: as tests/export/truth/test_golden.py


@pytest.mark.parametrize("name", ["tuned-8", "tuned-15"])
def test_the_demos_few_steps_are_pythons(opened, gray_bundle: Path, name: str) -> None:
    """Programs that no sampler makes: timesteps between those of training, each step guided as it was found."""
    path, bundle = ROOT / "models" / "fashion-programs" / f"{name}.json", open_bundle(gray_bundle)
    mine = opened(gray_bundle).generate([3, 9], [7, 8], images=False, program_file=str(path).encode(), guidance=4.0)
    settings = {"program": read_program(path), "guidance": 4.0}
    assert relative_error(mine, generate(bundle, [3, 9], [7, 8], output="latents", **settings)) < TOLERANCE


@pytest.mark.parametrize(("program", "guidance"), [("ddpm-50", 4.0), ("ddim-25", 1.0), ("ddim-50", 2.5)])
def test_seeded_pictures_equal_pythons(opened, golden_bundle, program: str, guidance: float) -> None:
    folder = golden_bundle("gray1_cfg")
    bundle, labels, seeds = open_bundle(folder), [3, 9, 1, 3], [7, 8, 2**63 + 5, 7]
    fields = {"program": program.encode(), "guidance": guidance}
    handle = opened(folder)
    latents = handle.generate(labels, seeds, images=False, **fields)
    settings = {"program": bundle.program(program), "guidance": guidance}
    assert relative_error(latents, generate(bundle, labels, seeds, output="latents", **settings)) < TOLERANCE
    images = handle.generate(labels, seeds, **fields)
    assert np.mean(images == generate(bundle, labels, seeds, **settings)) >= 0.999
    assert np.array_equal(images[0], images[3]), "same seed and label, same picture"
    alone = handle.generate(labels[1:2], seeds[1:2], **fields)
    assert np.abs(alone[0].astype(int) - images[1]).max() <= 1  # ONNX Runtime sums batches in another order


@pytest.mark.parametrize("prediction", ["flow", "flow-to-data"])
def test_flows_run_in_either_direction(opened, golden_bundle, prediction: str) -> None:
    """REPA's velocity and time, and SiT's: the bundles' own programs of Euler's method."""
    folder = golden_bundle("gray1_cfg", prediction)
    fields = {"program": b"flow-euler-10", "guidance": 1.5}
    mine = opened(folder).generate([3, 9], [7, 8], images=False, **fields)
    bundle = open_bundle(folder)
    settings = {"program": bundle.program("flow-euler-10"), "guidance": 1.5}
    assert np.isfinite(mine).all() and bundle.manifest.model.prediction == prediction
    assert relative_error(mine, generate(bundle, [3, 9], [7, 8], output="latents", **settings)) < TOLERANCE


# With noise at each step and without any; the small bundles' trajectories have DDIM.
@pytest.mark.parametrize("program", ["dpm++-20", "ddpm-10", pytest.param("ddim-25", marks=pytest.mark.slow)])
def test_the_demo_models_trajectories(opened, demo_bundle: Path, program: str) -> None:
    bundle, labels, seeds = open_bundle(demo_bundle), [9, 3], [7, 8]
    handle, chosen = opened(demo_bundle), bundle.program(program)
    mine = handle.generate(labels, seeds, images=False, program=program.encode())
    assert relative_error(mine, generate(bundle, labels, seeds, program=chosen, output="latents")) < TOLERANCE
    images = handle.generate(labels, seeds, program=program.encode())
    assert np.mean(images == generate(bundle, labels, seeds, program=chosen)) >= 0.999
    assert np.array_equal(images, handle.generate(labels, seeds, program=program.encode())), "same seed, same image"


def test_batches_away_from_progress_and_previews(opened, golden_bundle) -> None:
    folder = golden_bundle("gray1_cfg")
    bundle, labels, seeds, away = open_bundle(folder), [3, 9, 1], [1, 2, 3], [4, -1, 0]
    told: list[tuple[int, int, int]] = []
    shown: list[tuple[int, tuple[int, ...]]] = []
    mine = opened(folder).generate(
        labels, seeds, images=False, away_from=away, batch=2, program=b"ddim-25", preview_every=10,
        on_progress=lambda p: told.append((p.done, p.total, p.batch)),
        on_preview=lambda step, pictures: shown.append((step, pictures.shape)),
    )  # fmt: skip
    python = generate(
        bundle, labels, seeds, away_from=[4, None, 0], batch=2, program=bundle.program("ddim-25"), output="latents"
    )
    assert relative_error(mine, python) < TOLERANCE
    assert told == [(i, 50, 2 if i <= 25 else 1) for i in range(1, 51)]
    assert shown == [(10, (2, 8, 8, 1)), (20, (2, 8, 8, 1)), (10, (1, 8, 8, 1)), (20, (1, 8, 8, 1))]


@pytest.mark.parametrize("case", ["gray1_cfg", "latent4_learned_sigma"])
def test_previews_are_pythons(opened, golden_bundle, case: str) -> None:
    """By the decoder, or by the graph `preview`: the x0 estimates as pictures."""
    bundle, shown, expected = open_bundle(golden_bundle(case)), [], []
    program = with_x0_slot(bundle.program("ddim-25"))
    opened(bundle.folder).generate(
        [3, 1], [7, 8], images=False, program=b"ddim-25", preview_every=10,
        on_preview=lambda step, pictures: shown.append(pictures),
    )  # fmt: skip
    with Session(bundle) as session:
        generate(
            bundle, [3, 1], [7, 8], program=program, output="latents",
            on_step=lambda p: expected.append(session.preview(p.state[:, -1])),
        )  # fmt: skip
    for mine, theirs in zip(shown, expected[9::10], strict=True):
        assert mine.shape == theirs.shape and np.abs(mine.astype(int) - theirs).max() <= 1


def test_noise_is_pythons(built: Path) -> None:
    """Bit for bit, but where libm's log or sin rounds a float64 another way than numpy's: one float32 apart at most."""
    library, count = load(built / "libditedge.so"), 200_000
    for seed, draw in ((0, 0), (7, 3), (2**64 - 1, 2**33)):
        mine = np.empty(count, np.float32)
        assert library.ditedge_noise(seed, draw, mine.ctypes.data, count) == 0
        theirs = standard_normal(seed, draw, count)
        np.testing.assert_array_max_ulp(mine, theirs, maxulp=1)
        assert np.mean(mine == theirs) > 0.9999


def test_given_noise_has_its_size(opened, golden_bundle, tmp_path: Path) -> None:
    """A buffer of another size than the program needs is refused before it is read; without noise, none is asked for."""
    folder = golden_bundle("gray1_cfg")
    handle, file = opened(folder), folder / "programs" / "ddpm-50.json"
    steps = ctypes.c_int64()
    assert handle.c.ditedge_program_file_steps(os.fsencode(file), ctypes.byref(steps)) == 0 and steps.value == 50
    initial, noise = np.ones((1, 1, 8, 8), np.float32), np.zeros((50, 1, 1, 8, 8), np.float32)
    given = {"initial_noise": initial.ctypes.data, "step_noise": noise.ctypes.data}
    fields = {"program_file": os.fsencode(file), "images": False}
    for wrong in (
        given,
        given | {"step_noise_bytes": noise.nbytes - 4},
        given | {"step_noise_bytes": noise.nbytes * 2},
    ):
        with pytest.raises(DitedgeError, match="step_noise_bytes") as caught:
            handle.generate([1], [1], **fields, **wrong)
        assert caught.value.status == ARGUMENT
    with pytest.raises(DitedgeError, match="step_noise is missing"):
        handle.generate([1], [1], **fields, initial_noise=initial.ctypes.data)
    right = handle.generate([1], [1], **fields, **given, step_noise_bytes=noise.nbytes)
    assert np.isfinite(right).all()
    alone = handle.generate([1], [1], images=False, program=b"ddim-25", initial_noise=initial.ctypes.data)
    nothing = (initial, np.zeros((25, 1, 1, 8, 8), np.float32))
    assert np.array_equal(alone, handle.generate([1], [1], images=False, program=b"ddim-25", noise=nothing))


def test_decode_from_cpp(built: Path, golden_bundle, onnxruntime_library: Path, tmp_path: Path) -> None:
    """The class's images are its decoded latents, black where those are not finite; get() is the handle for the C functions."""
    (tmp_path / "a.cpp").write_text(
        "#include <ditedge.hpp>\n"
        "#include <cmath>\n"
        "#include <cstdio>\n"
        "int main(int, char** argv) {\n"
        "    const ditedge::api::Bundle bundle(argv[1]);\n"
        "    ditedge::api::Session session(bundle);\n"
        "    const std::int64_t labels[] = {1, 2};\n"
        "    const std::uint64_t seeds[] = {3, 4};\n"
        "    ditedge_params params = ditedge::api::default_params();\n"
        "    params.count = 2, params.labels = labels, params.seeds = seeds;\n"
        "    std::vector<std::uint8_t> same(128);\n"
        "    const std::vector<float> latents = session.latents(params);\n"
        "    ditedge::api::check(ditedge_decode(session.get(), latents.data(), 2, same.data(), same.size()));\n"
        "    if (session.decode(latents) != session.images(params) || same != session.images(params)) return 1;\n"
        "    std::vector<float> spoiled = latents;\n"
        "    spoiled[70] = INFINITY;\n"
        "    try {\n"
        "        session.decode(spoiled, same);\n"
        "        return 2;\n"
        "    } catch (const ditedge::api::Failure& failure) {\n"
        "        std::puts(failure.what());\n"
        "        if (failure.status() != DITEDGE_ERROR_NOT_FINITE) return 3;\n"
        "    }\n"
        "    const std::vector<std::uint8_t> all = session.images(params);\n"
        "    for (std::size_t i = 0; i < 128; ++i) if (same[i] != (i < 64 ? all[i] : 0)) return 4;\n"
        "    try {\n"
        "        session.decode({});\n"
        "    } catch (const ditedge::api::Failure& failure) {\n"
        "        return failure.status() == DITEDGE_ERROR_ARGUMENT ? 0 : 5;\n"
        "    }\n"
        "    return 6;\n"
        "}\n"
    )
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'runtime/cpp/include'}", f"-L{built}"]
    subprocess.run(["c++", "a.cpp", "-o", "a", *flags, f"-Wl,-rpath,{built}", "-lditedge"], cwd=tmp_path, check=True)
    environment = os.environ | {"DITEDGE_ONNXRUNTIME": str(onnxruntime_library)}
    command = [tmp_path / "a", golden_bundle("gray1_cfg")]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout == "1 of 2 latents have infinite numbers or NaN: the first is that of image 1\n"


def test_guidance_of_a_step_is_a_factor(opened, golden_bundle, tmp_path: Path) -> None:
    """Half of guidance 4 is guidance 2.5, to the bit; a ramp with steps without guidance is what Python makes of it."""
    bundle, handle = open_bundle(golden_bundle("gray1_cfg")), opened(golden_bundle("gray1_cfg"))
    program = bundle.program("ddim-10")
    half, ramp = (
        replace(program, guidance=column) for column in (np.full(10, 0.5), np.maximum(0, np.linspace(-0.5, 1.5, 10)))
    )
    for name, table in (("half", half), ("ramp", ramp)):
        write_program(table, tmp_path / f"{name}.json")
    files = {name: str(tmp_path / f"{name}.json").encode() for name in ("half", "ramp")}
    plain = handle.generate([3, 9], [1, 2], images=False, program=b"ddim-10", guidance=2.5)
    assert np.array_equal(
        handle.generate([3, 9], [1, 2], images=False, program_file=files["half"], guidance=4.0), plain
    )
    mine = handle.generate([3, 9], [1, 2], images=False, program_file=files["ramp"], guidance=4.0)
    assert (
        relative_error(mine, generate(bundle, [3, 9], [1, 2], program=ramp, guidance=4.0, output="latents")) < TOLERANCE
    )
    assert relative_error(mine, plain) > 1e-3
