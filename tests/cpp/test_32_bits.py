"""libditedge on 32-bit ARM: no product of sizes wraps."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.cpp.conftest import need


def with_large_pictures(bundle: Path) -> None:
    """A decoder that would make 256 x 256 pictures of 32 x 32 latents."""
    from onnx import TensorProto, helper

    inputs = [helper.make_tensor_value_info("latent", TensorProto.FLOAT, ["B", 1, 32, 32])]
    outputs = [helper.make_tensor_value_info("image", TensorProto.UINT8, ["B", 256, 256, 3])]
    graph = helper.make_graph([helper.make_node("Identity", ["latent"], ["image"])], "decoder", inputs, outputs)
    (bundle / "decoder.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["graphs"]["decoder"]["outputs"][0]["shape"] = ["B", 256, 256, 3]
    manifest["files"]["decoder.onnx"]["bytes"] = (bundle / "decoder.onnx").stat().st_size
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def large_programs(bundle: Path, folder: Path) -> list[Path]:
    """As many steps, and as many slots, as a program may have."""
    whole = json.loads((bundle / "programs" / "ddpm-10.json").read_text())
    per_step = ("timestep", "x0_from", "log_sigma", "guidance", "mix")
    long = whole | {key: (whole[key] * 103)[:1024] for key in per_step}
    wide = whole | {key: (whole[key] * 10)[:100] for key in per_step} | {"mix": [[[0.0] * 66] * 64] * 100}
    paths = [folder / "long.json", folder / "wide.json"]
    for path, data in zip(paths, (long, wide), strict=True):
        path.write_text(json.dumps(data))
    return paths


def of_32_bits(built: Path, folder: Path) -> Path:
    """tests/cpp/narrow_sizes.cpp and what it links, by the compiler for 32-bit ARM; the rest of the library is compiled."""
    compiler = [
        "arm-linux-gnueabihf-g++",
        "-std=c++17",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Wshadow",
        "-Wconversion",
        "-Werror",
    ]
    compiler += ["-DDITEDGE_STATIC", *(f"-I{ROOT / 'runtime/cpp' / name}" for name in ("src", "include"))]
    compiler += [f"-isystem{built / 'shim' / name}" for name in ("json", "")]

    def run(*command: object) -> None:
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]

    sources = [
        p for p in (ROOT / "runtime/cpp/src").glob("*.cpp") if not re.match("capi.cpp|engine|device|host", p.name)
    ]
    objects = []
    for source in (*sources, ROOT / "tests/cpp/narrow_sizes.cpp"):
        objects.append(folder / f"{source.stem}.o")
        renamed = ["-Dopen_loop=the_real_open_loop"] if source.name == "loop.cpp" else []
        run(*compiler, *renamed, "-c", source, "-o", objects[-1])
    device = ("device_loop.cpp", "device_run.cpp", "device_steps.cpp", "engine_ort_cuda.cpp")
    rest = [*(f"src/{name}" for name in ("engine_ort.cpp", "host_loop.cpp", *device)), "examples/ditedge_run.cpp"]
    run(*compiler, "-fsyntax-only", *(ROOT / "runtime/cpp" / name for name in (*rest, "examples/ditedge_bench.cpp")))
    run(compiler[0], "-static", *objects, "-o", folder / "narrow", "-pthread")
    return folder / "narrow"


@pytest.mark.slow
def test_sizes_of_32_bits(built: Path, demo_bundle: Path, tmp_path: Path) -> None:
    """Built for 32-bit ARM, warnings being errors: no product of sizes wraps to a small one and is believed. What the program
    does not link (the engine for ONNX Runtime, the examples: with it all of the default build) is compiled, too."""
    need("arm-linux-gnueabihf-g++", "qemu-arm-static")
    folder = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    with_large_pictures(folder)
    programs = large_programs(folder, tmp_path)
    command = ["qemu-arm-static", of_32_bits(built, tmp_path), folder, *programs]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("right") == 5, done.stdout + done.stderr
