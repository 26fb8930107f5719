"""libditedge against the Python runtime, through the C interface by ctypes: latents, pictures, refusals, cancel."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import tarfile
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from capi_ctypes import Ditedge, DitedgeError, Info, Params, load
from onnx import TensorProto, helper
from PIL import Image
from safetensors.numpy import load_file

from ditedge.runtime import generate, open_bundle
from ditedge.runtime.errors import RequestError
from ditedge.runtime.loop.noise import GivenNoise, standard_normal
from ditedge.runtime.loop.verify import relative_error
from ditedge.runtime.processors import thread_count, usable_processors
from ditedge.runtime.samplers.program import Program, write_program
from tests.conftest import GOLDEN, ROOT, golden_case
from tests.cpp.conftest import need
from tests.cpp.plan_text import with_cpp_plans

ARGUMENT, BUNDLE, PROGRAM, REQUEST, ENGINE, NO_DEVICE, CANCELLED = range(1, 8)
# The same graphs in the same library on the same numbers: only the number of threads could change the sums' order.
TOLERANCE = 1e-5
# Every recorded case but the one of 250 steps.
LOOPS = [
    (case, loop)
    for case in ("gray1_cfg", "latent4_learned_sigma", "pixel3_no_null_class")
    for loop in golden_case(case)["loops"]
    if loop["name"] != "ddpm250_nocfg"
]


def program_of(bundle_folder: Path, loop: dict) -> Program:
    bundle = open_bundle(bundle_folder)
    settings = {"sampler": loop["loop"], "respacing": loop["respacing"], "clip_x0": loop["clip"]}
    if loop["loop"] == "ddim":
        settings["eta"] = loop["eta"] or None
    elif not bundle.manifest.model.learned_variance:
        settings["variance"] = "fixed-small" if loop.get("sigma_small") else "fixed-large"
    return bundle.program(**settings)


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


@pytest.mark.parametrize("program", ["dpm++-20", "ddpm-10", "ddim-25"])
def test_the_demo_models_trajectories(opened, demo_bundle: Path, program: str) -> None:
    bundle, labels, seeds = open_bundle(demo_bundle), [9, 8, 3, 0], [7, 8, 9, 10]
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


def test_noise_is_pythons(built: Path) -> None:
    """Bit for bit, but where libm's log or sin rounds a float64 another way than numpy's: one float32 apart at most."""
    library, count = load(built / "libditedge.so"), 200_000
    for seed, draw in ((0, 0), (7, 3), (2**64 - 1, 2**33)):
        mine = np.empty(count, np.float32)
        assert library.ditedge_noise(seed, draw, mine.ctypes.data, count) == 0
        theirs = standard_normal(seed, draw, count)
        np.testing.assert_array_max_ulp(mine, theirs, maxulp=1)
        assert np.mean(mine == theirs) > 0.9999


def test_cancel_from_another_thread(opened, golden_bundle) -> None:
    handle = opened(golden_bundle("gray1_cfg"))
    started = threading.Event()
    thread = threading.Thread(target=lambda: (started.wait(), handle.cancel()))
    thread.start()
    with pytest.raises(DitedgeError, match="stopped") as caught:
        handle.generate([1] * 400, range(400), images=False, batch=1, on_progress=lambda _: started.set())
    thread.join()
    assert caught.value.status == CANCELLED
    handle.cancel()  # too late: nothing runs
    assert handle.generate([1], [1], program=b"ddim-25").shape == (1, 8, 8, 1)


def test_cancel_of_numbered_requests(opened, golden_bundle) -> None:
    """One that comes early is not lost, one that comes late does not touch the next request."""
    handle, started = opened(golden_bundle("gray1_cfg")), threading.Event()
    handle.c.ditedge_cancel_request(handle.sampler, 2)
    for request in (1, 2):
        with pytest.raises(DitedgeError, match=f"request {request} was cancelled") as caught:
            handle.generate([1], [1], program=b"ddim-25", request=request)
        assert caught.value.status == CANCELLED
    for request in (3, 0):
        assert handle.generate([1], [1], program=b"ddim-25", request=request).shape == (1, 8, 8, 1)
    cancel = lambda: (started.wait(), handle.c.ditedge_cancel_request(handle.sampler, 4))  # noqa: E731
    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(DitedgeError, match="stopped"):
        handle.generate([1] * 400, range(400), batch=1, request=4, on_progress=lambda _: started.set())
    thread.join()
    assert handle.generate([1], [1], program=b"ddim-25", request=5).shape == (1, 8, 8, 1)


def test_cancel_stops_within_a_step(opened, golden_bundle) -> None:
    """A program of one step that runs for seconds: nothing but the engine itself can stop it."""
    handle, count = opened(golden_bundle("gray1_cfg")), 4096
    timer = threading.Timer(0.05, handle.cancel)
    with pytest.raises(DitedgeError, match=r"stopped within (step|decoder)\.onnx|stopped before") as caught:
        while True:  # until the cancel falls into a call
            if not timer.is_alive():
                timer = threading.Timer(0.05, handle.cancel)
                timer.start()
            handle.generate([1] * count, range(count), batch=512, program=b"ddim-25", guidance=1.0)
    assert caught.value.status == CANCELLED
    timer.join()


def with_an_endless_loop(bundle: Path, name: str) -> None:
    """Graph `name` adds to its output what a loop of 2**62 rounds makes of a zero."""
    model = onnx.load(bundle / f"{name}.onnx")
    last = model.graph.output[0]
    for node in model.graph.node:
        for i, output in enumerate(node.output):
            if output == last.name:
                node.output[i] = "before"
    types = {
        "round": TensorProto.INT64,
        "go": TensorProto.BOOL,
        "x": TensorProto.FLOAT,
        "on": TensorProto.BOOL,
        "y": TensorProto.FLOAT,
    }
    info = {key: helper.make_tensor_value_info(key, kind, [1] if key in "xy" else []) for key, kind in types.items()}
    nodes = [helper.make_node("Add", ["x", "x"], ["y"]), helper.make_node("Identity", ["go"], ["on"])]
    body = helper.make_graph(nodes, "body", [info[key] for key in ("round", "go", "x")], [info["on"], info["y"]])
    for key, kind, shape, value in (
        ("many", TensorProto.INT64, [], 2**62),
        ("yes", TensorProto.BOOL, [], True),
        ("zero", TensorProto.FLOAT, [1], 0.0),
    ):
        model.graph.initializer.append(helper.make_tensor(key, kind, shape, [value]))
    kind = last.type.tensor_type.elem_type
    model.graph.node.append(helper.make_node("Loop", ["many", "yes", "zero"], ["looped"], body=body))
    model.graph.node.append(helper.make_node("Cast", ["looped"], ["cast"], to=kind))
    model.graph.node.append(helper.make_node("Add", ["before", "cast"], [last.name]))
    raw = model.SerializeToString()
    (bundle / f"{name}.onnx").write_bytes(raw)
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    files[f"{name}.onnx"] = {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    edit(bundle, files=files)


@pytest.mark.parametrize("name", ["conditioner", "step", "decoder"])
def test_cancel_ends_an_endless_loop(opened, gray_bundle: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    with_an_endless_loop(gray_bundle, name)
    handle = opened(gray_bundle)
    timer = threading.Timer(0.3, handle.cancel)
    timer.start()
    with pytest.raises(DitedgeError, match=f"stopped within {name}.onnx") as caught:
        handle.generate([1], [1], program=b"ddim-25")
    timer.join()
    assert caught.value.status == CANCELLED
    assert capfd.readouterr() == ("", "")  # the application's own output stays its own


FORKED = """
import os, sys
from capi_ctypes import *
library, bundle, engine = map(Path, sys.argv[1:])
handle = Ditedge(library, bundle, engine, threads=2)
before = handle.generate([1], [1], program=b"ddim-25")
child = os.fork()
if child == 0:
    try:
        handle.generate([1], [1], program=b"ddim-25")
    except DitedgeError as error:
        print(error.status, error, flush=True)
    handle.close()
    again = Ditedge(library, bundle, engine, threads=2).generate([1], [1], program=b"ddim-25")
    print("equal", np.array_equal(again, before), flush=True)
    os._exit(0)
print("child", os.waitpid(child, 0)[1])
"""


def test_a_sampler_stays_in_its_process(built: Path, golden_bundle, onnxruntime_library: Path) -> None:
    """In a child, an opened sampler's threads are missing: it is refused, closed without waiting; a new one works."""
    arguments = [built / "libditedge.so", golden_bundle("gray1_cfg"), onnxruntime_library]
    command = [os.sys.executable, "-c", FORKED, *map(str, arguments)]
    path = os.environ | {"PYTHONPATH": str(ROOT / "examples")}
    done = subprocess.run(command, env=path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{ENGINE} ") and "opened before fork()" in done.stdout
    assert "equal True" in done.stdout and "child 0" in done.stdout


def threads_of(handle_of) -> tuple[Ditedge, int]:
    before = len(os.listdir("/proc/self/task"))
    handle = handle_of()
    return handle, len(os.listdir("/proc/self/task")) - before


def test_threads_are_bounded(opened, golden_bundle, built: Path, onnxruntime_library: Path) -> None:
    """By the affinity of the caller; each of the three graphs has its own, less the caller's thread."""
    folder, whole = golden_bundle("gray1_cfg"), os.sched_getaffinity(0)

    def with_threads(count: int):
        return lambda: Ditedge(built / "libditedge.so", folder, onnxruntime_library, threads=count)

    opened(folder)  # whatever the library itself starts
    handle, started = threads_of(with_threads(999))
    handle.close()
    assert started <= 3 * (len(whole) - 1)
    os.sched_setaffinity(0, {min(whole)})
    try:
        for count in (999, 0):
            handle, started = threads_of(with_threads(count))
            handle.close()
            assert started == 0
    finally:
        os.sched_setaffinity(0, whole)


def test_idle_threads_do_not_spin(opened, golden_bundle, built: Path, onnxruntime_library: Path) -> None:
    """CPU time of a run whose callback sleeps after each step: none of it is a waiting thread's."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one processor: no thread could spin")
    spent = {}
    for spin in (0, 1):
        handle = Ditedge(built / "libditedge.so", golden_bundle("gray1_cfg"), onnxruntime_library, threads=2, spin=spin)
        handle.generate([1], [1], program=b"ddim-25")
        start = time.process_time()
        handle.generate([1], [1], program=b"ddim-25", on_progress=lambda _: time.sleep(0.01))
        spent[spin] = time.process_time() - start
        handle.close()
    assert spent[0] < 0.5 * spent[1], spent


GROUPS = [
    ("0::/\n", {"cpu.max": "max 100000"}, None),
    ("0::/\n", {"cpu.max": "50000 100000"}, 1),
    ("0::/a/b\n", {"cpu.max": "max 100000", "a/cpu.max": "100000 100000", "a/b/cpu.max": "max 100000"}, 1),
    ("0::/not/here\n", {"cpu.max": "100000 100000"}, 1),
    ("4:cpu,cpuacct:/x\n1:name=systemd:/\n", {"cpu,cpuacct/x/cpu.cfs_quota_us": "100000"}, 1),
    ("4:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "-1"}, None),
    ("3:cpuset:/\n", {"cpu.max": "nonsense"}, None),
    ("", {}, None),
]


@pytest.fixture(scope="module")
def processors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that prints usable_processors(argv[1]) and thread_count(0, argv[1])."""
    need("c++")
    folder = tmp_path_factory.mktemp("processors")
    (folder / "main.cpp").write_text(
        '#include <cstdio>\n#include "processors.hpp"\n'
        "int main(int, char** argv) {\n"
        '    std::printf("%d %d", ditedge::usable_processors(argv[1]), ditedge::thread_count(0, argv[1]));\n'
        "}\n"
    )
    source = ROOT / "runtime/cpp/src"
    command = ["c++", "-std=c++17", f"-I{source}", folder / "main.cpp", source / "processors.cpp", "-pthread"]
    subprocess.run([*command, "-o", folder / "main"], check=True)
    return folder / "main"


@pytest.mark.parametrize(("groups", "files", "expected"), GROUPS)
def test_quotas_of_containers(processors: Path, tmp_path: Path, groups: str, files: dict, expected: int | None) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
        if "quota" in name:
            path.with_name("cpu.cfs_period_us").write_text("100000\n")
    for i in os.sched_getaffinity(0):  # all of one core
        siblings = tmp_path / f"sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list"
        siblings.parent.mkdir(parents=True)
        siblings.write_text("0-1023\n")
    found = subprocess.run([processors, tmp_path], capture_output=True, check=True, text=True).stdout
    assert found == f"{expected or len(os.sched_getaffinity(0))} 1"
    assert (usable_processors(tmp_path), thread_count(0, tmp_path)) == tuple(map(int, found.split()))


def test_a_provider_that_runs_nothing_is_refused(
    built: Path, headers: Path, golden_bundle, onnxruntime_library: Path, tmp_path: Path
) -> None:
    """Not run on the CPU under another name. The shim says that it has Xnnpack, and appends nothing."""
    source, shim = Path(__file__).parent / "silent_provider.cpp", tmp_path / "libonnxruntime.so"
    command = ["c++", "-std=c++17", "-shared", "-fPIC", f"-I{headers}/usr/include", source, "-o", shim, "-ldl"]
    subprocess.run(command, check=True)
    code = "import sys\nfrom capi_ctypes import *\nlibrary, bundle, engine = map(Path, sys.argv[1:4])\n"
    code += "try: Ditedge(library, bundle, engine, provider=sys.argv[4].encode())\n"
    code += "except DitedgeError as e: print(e.status, e)\nelse: print('opened')"
    environment = os.environ | {"REAL_ONNXRUNTIME": str(onnxruntime_library), "PYTHONPATH": str(ROOT / "examples")}

    def said(provider: str, engine: Path) -> str:
        arguments = [built / "libditedge.so", golden_bundle("gray1_cfg"), engine, provider]
        command = [os.sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert said("cpu", shim) == "opened\n"
    silent = said("XnnpackExecutionProvider", shim)
    assert (
        silent.startswith(f"{ENGINE} ") and "provider 'XnnpackExecutionProvider' takes no node of this graph" in silent
    )
    for absent in ("cuda", "nonsense"):
        assert f"provider '{absent}' is not in this ONNX Runtime" in said(absent, onnxruntime_library)


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


def test_numbers_that_float32_cannot_hold(opened, gray_bundle: Path, tmp_path: Path) -> None:
    handle = opened(gray_bundle)
    for guidance in (1e300, -1e300, float("inf"), 3.5e38):
        with pytest.raises(DitedgeError, match="guidance .* is not a finite number in float32") as caught:
            handle.generate([1], [1], guidance=guidance)
        assert caught.value.status == REQUEST
    program = json.loads((gray_bundle / "programs" / "ddim-25.json").read_text())
    for key in ("init_scale", "timestep", "mix"):
        damaged = json.loads(json.dumps(program))
        row = damaged
        while not isinstance(row[key], float | int):
            row, key = row[key], 0
        row[key] = 1e300
        (tmp_path / "p.json").write_text(json.dumps(damaged))
        with pytest.raises(DitedgeError, match="within") as caught:
            handle.generate([1], [1], program_file=str(tmp_path / "p.json").encode())
        assert caught.value.status == PROGRAM


def test_what_is_given_out_is_nothing_on_failure(built: Path, gray_bundle: Path) -> None:
    library, handle, number = load(built / "libditedge.so"), ctypes.c_void_p(7), ctypes.c_int64(7)
    assert library.ditedge_bundle_open(None, 1, ctypes.byref(handle)) == ARGUMENT and handle.value is None
    handle = ctypes.c_void_p(7)
    assert library.ditedge_bundle_open(b"/nowhere", 1, ctypes.byref(handle)) == BUNDLE and handle.value is None
    handle = ctypes.c_void_p(7)
    assert library.ditedge_session_open(None, None, ctypes.byref(handle)) == ARGUMENT and handle.value is None
    bundle = ctypes.c_void_p()
    assert library.ditedge_bundle_open(os.fsencode(gray_bundle), 1, ctypes.byref(bundle)) == 0
    for call, nothing in (
        (lambda: library.ditedge_program_steps(bundle, b"nope", ctypes.byref(number)), 0),
        (lambda: library.ditedge_program_steps(None, None, ctypes.byref(number)), 0),
        (lambda: library.ditedge_program_file_steps(b"/nowhere", ctypes.byref(number)), 0),
        (lambda: library.ditedge_find_class(bundle, b"nope", ctypes.byref(number)), -1),
        (lambda: library.ditedge_find_class(None, None, ctypes.byref(number)), -1),
    ):
        number.value = 7
        assert call() != 0 and number.value == nothing
    info = Info(size=ctypes.sizeof(Info), num_classes=7)
    assert library.ditedge_bundle_info(None, ctypes.byref(info)) == ARGUMENT
    assert info.size == ctypes.sizeof(Info) and info.num_classes == 0
    library.ditedge_bundle_close(bundle)


def test_structs_end_where_a_field_ends(opened, golden_bundle) -> None:
    """Half a pointer is never followed."""
    handle, raw = opened(golden_bundle("gray1_cfg")), Params()
    ends = {getattr(Params, name).offset for name, *_ in Params._fields_[1:]} | {ctypes.sizeof(Params)}
    for size in range(ctypes.sizeof(Params) + 9):
        status = handle.c.ditedge_params_init(ctypes.byref(raw), ctypes.c_size_t(size))
        assert status == (0 if size in ends else ARGUMENT), size
    image, label, seed = np.zeros(64, np.uint8), np.array([1]), np.array([1], np.uint64)
    handle.c.ditedge_params_init(ctypes.byref(raw), ctypes.c_size_t(ctypes.sizeof(raw)))
    raw.count, raw.labels, raw.seeds, raw.size = 1, label.ctypes.data, seed.ctypes.data, Params.seeds.offset + 4
    run = handle.c.ditedge_generate_images
    assert run(handle.sampler, ctypes.byref(raw), ctypes.c_void_p(image.ctypes.data), ctypes.c_size_t(64)) == ARGUMENT


def test_versions_agree(built: Path) -> None:
    library = load(built / "libditedge.so")
    header = (ROOT / "runtime/cpp/include/ditedge.h").read_text()
    major, minor, patch = (
        int(re.search(rf"#define DITEDGE_VERSION_{part} (\d+)", header)[1]) for part in ("MAJOR", "MINOR", "PATCH")
    )
    project = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert library.ditedge_version().decode() == f"{major}.{minor}.{patch}" == project
    assert library.ditedge_version_number() == major * 10000 + minor * 100 + patch


def test_every_candidate_of_a_library_is_told_of(built: Path, golden_bundle, tmp_path: Path) -> None:
    """And libonnxruntime.so.1.NN, as distributions name it, is one."""
    (tmp_path / "libonnxruntime.so.1").write_text("no library")
    code = "from capi_ctypes import *\n"
    code += f"try: Ditedge(Path({str(built / 'libditedge.so')!r}), Path({str(golden_bundle('gray1_cfg'))!r}))\n"
    code += "except DitedgeError as e: print(e.status, e)"
    environment = {k: v for k, v in os.environ.items() if k != "DITEDGE_ONNXRUNTIME"}
    environment |= {"PYTHONPATH": str(ROOT / "examples"), "LD_LIBRARY_PATH": str(tmp_path)}
    command = [os.sys.executable, "-c", code]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"{ENGINE} ") and "libonnxruntime.so.1: " in said
    assert "there is no libonnxruntime.so," in said and "libonnxruntime.so.1.21" in said


def test_headers_of_a_later_library(built: Path, headers: Path, onnxruntime_library: Path, tmp_path: Path) -> None:
    """Compiled with them, it still runs on the library at hand: a device's is often older than a release's headers."""
    shutil.copytree(headers / "usr/include/onnxruntime", tmp_path / "onnxruntime")
    header = tmp_path / "onnxruntime" / "onnxruntime_c_api.h"
    later, count = re.subn(r"#define ORT_API_VERSION \d+", "#define ORT_API_VERSION 99", header.read_text())
    assert count == 1
    header.write_text(later)
    (tmp_path / "main.cpp").write_text(
        '#include "engine_ort.cpp"\n'
        "int main(int, char** argv) { return ditedge::library(argv[1]).version.empty() ? 1 : 0; }\n"
    )
    source = ROOT / "runtime/cpp"
    includes = [f"-I{tmp_path}", f"-I{source / 'src'}", f"-I{source / 'include'}", f"-isystem{built / 'shim/json'}"]
    rest = [source / "src" / name for name in ("processors.cpp", "shared_library.cpp")]
    subprocess.run(
        ["c++", "-std=c++17", *includes, tmp_path / "main.cpp", *rest, "-o", tmp_path / "main", "-pthread"], check=True
    )
    subprocess.run([tmp_path / "main", onnxruntime_library], check=True)


def test_a_library_by_its_minor_version(built: Path, golden_bundle, onnxruntime_library: Path, tmp_path: Path) -> None:
    (tmp_path / "libonnxruntime.so.1.30").symlink_to(onnxruntime_library)
    environment = {k: v for k, v in os.environ.items() if k != "DITEDGE_ONNXRUNTIME"}
    environment |= {"LD_LIBRARY_PATH": str(tmp_path)}
    command = [built / "ditedge-minimal", golden_bundle("gray1_cfg"), "3", "7", tmp_path / "a.pgm"]
    subprocess.run(command, env=environment, check=True)


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


@pytest.mark.parametrize(
    ("fields", "status", "complaint"),
    [
        ({"given": [11]}, REQUEST, "class 11"),
        ({"given": [-2]}, REQUEST, "class -2"),
        ({"program": b"nope"}, REQUEST, "no program 'nope'"),
        ({"program_file": b"/nonexistent"}, PROGRAM, "cannot read /nonexistent: No such file or directory"),
        ({"program_file": b"/"}, PROGRAM, "cannot read /: not a file"),
        ({"program": b"ddim-25", "program_file": b"x"}, ARGUMENT, "not both"),
        ({"guidance": float("inf")}, REQUEST, "finite"),
        ({"batch": 0}, ARGUMENT, "batch"),
        ({"count": 2**62}, ARGUMENT, "count"),
        ({"count": 0}, ARGUMENT, "count"),
        ({"step_noise": 8}, ARGUMENT, "initial_noise is not"),
        ({"size": 10_000}, ARGUMENT, "version"),
    ],
)
def test_bad_requests(opened, golden_bundle, fields: dict, status: int, complaint: str) -> None:
    fields = dict(fields)
    given = fields.pop("given", [1])
    with pytest.raises(DitedgeError, match=complaint) as caught:
        opened(golden_bundle("gray1_cfg")).generate(given, [1], **fields)
    assert caught.value.status == status


def test_an_older_callers_smaller_struct_is_left_alone(built: Path) -> None:
    library, raw = (
        load(built / "libditedge.so"),
        (ctypes.c_ubyte * ctypes.sizeof(Params))(*[0xAA] * ctypes.sizeof(Params)),
    )
    older = Params.guidance.offset + 8
    assert library.ditedge_params_init(ctypes.byref(raw), ctypes.c_size_t(older)) == 0
    assert int.from_bytes(bytes(raw)[:8], "little") == older
    assert set(bytes(raw)[older:]) == {0xAA}


def test_buffers_of_the_wrong_size_are_refused(opened, golden_bundle) -> None:
    handle, params = opened(golden_bundle("gray1_cfg")), Params()
    label, seed, image = np.array([1]), np.array([1], np.uint64), np.zeros(64, np.uint8)
    handle.c.ditedge_params_init(ctypes.byref(params), ctypes.c_size_t(ctypes.sizeof(params)))
    params.count, params.labels, params.seeds = 1, label.ctypes.data, seed.ctypes.data
    run = handle.c.ditedge_generate_images
    for size, status in ((63, ARGUMENT), (65, ARGUMENT), (0, ARGUMENT), (64, 0)):
        assert (
            run(handle.sampler, ctypes.byref(params), image.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(size))
            == status
        )


def open_status(library: ctypes.CDLL, folder: Path) -> tuple[int, str]:
    bundle = ctypes.c_void_p()
    status = library.ditedge_bundle_open(os.fsencode(folder), 1, ctypes.byref(bundle))
    assert (status == 0) == bool(bundle.value)
    library.ditedge_bundle_close(bundle)
    return status, library.ditedge_last_error().decode(errors="replace")


def edit(bundle: Path, **changes: object) -> None:
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"[1]", b"\xff\xfe", b'{"format": "ditedge-bundle"', b"[" * 100_000, b'{"a":' * 100_000, b"null", b"1e999",
        b'{"format": "ditedge-bundle", "version": 1}', b'{"format": 3}', b'{"format": "ditedge-bundle", "version": 1.5}',
        b'"' + b"x" * (17 << 20) + b'"',
    ],
)  # fmt: skip
def test_manifests_that_are_none(built: Path, gray_bundle: Path, text: bytes) -> None:
    (gray_bundle / "manifest.json").write_bytes(text)
    status, message = open_status(load(built / "libditedge.so"), gray_bundle)
    assert status == BUNDLE and "manifest.json" in message


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"version": 99}, "version"),
        ({"version": "1"}, "version"),
        ({"graphs": {}}, "graph 'conditioner' is missing"),
        ({"labels": ["one"]}, "1 labels for 10 classes"),
        ({"defaults": {"program": "nope", "guidance": 1.0}}, "default program 'nope'"),
        ({"programs": {"ddpm-50": "unlisted.json"}}, "unlisted.json"),
        ({"schedule": None}, "flow model"),
    ],
)
def test_manifests_that_contradict_themselves(built: Path, gray_bundle: Path, changes: dict, complaint: str) -> None:
    edit(gray_bundle, **changes)
    status, message = open_status(load(built / "libditedge.so"), gray_bundle)
    assert status == BUNDLE and complaint in message


@pytest.mark.parametrize("name", ["../secret.json", "/etc/passwd", "a/../../b", "..\\x", "x\0y", ".", ""])
def test_paths_may_not_leave_the_bundle(built: Path, gray_bundle: Path, name: str) -> None:
    files = json.loads((gray_bundle / "manifest.json").read_text())["files"]
    edit(gray_bundle, files=files | {name: {"sha256": "0" * 64, "bytes": 1}})
    status, message = open_status(load(built / "libditedge.so"), gray_bundle)
    assert status == BUNDLE and "leaves the bundle" in message


def test_classes_by_exact_name_then_number_then_name(built: Path, gray_bundle: Path) -> None:
    """As Python's Bundle.label, its sentences, too: a class may be called 1990."""
    names = ["boot", "1990", "Bag, Sack", "7", "BOOT", "x", "x", "4", "4", "c"]
    edit(gray_bundle, labels=names)
    library, handle, label = load(built / "libditedge.so"), ctypes.c_void_p(), ctypes.c_int64()
    assert library.ditedge_bundle_open(os.fsencode(gray_bundle), 1, ctypes.byref(handle)) == 0
    python = open_bundle(gray_bundle)

    def found(text: str) -> int | str:
        status = library.ditedge_find_class(handle, text.encode(), ctypes.byref(label))
        assert (status, label.value >= 0) in ((0, True), (REQUEST, False))
        return label.value if status == 0 else library.ditedge_last_error().decode()

    known = {"boot": 0, "BOOT": 4, "1990": 1, "7": 3, "5": 5, "4": 4, "0": 0, "sack": 2, " Bag, sack": 2, "C": 9}
    assert {text: found(text) for text in known} == known == {text: python.label(text) for text in known}
    for text in ("Boot", "x", "10", "1991", "9" * 30, "", " ", "-1", "1.5", "9 ", "\u0661", "b\u00f6\u00f6t"):
        with pytest.raises(RequestError) as caught:
            python.label(text)
        assert found(text) == str(caught.value), text
    library.ditedge_bundle_close(handle)
    edit(gray_bundle, labels=[])
    assert library.ditedge_bundle_open(os.fsencode(gray_bundle), 1, ctypes.byref(handle)) == 0
    assert found("9") == 9 and found("boot") == "class 'boot' is unknown: give a number, 0 to 9"
    library.ditedge_bundle_close(handle)


@pytest.mark.parametrize("letter", ["9", "\u00e9", "\u20ac", "\U0001f600"])
def test_a_long_text_hides_no_remedy(opened, golden_bundle, letter: str) -> None:
    """A message keeps both its ends and whole characters; what could command a terminal is shown as question marks."""
    handle = opened(golden_bundle("gray1_cfg"))
    for length in range(5000, 5005):
        with pytest.raises(DitedgeError, match=r"^no program '9*.* \.\.\. .*' in the bundle; it has ddim-") as caught:
            handle.generate([1], [1], program=b"9" * (length % 5) + letter.encode() * length)
        assert 990 <= len(handle.c.ditedge_last_error()) <= 1000
        assert handle.c.ditedge_last_error().decode() == str(caught.value)  # whole characters
    with pytest.raises(DitedgeError, match=r"^no program '\?\[31m\?\?2J\? \u00e9' in"):
        handle.generate([1], [1], program="\x1b[31m\x9b2J\x7f \u00e9".encode())


def test_damaged_missing_and_linked_files(built: Path, gray_bundle: Path, tmp_path: Path) -> None:
    library, step = load(built / "libditedge.so"), gray_bundle / "step.onnx"
    good = step.read_bytes()
    assert open_status(library, gray_bundle) == (0, "")
    step.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    assert "does not match its hash" in open_status(library, gray_bundle)[1]
    step.write_bytes(good[:-1])
    assert open_status(library, gray_bundle)[0] == BUNDLE
    step.unlink()
    assert "step.onnx is missing" in open_status(library, gray_bundle)[1]
    (tmp_path / "outside.onnx").write_bytes(good)
    step.symlink_to(tmp_path / "outside.onnx")
    assert "leaves the bundle" in open_status(library, gray_bundle)[1]
    assert open_status(library, tmp_path / "nowhere")[0] == BUNDLE


def properties() -> list[tuple[str, ...]]:
    """Every property of the published schema, as a path into a manifest."""
    schema = json.loads((ROOT / "docs" / "manifest.schema.json").read_text())
    places = {"ModelInfo": ("model",), "ScheduleInfo": ("schedule",), "VaeInfo": ("vae",), "PreviewInfo": ("preview",)}
    places |= {"DefaultsInfo": ("defaults",), "GoldenInfo": ("golden", "0"), "GraphInfo": ("graphs", "step")}
    places |= {"FileInfo": ("files", "step.onnx"), "TensorInfo": ("graphs", "step", "inputs", "0")}
    places["QuantizationInfo"] = ("quantization",)
    assert set(places) >= set(schema["$defs"]), "a new object in the manifest: teach it to runtime/cpp/src/bundle.cpp"
    found = [(name,) for name in schema["properties"]]
    return found + [
        (*place, name)
        for kind, place in places.items()
        if kind in schema["$defs"]
        for name in schema["$defs"][kind]["properties"]
    ]


@pytest.mark.parametrize("path", properties(), ids="/".join)
def test_every_property_of_the_schema_is_checked(built: Path, gray_bundle: Path, path: tuple[str, ...]) -> None:
    """A value of a type that no property has is refused: so the C++ code knows the property, and cannot drift."""
    manifest = json.loads((gray_bundle / "manifest.json").read_text())
    manifest["vae"] = {"kind": "kl", "source_sha256": "0" * 64, "precision": "float32"}
    manifest["vae"] |= {"scaling_factor": 1.0, "shift_factor": 0.0}
    manifest["preview"] = {"weight": [[1.0]], "bias": [0.0], "scale": 1}
    manifest["quantization"] = {"precision": "int8", "form": "onnxruntime", "weights": "per-channel"}
    manifest["quantization"] |= {"activations": "per-token", "smoothing": None, "kept": [], "conditioner": "int8"}
    manifest["quantization"] |= {"source_bundle": "0" * 64, "calibration": None}
    library = load(built / "libditedge.so")
    edit(gray_bundle, **manifest)
    assert open_status(library, gray_bundle) == (0, "")
    place = manifest
    for key in path[:-1]:
        place = place[int(key)] if isinstance(place, list) else place[key]
    place[path[-1]] = [[{"no": "such type"}]]
    edit(gray_bundle, **manifest)
    assert open_status(library, gray_bundle)[0] == BUNDLE


def test_unknown_fields_are_ignored(built: Path, gray_bundle: Path) -> None:
    """A device reads bundles of later releases as long as their version says that it can."""
    manifest = json.loads((gray_bundle / "manifest.json").read_text())
    manifest["graphs"]["step"]["surprise"] = "int8"
    edit(gray_bundle, **manifest, surprise={"deep": [1]})
    assert open_status(load(built / "libditedge.so"), gray_bundle) == (0, "")


def test_a_graph_that_is_not_what_the_manifest_says(opened, gray_bundle: Path) -> None:
    """Buffers are bound by address: a session with other tensors must be refused before anything is bound."""
    manifest = json.loads((gray_bundle / "manifest.json").read_text())
    raw = (gray_bundle / "conditioner.onnx").read_bytes()
    (gray_bundle / "step.onnx").write_bytes(raw)
    manifest["files"]["step.onnx"] = {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    edit(gray_bundle, **manifest)
    with pytest.raises(DitedgeError, match="manifest describes") as caught:
        opened(gray_bundle)
    assert caught.value.status == BUNDLE  # before an engine takes memory for it


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"version": 2}, "version"),
        ({"timestep": []}, "timestep"),
        ({"mix": [[[1.0]]]}, "mix"),
        ({"mix": 1e400}, "JSON"),
        ({"guided": [1]}, "guided"),
        ({"x0_bound": -1}, "x0_bound"),
        ({"x0_from": None}, "x0_from"),
        ({"init_scale": "1"}, "init_scale"),
    ],
)
def test_bad_programs(opened, gray_bundle: Path, tmp_path: Path, changes: dict, complaint: str) -> None:
    program = json.loads((gray_bundle / "programs" / "ddim-25.json").read_text()) | changes
    (tmp_path / "p.json").write_text(json.dumps(program).replace("Infinity", "1e400"))
    with pytest.raises(DitedgeError, match=complaint) as caught:
        opened(gray_bundle).generate([1], [1], program_file=str(tmp_path / "p.json").encode())
    assert caught.value.status == PROGRAM


def test_a_library_that_is_not_there(built: Path, golden_bundle) -> None:
    for path, complaint in (("/nonexistent.so", "not to be found"), ("libm.so.6", "OrtGetApiBase")):
        code = f"import sys; sys.path.insert(0, {str(ROOT / 'examples')!r}); from capi_ctypes import *\n"
        code += f"try: Ditedge(Path({str(built / 'libditedge.so')!r}), Path({str(golden_bundle('gray1_cfg'))!r}), Path({path!r}))\n"
        code += "except DitedgeError as e: print(e.status, e)"
        out = subprocess.run([os.sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert out.startswith(f"{ENGINE} ") and complaint in out


def test_examples(built: Path, golden_bundle, onnxruntime_library: Path, tmp_path: Path) -> None:
    """The command line, the C program and the benchmark make what Python makes."""
    folder = golden_bundle("gray1_cfg", labels=True)
    environment = os.environ | {"DITEDGE_ONNXRUNTIME": str(onnxruntime_library)}

    def run(*command: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True)

    expected = generate(open_bundle(folder), [8, 9], [7, 8])
    png = run(
        built / "ditedge-run", "--bundle", folder, "--class", "Bag;ankle boot", "--seed", 7, "-o", tmp_path / "a.png"
    )
    assert png.returncode == 0 and "step 20/20" in png.stderr, png.stderr
    assert np.mean(np.array(Image.open(tmp_path / "a.png")) == expected[..., 0].reshape(16, 8)) >= 0.999
    c = run(built / "ditedge-minimal", folder, "Bag", 7, tmp_path / "a.pgm")
    assert c.returncode == 0, c.stderr
    assert np.abs(np.array(Image.open(tmp_path / "a.pgm")).astype(int) - expected[0, ..., 0]).max() <= 1
    assert run(built / "ditedge-minimal", folder, "Nothing", 7, tmp_path / "b.pgm").returncode == 1
    bench = json.loads(run(built / "ditedge-bench", "--bundle", folder, "--program", "ddim-25", "--repeats", 2).stdout)
    assert bench["ms_per_step"] > 0 and bench["peak_mib"] > 1
    for example in ("ditedge-run", "ditedge-bench"):
        helped = run(built / example, "--help")
        assert helped.returncode == 0 and "example" in helped.stdout
    assert run(built / "ditedge-minimal", folder, "Bag", "-7", tmp_path / "b.pgm").returncode == 1


# What ditedge-run is given beside a bundle and class 1, and how its sentence begins.
WRONG_ARGUMENTS = [
    (["--seed"], "--seed needs a value"),
    (["--what", "1"], "unknown option --what"),
    (["--\033]0;x\007"], "unknown option --?]0;x?"),
    (["--class", "2"], "--class is given twice"),
    (["--threads", "99999999999"], "--threads 99999999999 is more than 2147483647"),
    (["--threads", "-1"], "--threads -1 is not a whole number"),
    (["--threads", "2x"], "--threads 2x is not a whole number"),
    (["--threads", ""], "--threads needs a value"),
    (["--device", "2147483648"], "--device 2147483648 is more than"),
    (["--batch", "99999999999"], "--batch 99999999999 is more than 4096"),
    (["--batch", "0"], "batch is not between 1 and 4096"),
    (["--seed", "18446744073709551616"], "--seed 18446744073709551616 is more than 18446744073709551615"),
    (["--seed", "9" * 5000], "--seed 999"),
    (["--seed", " -1"], "--seed  -1 is not a whole number"),
    (["--guidance", "nan"], "--guidance nan is not a finite number"),
    (["--guidance", "1e999"], "--guidance 1e999 is not a finite number"),
    (["--guidance", "1e300"], "guidance 1e+300 is not a finite number in float32"),
    (["--program", "nope"], "no program 'nope' in the bundle; it has "),
    (["--program-file", "/nowhere"], "cannot read /nowhere: No such file or directory"),
    (["-o", "/nowhere/a.png"], "cannot write /nowhere/a.png: No such file"),
    (["-o", "/"], "cannot write /: Is a directory"),
    (["--latents", "/etc/passwd/a"], "cannot write /etc/passwd/a: Not a directory"),
    (["-o", "/dev/full"], "cannot write /dev/full: No space left"),
]


def test_wrong_arguments(built: Path, golden_bundle, onnxruntime_library: Path) -> None:
    """One sentence and exit code 2; nothing that was typed commands the terminal."""
    bundle = ["--bundle", golden_bundle("gray1_cfg", labels=True)]
    cases = [([*bundle, "--class", "1", *arguments], words) for arguments, words in WRONG_ARGUMENTS]
    cases += [
        (bundle, "--bundle and --class are needed"),
        (["--bundle", "/no", "--class", "1"], "/no is not a bundle: No such"),
    ]
    cases.append(([*bundle, "--class", "1;2", "--seed", "18446744073709551615"], "--seed is too large: image i has"))
    for arguments, words in cases:
        command = [built / "ditedge-run", *map(str, arguments)]
        environment = os.environ | {"DITEDGE_ONNXRUNTIME": str(onnxruntime_library)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 2 and f"error: {words}" in done.stderr, (arguments, done.stderr)
        assert "step 1/" not in done.stderr or "full" in words, arguments  # before the sampling
        assert not re.search(r"[\0-\x09\x0b\x0c\x0e-\x1f\x7f]", done.stderr), arguments


def test_programs_as_files_and_where_pictures_go(
    built: Path, golden_bundle, onnxruntime_library: Path, tmp_path: Path
) -> None:
    """A program's file gives what its name does; no link is followed, no device replaced, no file of others touched."""
    folder = golden_bundle("gray1_cfg")
    environment = os.environ | {"DITEDGE_ONNXRUNTIME": str(onnxruntime_library)}

    def latents(*arguments: object) -> bytes:
        command = [built / "ditedge-run", "--bundle", folder, "--class", "1", "--latents", tmp_path / "l", *arguments]
        subprocess.run([*map(str, command)], env=environment, check=True, capture_output=True)
        return (tmp_path / "l").read_bytes()

    named = latents("--program", "ddim-25")
    assert latents("--program-file", folder / "programs" / "ddim-25.json") == named
    (tmp_path / "l").unlink()
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "l.part").symlink_to(tmp_path / "mine")
    assert latents("--program", "ddim-25") == named
    assert (tmp_path / "mine").read_text() == "mine" and (tmp_path / "l.part").is_symlink()
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "l").stat().st_mode & 0o777 == 0o666 & ~mask
    assert {path.name for path in tmp_path.iterdir()} == {"l", "l.part", "mine"}
    (tmp_path / "l").unlink()
    (tmp_path / "l").symlink_to(tmp_path / "mine")  # a link that was given is kept, and what it names is written
    assert latents("--program", "ddim-25") == named == (tmp_path / "mine").read_bytes()
    assert (tmp_path / "l").is_symlink()
    os.mkfifo(tmp_path / "pipe")
    command = [built / "ditedge-run", "--bundle", folder, "--class", "1", "--program", "ddim-25"]
    for relative in ("new", "./new", "../" + tmp_path.name + "/new", "l"):
        subprocess.run(
            [*command, "--latents", relative], cwd=tmp_path, env=environment, check=True, capture_output=True
        )
        assert (tmp_path / relative).read_bytes() == named
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE) as reader:
        subprocess.run([*command, "--latents", tmp_path / "pipe"], env=environment, check=True, capture_output=True)
        assert reader.communicate()[0] == named


def test_the_header_is_c90(headers: Path, tmp_path: Path) -> None:
    (tmp_path / "h.c").write_text("#include <ditedge.h>\nint main(void) { ditedge_params p; return p.size == 0; }\n")
    strict = ["-std=c90", "-pedantic-errors", "-Wall", "-Wextra", "-Werror", "-Wno-uninitialized", "-fsyntax-only"]
    subprocess.run(["cc", *strict, f"-I{ROOT / 'runtime/cpp/include'}", tmp_path / "h.c"], check=True)


def test_size_and_symbols(built: Path, tmp_path: Path) -> None:
    stripped = tmp_path / "libditedge.so"
    subprocess.run(["strip", "-o", stripped, built / "libditedge.so"], check=True)
    assert stripped.stat().st_size < 1_500_000
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", stripped], capture_output=True, text=True, check=True
    ).stdout
    names = [line.split()[-1] for line in symbols.splitlines() if line.split()[-2] == "T"]
    assert names and all(name.startswith("ditedge_") for name in names)
    sources = [*(ROOT / "runtime/cpp/src").iterdir(), *(ROOT / "runtime/cpp/include").iterdir()]
    lines = [line.strip() for source in sources for line in source.read_text().splitlines()]
    comment = ("//", "/*", "* ", "*/")
    assert sum(bool(line) and not line.startswith(comment) for line in lines) < 3700  # lines of code


def damaged(text: str, count: int) -> Iterator[str]:
    """A JSON text cut short, or with one value replaced."""
    chooser = random.Random(7)
    values = ["-1", "0", "1e308", '"x"', "null", "[]", "{}", "9223372036854775807", "18446744073709551615", "[[[[]]]]"]
    for i in range(count):
        position = chooser.randrange(len(text))
        if i % 3 == 0:
            yield text[:position]
        else:
            yield text[:position] + chooser.choice(values) + text[position + chooser.randrange(4) :]


@pytest.fixture(scope="module")
def hostile_folders(golden_bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles with a damaged manifest: each is opened and sampled from."""
    root, whole = tmp_path_factory.mktemp("hostile"), golden_bundle("gray1_cfg")
    for i, text in enumerate(damaged((whole / "manifest.json").read_text(), 60)):
        folder = Path(shutil.copytree(whole, root / f"{i:03d}"))
        (folder / "manifest.json").write_text(text)
    return root


def hostile_records(bundle: Path, root: Path) -> list[Path]:
    """Bundles with a damaged record of their plans."""
    folders = []
    for i, text in enumerate(damaged((bundle / "engines" / "tensorrt" / "build.json").read_text(), 40)):
        folders.append(Path(shutil.copytree(bundle, root / f"{i:03d}")))
        (folders[-1] / "engines" / "tensorrt" / "build.json").write_text(text)
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_sanitizers(
    build,
    with_plans,
    request: pytest.FixtureRequest,
    golden_bundle,
    hostile_folders: Path,
    onnxruntime_library: Path,
    tmp_path: Path,
    sanitizer: str,
    engine: str,
) -> None:
    """Two handles in two threads, cancel from a third, hostile bundles: the sanitizer aborts on its first finding.

    Plans run on the double of CUDA and TensorRT, which is instrumented as well; their hostile input is the build record.

    ONNX Runtime is not instrumented: one thread in it, so that ThreadSanitizer sees every lock that matters.
    """
    name = f"cpp-{sanitizer.split(',')[0]}"
    folder = build(
        name,
        *with_plans,
        f"-DDITEDGE_SANITIZE={sanitizer}",
        "-DDITEDGE_EXAMPLES=OFF",
        "-DBUILD_SHARED_LIBS=OFF",
        "-DCMAKE_BUILD_TYPE=Debug",
        "-DDITEDGE_WERROR=OFF",
    )
    environment = os.environ | {"DITEDGE_ONNXRUNTIME": str(onnxruntime_library), "ASAN_OPTIONS": "detect_leaks=1"}
    hostile = sorted(hostile_folders.iterdir()) if sanitizer != "thread" else []
    bundle, library = golden_bundle("gray1_cfg"), onnxruntime_library
    if engine == "tensorrt":
        library = folder / "libditedge-gpu-double.so"
        environment["DITEDGE_CUDART"] = str(library)
        bundle = with_cpp_plans(
            Path(shutil.copytree(bundle, tmp_path / "plans")), request.getfixturevalue("tensorrt_version")
        )
        hostile = hostile_records(bundle, tmp_path) if hostile else []
    done = subprocess.run(
        [folder / "ditedge-stress", bundle, engine, library, *hostile],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "cancelled" in done.stdout
    if engine == "onnxruntime":
        assert done.stdout.count("refused") + done.stdout.count("opened") == len(hostile)
    else:
        assert done.stdout.count("opened") == len(hostile) and (sanitizer == "thread" or "refused" in done.stdout)


@pytest.mark.slow
def test_installed_package(build, golden_bundle, onnxruntime_library: Path, tmp_path: Path) -> None:
    """find_package and pkg-config from an installed tree, shared and static; .deb and .tar.gz."""
    program = ROOT / "runtime" / "cpp" / "examples" / "minimal.c"
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(app LANGUAGES C CXX)\nfind_package(ditedge 0.1 REQUIRED)\n"
        f"add_executable(app {program})\ntarget_link_libraries(app PRIVATE ditedge::ditedge)\n"
        "set_target_properties(app PROPERTIES LINKER_LANGUAGE CXX)\n"
    )
    environment = os.environ | {"DITEDGE_ONNXRUNTIME": str(onnxruntime_library)}
    for kind, shared in (("shared", "ON"), ("static", "OFF")):
        prefix, app = tmp_path / kind, tmp_path / f"app-{kind}"
        folder = build(f"cpp-package-{kind}", f"-DBUILD_SHARED_LIBS={shared}")
        subprocess.run(["cmake", "--install", folder, "--prefix", prefix], check=True, capture_output=True)
        made = ["cmake", "-S", tmp_path / "app", "-B", app, f"-DCMAKE_PREFIX_PATH={prefix}"]
        subprocess.run(made, check=True, capture_output=True)
        subprocess.run(["cmake", "--build", app], check=True, capture_output=True)
        picture = tmp_path / f"{kind}.pgm"
        subprocess.run([app / "app", golden_bundle("gray1_cfg"), "3", "7", picture], env=environment, check=True)
        with Image.open(picture) as image:
            assert image.size == (8, 8)
        if shutil.which("pkg-config"):  # the same program by the other way in
            (found,) = prefix.rglob("ditedge.pc")
            search = os.environ | {"PKG_CONFIG_PATH": str(found.parent)}
            ask = ["pkg-config", "--cflags", "--libs", "ditedge"]
            flags = subprocess.run(ask, env=search, capture_output=True, text=True, check=True).stdout.split()
            run_path = f"-Wl,-rpath,{found.parents[1]}"
            subprocess.run(["cc", program, "-o", tmp_path / kind / "by-pc", *flags, run_path], check=True)
            other = tmp_path / f"{kind}-pc.pgm"
            subprocess.run([prefix / "by-pc", golden_bundle("gray1_cfg"), "3", "7", other], env=environment, check=True)
            assert other.read_bytes() == picture.read_bytes()
    assert (tmp_path / "shared.pgm").read_bytes() == (tmp_path / "static.pgm").read_bytes()
    packages, unpacked = tmp_path / "packages", tmp_path / "unpacked"
    subprocess.run(["cpack", "-B", packages], cwd=ROOT / "build/cpp-package-shared", check=True, capture_output=True)
    (archive,) = packages.glob("ditedge-0.1.0-*.tar.gz")
    with tarfile.open(archive) as files:
        names = {Path(name).name for name in files.getnames()}
        files.extractall(tmp_path / "archive")
    assert {"copyright", "third-party-licenses.txt", "ditedge.h", "ditedge-run"} <= names
    if shutil.which("dpkg-deb"):
        (deb,) = packages.glob("ditedge_0.1.0_*.deb")
        subprocess.run(["dpkg-deb", "-x", deb, unpacked], check=True)
        for name, words in (
            ("copyright", "Apache License"),
            ("third-party-licenses.txt", "Permission is hereby granted"),
            ("third-party-licenses.txt", "ONNX Runtime: Copyright (c) Microsoft Corporation"),
        ):
            for folder in (unpacked, tmp_path / "shared", tmp_path / "static", tmp_path / "archive"):
                (text,) = folder.rglob(name)
                assert words in text.read_text()
        assert list(unpacked.rglob("ditedge.h")) and list(unpacked.rglob("ditedge-config.cmake"))
        (command,) = unpacked.rglob("ditedge-run")
        picture = tmp_path / "deb.png"
        request = ["--bundle", golden_bundle("gray1_cfg"), "--class", "3", "--seed", "7", "-o", picture]
        subprocess.run([command, *request], env=environment, check=True, capture_output=True)  # finds its library
        with Image.open(picture) as image, Image.open(tmp_path / "shared.pgm") as same:
            assert np.array_equal(np.array(image), np.array(same))


def test_the_program_in_the_documentation(
    built: Path, golden_bundle, onnxruntime_library: Path, tmp_path: Path
) -> None:
    text = (ROOT / "docs" / "embedding.md").read_text()
    program = text.split("```cpp\n")[1].split("```")[0]
    (tmp_path / "application.cpp").write_text(textwrap.dedent(program))
    flags = ["-std=c++17", f"-I{ROOT / 'runtime/cpp/include'}", f"-L{built}", f"-Wl,-rpath,{built}", "-lditedge"]
    subprocess.run(["c++", "application.cpp", "-o", "application", *flags], cwd=tmp_path, check=True)
    (tmp_path / "build" / "demo").mkdir(parents=True)
    (tmp_path / "build" / "demo" / "fashion").symlink_to(golden_bundle("gray1_cfg", labels=True))
    environment = os.environ | {"DITEDGE_ONNXRUNTIME": str(onnxruntime_library)}
    subprocess.run(["./application"], cwd=tmp_path, env=environment, check=True)
