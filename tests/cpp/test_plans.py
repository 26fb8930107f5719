"""libditedge's engine for plans, as it is shipped, over a double of libcudart and libnvinfer (gpu_double.cpp)."""

from __future__ import annotations

import ctypes
import hashlib
import json
import shlex
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from capi_ctypes import Ditedge, DitedgeError
from safetensors.numpy import load_file

from ditedge.runtime import generate, open_bundle
from ditedge.runtime.bundle.open import Bundle
from ditedge.runtime.loop.verify import relative_error
from ditedge.runtime.samplers.program import write_program
from ditedge.runtime.signing import new_key_pair, sign_bundle
from tests.conftest import GOLDEN, ROOT
from tests.cpp.plan_text import with_cpp_plans
from tests.cpp.test_cpp import BUNDLE, CANCELLED, ENGINE, LOOPS, NO_DEVICE, REQUEST, TOLERANCE, program_of
from tests.cpp.test_guards import check_one_bad_image

LABELS, SEEDS = [3, 1, 3, 9, 0], [11, 12, 13, 14, 15]


class Double:
    """The double's controls. Everything that it found wrong is asserted to be nothing at the end of a test."""

    def __init__(self, path: Path) -> None:
        self.path, self.c = path, ctypes.CDLL(str(path))

    def reset(self, devices: int = 1, version: int = 0, fail_after: int = -1) -> None:
        self.c.double_reset(devices, version, fail_after)

    @property
    def report(self) -> dict:
        text = ctypes.create_string_buffer(10_000)
        assert self.c.double_report(text, ctypes.c_size_t(len(text))) < len(text)
        return json.loads(text.value)


@pytest.fixture
def double(built: Path, gpu_headers, onnxruntime_library: Path, monkeypatch: pytest.MonkeyPatch):
    path = built / "libditedge-gpu-double.so"
    monkeypatch.setenv("DITEDGE_CUDART", str(path))
    monkeypatch.setenv("DITEDGE_ONNXRUNTIME", str(onnxruntime_library))
    double = Double(path)
    double.reset()
    yield double
    report = double.report
    assert report["broken"] == ""
    assert [report[kind] for kind in ("live", "graphs", "events", "streams")] == [0, 0, 0, 0], (
        "not everything was freed"
    )


@pytest.fixture(scope="session")
def plan_bundle(golden_bundle, tensorrt_version: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """plan_bundle(case, prediction, **sizes of write_plans) -> a bundle with engines/tensorrt/."""
    root = tmp_path_factory.mktemp("cpp-plans")

    def make(case: str, prediction: str = "epsilon", **sizes: int) -> Path:
        out = root / "-".join([case, prediction, *(f"{k}{v}" for k, v in sizes.items())])
        if not out.exists():
            shutil.copytree(golden_bundle(case, prediction), out)
            with_cpp_plans(out, tensorrt_version, **sizes)
        return out

    return make


@pytest.fixture
def opened(built: Path, double: Double):
    handles: list[Ditedge] = []

    def make(bundle: Path, library: Path | None = None, **options: object) -> Ditedge:
        library = library or built / "libditedge.so"
        handles.append(Ditedge(library, bundle, double.path, **{"engine": b"tensorrt", **options}))
        return handles[-1]

    yield make
    for handle in handles:
        handle.close()


def by_python(bundle: Bundle) -> np.ndarray:
    """What a C++ run of "ddim-25" with LABELS and SEEDS should give."""
    return generate(bundle, LABELS, SEEDS, program=bundle.program("ddim-25"), output="latents")


def replay(handle: Ditedge, case: str, loop: dict, program: Path, **fields: object) -> float:
    """A recorded trajectory's final latents -> relative error against PyTorch's."""
    recorded = load_file(GOLDEN / case / f"{loop['name']}.safetensors")
    labels = recorded["y"].tolist()
    fields = {"guidance": loop["cfg"] or 1.0, "program_file": str(program).encode(), "batch": len(labels)} | fields
    mine = handle.generate(labels, [0] * len(labels), images=False, noise=(recorded["z"], recorded["noise"]), **fields)
    return relative_error(mine, recorded["x"][-1])


@pytest.mark.parametrize(("case", "loop"), LOOPS, ids=[f"{case}-{loop['name']}" for case, loop in LOOPS])
def test_recorded_trajectories(opened, double: Double, plan_bundle, tmp_path: Path, case: str, loop: dict) -> None:
    """Four steps a graph, one step a graph with a callback, and replayed graphs: PyTorch's latents each time."""
    folder = plan_bundle(case, "x0" if loop.get("predict_xstart") else "epsilon")
    program, done = program_of(folder, loop), []
    write_program(program, tmp_path / "p.json")
    handle = opened(folder)
    assert replay(handle, case, loop, tmp_path / "p.json") < TOLERANCE
    captured = double.report["counts"]["capture"]
    assert captured == -(-program.steps // 4)
    assert replay(handle, case, loop, tmp_path / "p.json") < TOLERANCE
    assert double.report["counts"]["capture"] == captured, "a shape is captured once"
    assert replay(handle, case, loop, tmp_path / "p.json", on_progress=lambda p: done.append(p.done)) < TOLERANCE
    assert done == list(range(1, program.steps + 1))
    assert double.report["longest_queue"] > 8, "work was enqueued ahead of the host"


def test_seeded_pictures_equal_pythons(opened, double: Double, plan_bundle) -> None:
    """Batches, a smaller last one, other labels, guidance and seeds on the same graphs, classes to guide away from."""
    folder = plan_bundle("gray1_cfg")
    bundle, handle = open_bundle(folder), opened(folder)
    for program, fields in (
        ("ddpm-50", {}),
        ("ddpm-50", {"batch": 2}),
        ("ddim-25", {"guidance": 1.0}),
        ("ddim-25", {"guidance": 2.5, "away_from": [4, -1, 0, 2, -1]}),
    ):
        settings = fields | {"program": bundle.program(program)}
        if "away_from" in fields:
            settings["away_from"] = [None if label < 0 else label for label in fields["away_from"]]
        mine = handle.generate(LABELS, SEEDS, images=False, program=program.encode(), **fields)
        assert relative_error(mine, generate(bundle, LABELS, SEEDS, output="latents", **settings)) < TOLERANCE
        images = handle.generate(LABELS, SEEDS, program=program.encode(), **fields)
        assert np.mean(images == generate(bundle, LABELS, SEEDS, **settings)) >= 0.999
        again = handle.generate(LABELS, SEEDS, program=program.encode(), **fields)
        assert np.array_equal(images, again), "same seed, same image"


def test_previews_decode_while_steps_are_enqueued(
    opened, plan_bundle, golden_bundle, built, onnxruntime_library
) -> None:
    folder = plan_bundle("gray1_cfg")
    shown: dict[str, list[np.ndarray]] = {"plans": [], "onnxruntime": []}
    host = Ditedge(built / "libditedge.so", folder, onnxruntime_library, threads=1)
    for name, handle in (("plans", opened(folder)), ("onnxruntime", host)):
        handle.generate(
            LABELS, SEEDS, program=b"ddim-25", preview_every=3, batch=3,
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
    assert counts["step"] == 25 + 1  # one more to warm up
    assert counts["conditioner"] == -(-25 // (rows // distinct)) + 1


def test_samplers_without_noise_upload_none(opened, double: Double, plan_bundle) -> None:
    opened(plan_bundle("gray1_cfg")).generate(LABELS, SEEDS, images=False, program=b"ddim-25")
    assert double.report["counts"]["copy"] == 3  # tables, initial state, result


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
        live.append((double.report["live"], double.report["graphs"]))
    assert len(set(live[1:])) == 1


def test_bundles_without_a_decoder(opened, plan_bundle) -> None:
    handle = opened(plan_bundle("latent4_learned_sigma"))
    assert handle.generate([1], [1], images=False, program=b"ddim-25").shape == (1, 4, 8, 8)
    with pytest.raises(DitedgeError, match="no decoder"):
        handle.generate([1], [1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def record_with(**changes: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "build.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def plan_with(graph: str, **changes: object) -> Callable[[Path], None]:
    """Another plan with a record that is true of it."""

    def spoil(folder: Path) -> None:
        record = json.loads((folder / "build.json").read_text())
        path = folder / record["plans"][graph]["file"]
        path.write_bytes(json.dumps(json.loads(path.read_text()) | changes).encode())
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        record["plans"][graph]["plan"] = {"sha256": digest, "bytes": path.stat().st_size}
        (folder / "build.json").write_text(json.dumps(record))

    return spoil


def tensors_without_the_output(folder: Path) -> None:
    plan = json.loads((folder / "conditioner.plan").read_text())
    plan_with("step", info=plan["info"], onnx=plan["onnx"])(folder)


REFUSALS = {
    "no device": (NO_DEVICE, "no CUDA device", {"devices": 0}, None),
    "no device and another version": (NO_DEVICE, "no CUDA device", {"devices": 0, "major": 99}, None),
    "another major": (ENGINE, r"TensorRT 99\.0 .*gpu-double.* headers of version \d+: compile it", {"major": 99}, None),
    "another minor is fine": (0, "", {"minor": 2}, None),
    "no plans": (ENGINE, "has no plans for tensorrt.*ditedge build --engine", {}, lambda f: (f / "build.json").unlink()),
    "record cut short": (BUNDLE, "not valid JSON", {}, lambda f: (f / "build.json").write_text('{"format":')),
    "record of a later version": (BUNDLE, "version", {}, record_with(version=2)),
    "not a record": (BUNDLE, "format", {}, record_with(format="other")),
    "other library": (BUNDLE, "built with tensorrt-rtx", {}, record_with(library="tensorrt-rtx")),
    "built by another major": (ENGINE, ": built with version 98.1", {}, record_with(library_version="98.1.0")),
    "other gpu": (ENGINE, "other GPUs .* sm86", {}, record_with(compute_capabilities=["sm120"])),
    "other bundle": (BUNDLE, "another version of this bundle", {}, record_with(bundle_sha256="0" * 64)),
    "without weights": (ENGINE, "without weights", {}, record_with(flags=["STRIP_PLAN"])),
    "a plan's hash": (BUNDLE, "dit.plan: does not match its hash", {}, lambda f: flip(f / "dit.plan")),
    "a plan is missing": (BUNDLE, "cannot read .*conditioner.plan", {}, lambda f: (f / "conditioner.plan").unlink()),
    "an empty plan": (BUNDLE, "decoder.plan: does not match its hash", {}, lambda f: (f / "decoder.plan").write_bytes(b"")),
    "a plan TensorRT refuses": (ENGINE, "dit.plan cannot be loaded.*nowhere", {}, plan_with("step", onnx="/nowhere")),
    "other tensors": (ENGINE, "has a tensor 'timestep' that is not the manifest's", {}, tensors_without_the_output),
    "host code": (0, "", {}, lambda f: (plan_with("step", **{"host code": True})(f), record_with(flags=["VERSION_COMPATIBLE"])(f))),
    "host code that nobody announced": (ENGINE, "host code is not allowed", {}, plan_with("step", **{"host code": True})),
    "no memory for a run": (ENGINE, "cudaMalloc(Host)? failed with .*: use a smaller batch", {"fail_after": 8}, None),
    "no memory": (ENGINE, "cudaMalloc(Host)? failed with cudaErrorMemoryAllocation: use a smaller batch", {"fail_after": 2}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(opened, double: Double, plan_bundle, tensorrt_version: str, tmp_path: Path, name: str) -> None:
    """One sentence and a status each, and the double would abort if a runtime were made without a device."""
    status, complaint, machine, spoil = REFUSALS[name]
    folder = Path(shutil.copytree(plan_bundle("gray1_cfg"), tmp_path / "b"))
    major = machine.get("major", int(tensorrt_version.split(".")[0]))
    version = major * 10_000 + 100 * machine.get("minor", 0)
    double.reset(machine.get("devices", 1), version, machine.get("fail_after", -1))
    if spoil:
        spoil(folder / "engines" / "tensorrt")
    if status == 0:
        opened(folder).generate([1], [1], program=b"ddim-25")
        return
    with pytest.raises(DitedgeError, match=complaint) as caught:
        opened(folder).generate([1], [1], program=b"ddim-25")
    assert caught.value.status == status


def test_signed_plans(opened, double: Double, plan_bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where signatures are asked for, build.json has to have one of its own: the manifest's does not cover plans."""
    folder = Path(shutil.copytree(plan_bundle("gray1_cfg"), tmp_path / "b"))
    public, plans = new_key_pair(tmp_path / "k.pem"), folder / "engines" / "tensorrt"
    sign_bundle(folder, tmp_path / "k.pem")
    monkeypatch.setenv("DITEDGE_TRUSTED_KEYS", str(public))
    opened(folder).generate([1], [1], program=b"ddim-25")
    loaded = double.report["counts"]
    record, signature = (plans / "build.json").read_bytes(), (plans / "build.json.sig").read_bytes()
    (plans / "build.json").write_bytes(record + b" ")
    for complaint in ("build.json is not what sha256:", "build.json is not signed", "build.json.sig: not valid JSON"):
        with pytest.raises(DitedgeError, match=complaint) as caught:
            opened(folder)
        assert caught.value.status == BUNDLE
        (plans / "build.json").write_bytes(record)
        if complaint.endswith("signed"):
            (plans / "build.json.sig").write_bytes(signature[:-9])
        else:
            (plans / "build.json.sig").unlink()
    assert double.report["counts"] == loaded, "nothing of them reached the GPU"


def test_plans_are_those_of_the_opened_folder(
    opened, plan_bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another folder of the same name, put in its place after it was opened, is not looked at; neither is the working one."""
    folder = Path(shutil.copytree(plan_bundle("gray1_cfg"), tmp_path / "b"))
    expected = opened(folder).generate(LABELS, SEEDS, images=False, program=b"ddim-25")
    monkeypatch.chdir(tmp_path)
    open_session = Ditedge._check

    def moved(handle: Ditedge, status: int) -> None:
        open_session(handle, status)
        if not (tmp_path / "moved").exists() and handle.bundle.value:  # the bundle is open, its sampler is not
            folder.rename(tmp_path / "moved")
            folder.mkdir()
            monkeypatch.chdir("/")

    monkeypatch.setattr(Ditedge, "_check", moved)
    handle = opened(Path("b"))
    monkeypatch.setattr(Ditedge, "_check", open_session)
    assert not list(folder.iterdir())
    assert np.array_equal(handle.generate(LABELS, SEEDS, images=False, program=b"ddim-25"), expected)


def test_what_the_plans_were_not_built_for(opened, plan_bundle) -> None:
    folder = plan_bundle("gray1_cfg", max_batch=2, max_rows=2, slots=1)
    handle = opened(folder)
    assert handle.generate([1, 1], [1, 2], batch=2, program=b"ddim-25").shape == (2, 8, 8, 1)
    for fields, complaint in (
        ({"batch": 4}, "a batch of 4 is more than the plans were built for, 2: .*--max-batch"),
        ({"batch": 2, "on_preview": lambda step, pictures: None}, r"(state|mix) is \[2, 2.*fewer slots"),
    ):
        with pytest.raises(DitedgeError, match=complaint) as caught:
            handle.generate([1] * 4, range(4), program=b"ddim-25", **fields)
        assert caught.value.status == REQUEST
    with pytest.raises(DitedgeError, match="max-rows"):
        handle.generate([1, 2], [1, 2], batch=2, program=b"ddim-25")


def test_libraries_that_are_not_there(built: Path, plan_bundle, double: Double, monkeypatch) -> None:
    folder = plan_bundle("gray1_cfg")
    for library, cudart, complaint in (
        ("/nonexistent.so", str(double.path), "TensorRT is not to be found"),
        ("libm.so.6", str(double.path), "has no getInferLibVersion"),
        (str(double.path), "/nonexistent.so", "CUDA runtime is not to be found"),
        (str(double.path), "libm.so.6", "has no cuda"),
    ):
        monkeypatch.setenv("DITEDGE_CUDART", cudart)
        with pytest.raises(DitedgeError, match=complaint) as caught:
            Ditedge(built / "libditedge.so", folder, Path(library), engine=b"tensorrt")
        assert caught.value.status == ENGINE


@pytest.fixture(scope="session")
def cudart(gpu_headers: tuple[Path, Path]) -> Path:
    found = sorted(gpu_headers[1].glob("lib*/libcudart.so.*"))
    if not found:
        pytest.skip(f"no libcudart in {gpu_headers[1]}")
    return found[0]


def test_the_real_libraries_without_a_gpu(built: Path, plan_bundle, cudart: Path, monkeypatch) -> None:
    """TensorRT-RTX and CUDA's runtime as they are shipped, on a machine without a driver."""
    import tensorrt_rtx_libs  # type: ignore[import-not-found]

    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a GPU: see tests/cpp/test_plans_gpu.py")
    monkeypatch.setenv("DITEDGE_CUDART", str(cudart))
    library = Path(tensorrt_rtx_libs.__file__).parent / "libtensorrt_rtx.so.1"
    with pytest.raises(DitedgeError, match="no CUDA device") as caught:
        Ditedge(built / "libditedge.so", plan_bundle("gray1_cfg"), library, engine=b"tensorrt-rtx")
    assert caught.value.status == NO_DEVICE


def test_a_build_without_the_engine_says_so(build, plan_bundle, onnxruntime_library) -> None:
    plain = build("cpp-plain", "-DDITEDGE_EXAMPLES=OFF")
    with pytest.raises(
        DitedgeError, match="'tensorrt' is not in this build .* has: onnxruntime .*-DTENSORRT_ROOT"
    ) as caught:
        Ditedge(plain / "libditedge.so", plan_bundle("gray1_cfg"), onnxruntime_library, engine=b"tensorrt")
    assert caught.value.status == ENGINE


# Each breaks one thing in the loop: (what stands there, what stands there instead). The double, or PyTorch's recorded
# latents, have to notice every one; a mutation that is not found in the source fails, too.
MUTATIONS = {
    "states do not take turns": ("states_[1 - from]", "states_[from]"),
    "tables of the first step": (": bindings_[static_cast<std::size_t>(step)])", ": bindings_[0])"),
    "adaLN rows of the first step": ("this->step(step, step % block_,", "this->step(step, 0,"),
    "noise of the wrong step": ("noise_ + ring(step) *", "noise_ + ring(step + 1) *"),
    "unaligned arena": ("if (fresh) size_ += aligned(bytes);", "if (fresh) size_ += bytes;"),
    "noise is overwritten too early": ("static_cast<std::size_t>(step % (segment_ * ahead_))", "static_cast<std::size_t>(step % 2)"),
    "host does not wait": ("while (!passed(number))", "if (!passed(number))"),
    "no warm-up": ("if (index == 0 && graphs_.empty()) warm_up();", ""),
    "allocation while capturing": ("                enqueue(first, last);\n            } catch", "                memory_.device(8); enqueue(first, last);\n            } catch"),
    "conditioner once": ("modulate(at / per_call_);", "modulate(0);"),
    "state buffer too small": ("state = memory_.device(state_bytes_);", "state = memory_.device(state_bytes_ / 2);"),
    "scratch too small": ("scratch = memory.device(scratch_bytes);", "scratch = memory.device(scratch_bytes / 2);"),
}  # fmt: skip
# These change nothing that anybody may see.
EQUIVALENTS = {
    "adaLN rows in blocks": ("kModulationBytes = 256 << 20", "kModulationBytes = 40 << 10"),
    "longer graphs": ("kSegment = 4, kAhead = 2", "kSegment = 3, kAhead = 5"),
    "one step at a time": ("kSegment = 4, kAhead = 2", "kSegment = 1, kAhead = 1"),
}


@pytest.fixture
def mutant(built: Path, tmp_path: Path) -> Callable[[str, str], Path]:
    """mutant(before, after) -> libditedge.so with that text of the loop replaced."""

    def make(before: str, after: str) -> Path:
        source = ROOT / "runtime" / "cpp" / "src" / "device_loop.cpp"
        texts = {path: path.read_text() for path in (source, source.with_name("device_memory.hpp"))}
        assert sum(text.count(before) for text in texts.values()) == 1, f"{before!r} is not in the loop once"
        for path, text in texts.items():
            (tmp_path / path.name).write_text(text.replace(before, after))
        commands = json.loads((built / "compile_commands.json").read_text())
        (command,) = [entry["command"] for entry in commands if Path(entry["file"]) == source]
        words = shlex.split(command)
        place = words.index("-o") + 1
        objects = [*(built / "CMakeFiles" / "ditedge.dir" / "src").glob("*.o")]
        words[place], words[words.index("-c") + 1] = str(tmp_path / "mutant.o"), str(tmp_path / source.name)
        words = [word for word in words if word not in ("-O3", "-Werror")] + ["-O0"]
        subprocess.run(words, cwd=built, check=True, capture_output=True)
        objects = [object for object in objects if object.name != "device_loop.cpp.o"] + [tmp_path / "mutant.o"]
        library = tmp_path / "libditedge.so"
        subprocess.run(["c++", "-shared", "-o", library, *objects, "-ldl", "-pthread"], check=True)
        return library

    return make


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MUTATIONS, *EQUIVALENTS])
def test_mutations_are_noticed(mutant, double: Double, opened, plan_bundle, tmp_path: Path, name: str) -> None:
    case, loop = "gray1_cfg", next(loop for case, loop in LOOPS if case == "gray1_cfg" and loop["name"] == "ddpm10")
    folder = plan_bundle(case, conditioner_rows=12)
    write_program(program_of(folder, loop), tmp_path / "p.json")
    library = mutant(*(MUTATIONS | EQUIVALENTS)[name])
    try:
        handle = opened(folder, library)
        error = max(replay(handle, case, loop, tmp_path / "p.json") for _ in range(2))
    except DitedgeError as refused:
        noticed = f"{refused}; the double: {double.report['broken']}"
    else:
        noticed = "" if error < TOLERANCE else f"latents are off by {error:.1e}"
    print(name, "->", noticed)
    assert bool(noticed) == (name in MUTATIONS)
    if name in MUTATIONS:  # what a broken loop leaves behind is not this test's business
        handle.close() if "handle" in locals() else None
        double.reset()
