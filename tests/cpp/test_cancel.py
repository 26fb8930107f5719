"""libditedge: cancel, processes, threads."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import threading
import time
from pathlib import Path

import onnx
import pytest
from capi_ctypes import Ditedge, DitedgeError
from onnx import TensorProto, helper

from ditedge.runtime.processors import thread_count, usable_processors
from tests.conftest import ROOT
from tests.cpp.conftest import need
from tests.cpp.support import CANCELLED, ENGINE, edit


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
    handle.c.ditedge_cancel_request(handle.session, 2)
    for request in (1, 2):
        with pytest.raises(DitedgeError, match=f"request {request} was cancelled") as caught:
            handle.generate([1], [1], program=b"ddim-25", request=request)
        assert caught.value.status == CANCELLED
    for request in (3, 0):
        assert handle.generate([1], [1], program=b"ddim-25", request=request).shape == (1, 8, 8, 1)
    cancel = lambda: (started.wait(), handle.c.ditedge_cancel_request(handle.session, 4))  # noqa: E731
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
