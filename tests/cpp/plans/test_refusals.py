"""Plans that libditedge refuses, and what it says."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from capi_ctypes import Ditedge, DitedgeError

from ditedge.runtime.signing import new_key_pair, sign_bundle
from tests.conftest import ROOT
from tests.cpp.plans.support import LABELS, SEEDS, Double
from tests.cpp.support import BUNDLE, ENGINE, NO_DEVICE, REQUEST


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


NEWER_THAN_THE_DRIVER = """
import os, sys
from pathlib import Path
from capi_ctypes import Ditedge, DitedgeError
try:
    handle = Ditedge(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), engine=b"tensorrt")
    print(handle.generate([3], [7], images=False).shape)
    handle.close()
except DitedgeError as error:
    print(error.status, error)
"""


@pytest.mark.parametrize("older", [True, False])
def test_a_cuda_runtime_newer_than_the_driver(
    built: Path, plan_bundle, double: Double, onnxruntime_library: Path, tmp_path: Path, older: bool
) -> None:
    """JetPack 6 with CUDA 13's runtime: CUDA 12's beside it is taken; without one, the sentence says what is too old."""
    header = (ROOT / "runtime/cpp/src/cuda.hpp").read_text()
    calls = ["GetErrorName", *re.findall(r"CALL\((\w+), ", header[header.index("#define DITEDGE_CUDA_CALLS") :])]
    source = "".join(f"int cuda{name}(void) {{ return 35; }}\n" for name in calls if name != "DriverGetVersion")
    source += "int cudaDriverGetVersion(int* version) { *version = 12060; return 0; }\n"
    (tmp_path / "newer.c").write_text(source)
    command = ["cc", "-shared", "-fPIC", "-fno-builtin", tmp_path / "newer.c", "-o", tmp_path / "libcudart.so.13"]
    subprocess.run(command, check=True, capture_output=True)
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(ROOT / "examples")}
    if older:
        (tmp_path / "libcudart.so.12").symlink_to(double.path)
        del environment["DITEDGE_CUDART"]
    else:
        environment["DITEDGE_CUDART"] = "libcudart.so.13"
    arguments = [built / "libditedge.so", plan_bundle("gray1_cfg"), double.path]
    done = subprocess.run(
        [sys.executable, "-c", NEWER_THAN_THE_DRIVER, *map(str, arguments)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    if older:
        assert done.stdout == "(1, 1, 8, 8)\n", done.stdout + done.stderr
    else:
        said = f"{NO_DEVICE} the NVIDIA driver, which is for CUDA 12.6, is too old for libcudart.so.13: update it, or install"
        assert done.stdout.startswith(said) and "of CUDA 12" in done.stdout, done.stdout


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
        pytest.skip("this machine has a GPU: see tests/cpp/plans/test_gpu.py")
    monkeypatch.setenv("DITEDGE_CUDART", str(cudart))
    library = Path(tensorrt_rtx_libs.__file__).parent / "libtensorrt_rtx.so.1"
    with pytest.raises(DitedgeError, match="no CUDA device") as caught:
        Ditedge(built / "libditedge.so", plan_bundle("gray1_cfg"), library, engine=b"tensorrt-rtx")
    assert caught.value.status == NO_DEVICE


@pytest.mark.slow
def test_a_build_without_the_engine_says_so(build, plan_bundle, onnxruntime_library) -> None:
    plain = build("cpp-plain", "-DDITEDGE_EXAMPLES=OFF")
    with pytest.raises(
        DitedgeError, match="'tensorrt' is not in this build .* has: onnxruntime .*-DTENSORRT_ROOT"
    ) as caught:
        Ditedge(plain / "libditedge.so", plan_bundle("gray1_cfg"), onnxruntime_library, engine=b"tensorrt")
    assert caught.value.status == ENGINE
