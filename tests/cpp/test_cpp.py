"""libditedge against the Python runtime, through the C interface by ctypes: latents, pictures, refusals, cancel."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import random
import shutil
import subprocess
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from capi_ctypes import Ditedge, DitedgeError, Params, load
from PIL import Image
from safetensors.numpy import load_file

from ditedge.runtime import generate, open_bundle
from ditedge.runtime.noise import standard_normal
from ditedge.runtime.programs import Program, write_program
from ditedge.runtime.sampler import GivenNoise
from ditedge.runtime.verify import relative_error
from tests.conftest import GOLDEN, golden_case
from tests.cpp.plan_text import with_cpp_plans

ROOT = Path(__file__).resolve().parents[2]
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


@pytest.fixture
def opened(built: Path, onnxruntime_library: Path):
    handles: list[Ditedge] = []

    def make(bundle: Path) -> Ditedge:
        handles.append(Ditedge(built / "libditedge.so", bundle, onnxruntime_library, threads=2))
        return handles[-1]

    yield make
    for handle in handles:
        handle.close()


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
    assert relative_error(mine, recorded["x"][-1]) < TOLERANCE  # PyTorch's: as tests/export/test_golden.py


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
    with pytest.raises(DitedgeError, match="stopped before step") as caught:
        handle.generate([1] * 400, range(400), images=False, batch=1, on_progress=lambda _: started.set())
    thread.join()
    assert caught.value.status == CANCELLED
    with pytest.raises(DitedgeError):  # the flag stays until it is reset
        handle.generate([1], [1], program=b"ddim-25")
    handle.c.ditedge_cancel_reset(handle.sampler)
    assert handle.generate([1], [1], program=b"ddim-25").shape == (1, 8, 8, 1)


@pytest.mark.parametrize(
    ("fields", "status", "complaint"),
    [
        ({"given": [11]}, REQUEST, "class 11"),
        ({"given": [-2]}, REQUEST, "class -2"),
        ({"program": b"nope"}, REQUEST, "no program 'nope'"),
        ({"program_file": b"/nonexistent"}, PROGRAM, "cannot read"),
        ({"program": b"ddim-25", "program_file": b"x"}, ARGUMENT, "not both"),
        ({"guidance": float("inf")}, REQUEST, "finite"),
        ({"batch": 0}, ARGUMENT, "batch"),
        ({"count": 2**62}, ARGUMENT, "count"),
        ({"count": 0}, ARGUMENT, "count"),
        ({"initial_noise": 8}, ARGUMENT, "both kinds"),
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
    for wrong in (["--bundle", folder], ["--seed"], ["--bundle", "/nowhere", "--class", "1"], ["--what", "1"]):
        failed = run(built / "ditedge-run", *wrong)
        assert failed.returncode == 2 and failed.stderr


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
    assert sum(bool(line) and not line.startswith(comment) for line in lines) < 3500  # lines of code


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
    assert list(packages.glob("ditedge-0.1.0-*.tar.gz"))
    if shutil.which("dpkg-deb"):
        (deb,) = packages.glob("ditedge_0.1.0_*.deb")
        subprocess.run(["dpkg-deb", "-x", deb, unpacked], check=True)
        (library,) = unpacked.rglob("libditedge.so.0")
        assert list(unpacked.rglob("ditedge.h")) and list(unpacked.rglob("ditedge-config.cmake"))
        (command,) = unpacked.rglob("ditedge-run")
        picture = tmp_path / "deb.png"
        request = ["--bundle", golden_bundle("gray1_cfg"), "--class", "3", "--seed", "7", "-o", picture]
        found = {"LD_LIBRARY_PATH": str(library.parent)}
        subprocess.run([command, *request], env=environment | found, check=True, capture_output=True)
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
