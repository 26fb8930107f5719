"""Size and symbols, sanitizers, the installed package."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.cpp.plan_text import with_cpp_plans
from tests.cpp.support import damaged

# Up to GCC 13 and LLVM 16 the leak check takes a thread's variables of a loaded library (the double has some) for
# a block with glibc 2.19's header, where malloc happens to lay them 16 bytes behind a page's begin, and reads where
# nothing is: "Tracer caught signal 11". Without that interceptor they are no roots, so that more leaks are found.
LEAKS = "detect_leaks=1:intercept_tls_get_addr=0"


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
    code = sum(bool(line) and not line.startswith(comment) for line in lines)
    assert code < 5900  # 750 of them for prompts, on the CPU and on plans


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
    hostile_folders: Path,
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
    library = request.getfixturevalue("onnxruntime_library")
    environment = os.environ | {"DITEDGE_ONNXRUNTIME": str(library), "ASAN_OPTIONS": LEAKS}
    hostile = sorted(hostile_folders.iterdir()) if sanitizer != "thread" else []
    bundle = request.getfixturevalue("golden_bundle")("gray1_cfg")
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


PROGRAM = ROOT / "runtime" / "cpp" / "examples" / "minimal.c"


def by_pkg_config(prefix: Path, out: Path) -> Path:
    """The example, built with the flags that pkg-config gives."""
    (found,) = prefix.rglob("ditedge.pc")
    search = os.environ | {"PKG_CONFIG_PATH": str(found.parent)}
    ask = ["pkg-config", "--cflags", "--libs", "ditedge"]
    flags = subprocess.run(ask, env=search, capture_output=True, text=True, check=True).stdout.split()
    subprocess.run(["cc", PROGRAM, "-o", out, *flags, f"-Wl,-rpath,{found.parents[1]}"], check=True)
    return out


@pytest.mark.slow
def test_installed_package(build, golden_bundle, onnxruntime_library: Path, tmp_path: Path) -> None:
    """find_package and pkg-config from an installed tree, shared and static; .deb and .tar.gz."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(app LANGUAGES C CXX)\nfind_package(ditedge 0.1 REQUIRED)\n"
        f"add_executable(app {PROGRAM})\ntarget_link_libraries(app PRIVATE ditedge::ditedge)\n"
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
            other, by_pc = tmp_path / f"{kind}-pc.pgm", by_pkg_config(prefix, prefix / "by-pc")
            subprocess.run([by_pc, golden_bundle("gray1_cfg"), "3", "7", other], env=environment, check=True)
            assert other.read_bytes() == picture.read_bytes()
    assert (tmp_path / "shared.pgm").read_bytes() == (tmp_path / "static.pgm").read_bytes()
    check_packages(tmp_path, golden_bundle("gray1_cfg"), environment)


def check_packages(tmp_path: Path, bundle: Path, environment: dict[str, str]) -> None:
    """.deb and .tar.gz of the shared build: what is in them, and that the command in the .deb runs."""
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
        request = ["--bundle", bundle, "--class", "3", "--seed", "7", "-o", picture]
        subprocess.run([command, *request], env=environment, check=True, capture_output=True)  # finds its library
        with Image.open(picture) as image, Image.open(tmp_path / "shared.pgm") as same:
            assert np.array_equal(np.array(image), np.array(same))
