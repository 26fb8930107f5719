"""libditedge where something is wrong: NaN, programs of other models, locales, 32 bits, processors without VNNI."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from capi_ctypes import Ditedge, DitedgeError
from PIL import Image

from ditedge.calibration.options import QuantizeOptions
from ditedge.calibration.quantize import quantize_bundle
from ditedge.runtime import generate, open_bundle
from ditedge.runtime.loop.engine_ort import PROBE_GRAPH
from ditedge.runtime.loop.verify import relative_error
from ditedge.runtime.samplers.program import Program, write_program
from tests.conftest import ROOT
from tests.cpp.conftest import need
from tests.runtime.samplers.test_process import FOREIGN, given, linear_betas, program

REQUEST, NOT_FINITE = 4, 10


LABELS = [3, 9, 1]


def noise_with_nan(image: int) -> tuple[np.ndarray, np.ndarray]:
    """For LABELS and a deterministic program of 25 steps."""
    initial = np.random.default_rng(7).standard_normal((3, 1, 8, 8)).astype(np.float32)
    initial[image, 0, 2, 2] = np.nan
    return initial, np.zeros((25, 3, 1, 8, 8), np.float32)


def check_one_bad_image(handle: Ditedge) -> None:
    """The others are those of a run without it, to the last bit; it is zeros; the sentence names it."""
    initial, silence = noise_with_nan(1)
    good = (np.nan_to_num(initial), silence)
    fields = {"program": b"ddim-25", "guidance": 4.0}
    for images, dtype, shape in ((False, np.float32, (3, 1, 8, 8)), (True, np.uint8, (3, 8, 8, 1))):
        expected = handle.generate(LABELS, [0] * 3, images=images, noise=good, **fields)
        assert expected[1].any()
        for finite, batch, place in ((0, 3, ""), (1, 3, ", from step 1 on"), (1, 2, ", from step 1 on")):
            out = np.full(shape, 7, dtype)
            extra = {"check_finite": finite, "batch": batch}
            with pytest.raises(
                DitedgeError, match=rf"^1 of 3 pictures overflowed: image 1 \(class 9{place}\); try less guidance"
            ) as caught:
                handle.generate(LABELS, [0] * 3, images=images, noise=(initial, silence), out=out, **fields, **extra)
            assert caught.value.status == NOT_FINITE
            assert not out[1].any()
            if batch == 3:
                assert np.array_equal(out[[0, 2]], expected[[0, 2]])
            else:
                assert out[0].any() and out[2].any()


def test_an_image_that_is_not_finite(opened, golden_bundle) -> None:
    check_one_bad_image(opened(golden_bundle("gray1_cfg")))


def exploding(bundle: Path) -> Program:
    """ddim-25, some steps of which multiply what they have by 1e30: infinite after the second or so."""
    whole = open_bundle(bundle).program("ddim-25")
    mix = whole.mix.copy()
    mix[6:12] *= 1e30
    return replace(whole, mix=mix)


def test_the_step_where_it_begins(opened, golden_bundle, tmp_path: Path) -> None:
    folder = golden_bundle("gray1_cfg", labels=True)
    write_program(exploding(folder), tmp_path / "p.json")
    handle, bad = opened(folder), []

    def watch(event) -> None:
        if not np.isfinite(np.ctypeslib.as_array(event.latents, (2, 1, 8, 8))).all():
            bad.append(event.done)

    fields = {"program_file": str(tmp_path / "p.json").encode(), "check_finite": 1, "on_progress": watch}
    with pytest.raises(DitedgeError, match="^2 of 2 pictures overflowed") as caught:
        handle.generate([8, 9], [1, 2], **fields)
    assert bad and 7 <= bad[0] < 25
    step = int(
        re.search(
            r"image 0 \(class 8 Bag, seed 1, from step (\d+) on\), image 1 \(class 9 Ankle boot, seed 2,",
            str(caught.value),
        )[1]
    )
    assert step == bad[0]


def test_the_command_writes_the_good_pictures(built: Path, golden_bundle, onnxruntime_library, tmp_path: Path) -> None:
    folder = golden_bundle("gray1_cfg")
    write_program(exploding(folder), tmp_path / "p.json")
    command = [built / "ditedge-run", "--bundle", folder, "--class", "1;2", "--program-file", tmp_path / "p.json"]
    command.append("--check-finite")
    environment = os.environ | {"DITEDGE_ONNXRUNTIME": str(onnxruntime_library)}
    done = subprocess.run([*command, "-o", tmp_path / "a.png"], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "image 0 (class 1, seed 0, from step" in done.stderr
    assert not np.array(Image.open(tmp_path / "a.png")).any()


@pytest.mark.parametrize("name", FOREIGN)
def test_programs_of_another_process(opened, golden_bundle, tmp_path: Path, name: str) -> None:
    """Refused with Python's sentence, unless the caller insists. Betas that are listed there and named here are not
    compared by this runtime."""
    foreign, sentence = FOREIGN[name]
    write_program(foreign, tmp_path / "p.json")
    handle = opened(golden_bundle("gray1_cfg"))
    fields = {"program_file": str(tmp_path / "p.json").encode()}
    if name != "given":
        with pytest.raises(DitedgeError, match=sentence) as caught:
            handle.generate([1], [0], **fields)
        assert caught.value.status == REQUEST
    assert handle.generate([1], [0], **fields, other_process=1).shape == (1, 8, 8, 1)


def test_programs_of_the_same_process(opened, golden_bundle, tmp_path: Path) -> None:
    bundle, handle = open_bundle(golden_bundle("gray1_cfg")), opened(golden_bundle("gray1_cfg"))
    unknown = replace(bundle.program("ddim-25"), process=None)
    listed = program(**given(linear_betas(1e-4, 0.02, 1000)), beta_start=None, beta_end=None)
    rounded = program(beta_end=float(np.float32(0.02)))
    for number, fine in enumerate((bundle.program("ddim-25"), unknown, listed, rounded)):
        write_program(fine, tmp_path / f"{number}.json")
        expected = generate(bundle, [1], [0], program=fine, output="latents")
        mine = handle.generate([1], [0], images=False, program_file=str(tmp_path / f"{number}.json").encode())
        assert relative_error(mine, expected) < 1e-5


LOCALE = """
import locale, sys
from capi_ctypes import *
library, bundle, engine = map(Path, sys.argv[1:])
def run():
    handle, label = Ditedge(library, bundle, engine, threads=1), c.c_int64()
    found = handle.c.ditedge_find_class(handle.bundle, b"ANKLE BOOT", c.byref(label))
    return found, label.value, handle.info.default_guidance, handle.generate([1], [1], program=b"ddim-25").tobytes()
before = run()
assert locale.setlocale(locale.LC_ALL, "tr_TR.UTF-8") and locale.localeconv()["decimal_point"] == ","
print(before[:2], run() == before)
"""


def test_a_turkish_locale_changes_nothing(built: Path, golden_bundle, onnxruntime_library, tmp_path: Path) -> None:
    """Its decimal is a comma, and its small I has no dot."""
    need("localedef")
    made = ["localedef", "-i", "tr_TR", "-f", "UTF-8", str(tmp_path / "tr_TR.UTF-8")]
    if subprocess.run(made, capture_output=True).returncode > 1:
        pytest.skip("this system has no sources of locales")
    paths = [built / "libditedge.so", golden_bundle("gray1_cfg", labels=True), onnxruntime_library]
    environment = os.environ | {"LOCPATH": str(tmp_path), "PYTHONPATH": str(ROOT / "examples")}
    command = [sys.executable, "-c", LOCALE, *map(str, paths)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout == "(0, 9) True\n", done.stderr


def test_integer_sums_are_asked_for_as_in_python() -> None:
    source = (ROOT / "runtime/cpp/src/engine_ort.cpp").read_text()
    literals = re.findall(r'"((?:[^"\\]|\\.)*)"', source.split("kProbeGraph[] =")[1].split(";\n")[0])
    assert "".join(literals).encode().decode("unicode_escape").encode("latin1") == PROBE_GRAPH


def test_int8_without_vnni(built: Path, golden_bundle, onnxruntime_library, tmp_path: Path) -> None:
    """The integer kernels of a processor that has AVX2 only: the same latents as here."""
    if os.uname().machine != "x86_64" or shutil.which("qemu-x86_64-static") is None:
        pytest.skip("qemu-x86_64-static is not installed, or this is no x86")
    source, folder = golden_bundle("gray1_cfg"), tmp_path / "int8"
    quantize_bundle(source, folder, QuantizeOptions())
    latents = []
    for place, emulator in ((folder, []), (folder, ["qemu-x86_64-static", "-cpu", "Haswell"]), (source, [])):
        command = [*emulator, built / "ditedge-run", "--bundle", place, "--class", "1;9", "--program", "ddim-25"]
        command += ["--library", onnxruntime_library, "--threads", "1", "--latents", tmp_path / "l.f32"]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        latents.append(np.fromfile(tmp_path / "l.f32", np.float32))
    here, there, exact = latents
    assert relative_error(there, here) < 1e-3  # roundings that flip at another order of float32 sums
    assert 0 < relative_error(here, exact) < 0.1


def test_int8_is_the_same_alone_and_in_any_batch(
    built: Path, opened, golden_bundle, onnxruntime_library, tmp_path: Path
) -> None:
    """To the bit, whatever the batch, the neighbours, the threads, and who watches: roundings would amplify a last bit."""
    folder = tmp_path / "int8"
    quantize_bundle(golden_bundle("gray1_cfg"), folder, QuantizeOptions())
    handle, labels, seeds, watched = opened(folder), [9, 8, 1, 0, 3], [100, 101, 102, 103, 104], []
    alone = Ditedge(built / "libditedge.so", folder, onnxruntime_library, threads=1)
    watch = {"on_progress": lambda _: None, "on_preview": lambda step, _: watched.append(step), "preview_every": 5}
    for name in (b"ddim-25", b"dpm++-20", b"ddpm-10"):
        together = handle.generate(labels, seeds, images=False, program=name, batch=5)
        others = [handle.generate(labels, seeds, images=False, program=name, batch=batch) for batch in (1, 2, 4)]
        others.append(handle.generate(labels, seeds, images=False, program=name, batch=5, **watch))
        others.append(
            np.concatenate(
                [alone.generate([n], [s], images=False, program=name) for n, s in zip(labels, seeds, strict=True)]
            )
        )
        others.append(handle.generate(labels[::-1], seeds[::-1], images=False, program=name, batch=3)[::-1])
        for i, other in enumerate(others):
            assert np.array_equal(other, together), (name, i)
    assert watched
    alone.close()


def test_headers_where_the_distribution_has_none(headers: Path, tmp_path: Path) -> None:
    """Ubuntu and JetPack: not another distribution's packages, but a sentence; $ONNXRUNTIME_ROOT is all that it needs."""
    (tmp_path / "bin").mkdir()
    for name, text in (("apt-cache", "Candidate: (none)"), ("apt-get", "unexpected")):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\necho '{text}'\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "os-release").write_text('ID=ubuntu\nPRETTY_NAME="Ubuntu 22.04.5 LTS"\n')
    script, out = ROOT / "tools" / "fetch_cpp_headers.sh", tmp_path / "headers"
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    environment = {"PATH": path, "OS_RELEASE": str(tmp_path / "os-release")}
    done = subprocess.run([script, out], env=environment, capture_output=True, text=True)
    assert done.returncode == 3 and "ONNXRUNTIME_ROOT=" in done.stderr and "Ubuntu 22.04.5" in done.stderr
    release = tmp_path / "release" / "include"  # flat, as archives are
    shutil.copytree(headers / "usr/include/onnxruntime", release)
    environment["ONNXRUNTIME_ROOT"] = str(tmp_path / "release")
    fails = subprocess.run([script, out], env=environment | {"CXX": "false"}, capture_output=True, text=True)
    assert fails.returncode == 3 and "nlohmann-json3-dev" in fails.stderr
    installed = environment | {"CPLUS_INCLUDE_PATH": str(headers / "usr/include")}
    subprocess.run([script, out], env=installed, check=True)
    assert not out.exists()  # nothing was fetched
    shutil.copytree(headers / "usr/include/nlohmann", out / "usr/include/nlohmann")
    subprocess.run([script, out], env=environment, check=True)
    configure = ["cmake", "-S", ROOT / "runtime/cpp", "-B", tmp_path / "b", f"-DDITEDGE_HEADERS={out}"]
    configure.append(f"-DONNXRUNTIME_ROOT={tmp_path / 'release'}")
    subprocess.run(configure, check=True, capture_output=True)
    assert f'"{release}/onnxruntime_c_api.h"' in (tmp_path / "b/shim/onnxruntime/onnxruntime_c_api.h").read_text()
    environment["ONNXRUNTIME_ROOT"] = str(tmp_path / "bin")
    wrong = subprocess.run([script, out], env=environment, capture_output=True, text=True)
    assert wrong.returncode == 3 and "onnxruntime_c_api.h" in wrong.stderr
