"""Which ONNX Runtime libditedge loads, and what it says of one that it cannot use."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from tests.conftest import ROOT
from tests.cpp.support import ENGINE


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
        "int main(int, char** argv) { return ditedge::ort_library(argv[1]).version.empty() ? 1 : 0; }\n"
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


def test_a_library_that_is_not_there(built: Path, golden_bundle) -> None:
    for path, complaint in (("/nonexistent.so", "not to be found"), ("libm.so.6", "OrtGetApiBase")):
        code = f"import sys; sys.path.insert(0, {str(ROOT / 'examples')!r}); from capi_ctypes import *\n"
        code += f"try: Ditedge(Path({str(built / 'libditedge.so')!r}), Path({str(golden_bundle('gray1_cfg'))!r}), Path({path!r}))\n"
        code += "except DitedgeError as e: print(e.status, e)"
        out = subprocess.run([os.sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert out.startswith(f"{ENGINE} ") and complaint in out
