"""`--provider cuda`: ONNX Runtime behind libditedge's loop for plans, its CPU provider over the double of CUDA's calls."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from capi_ctypes import Ditedge, DitedgeError

from ditedge.runtime import generate, open_bundle
from ditedge.runtime.loop.verify import relative_error
from ditedge.runtime.samplers.program import write_program
from tests.cpp.plans.support import LABELS, SEEDS, Double, check_seeded_pictures, replay
from tests.cpp.support import CANCELLED, LOOPS, NO_DEVICE, TOLERANCE, program_of
from tests.cpp.test_guards import check_one_bad_image
from tests.second_step import with_half_step

Opened = Callable[..., Ditedge]


@pytest.fixture(scope="session")
def provider(headers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library like an ONNX Runtime with the CUDA provider."""
    source, library = (
        Path(__file__).parents[1] / "cuda_provider.cpp",
        tmp_path_factory.mktemp("ort") / "libonnxruntime.so",
    )
    command = ["c++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-isystem{headers}/usr/include"]
    subprocess.run([*command, source, "-o", library, "-ldl"], check=True)
    return library


@pytest.fixture
def cuda_handles(built: Path, double: Double, provider: Path, onnxruntime_library: Path, tmp_path: Path, monkeypatch):
    """Of a copy of libditedge: a process, and so a library, has one ONNX Runtime."""
    monkeypatch.setenv("REAL_ONNXRUNTIME", str(onnxruntime_library))
    handles: list[Ditedge] = []

    def make(bundle: Path, library: Path = built / "libditedge.so", **options: object) -> Ditedge:
        mine = tmp_path / "libditedge.so"
        if not mine.exists():
            shutil.copy(library.resolve(), mine)
        handles.append(Ditedge(mine, bundle, provider, **{"provider": b"cuda", "threads": 1, **options}))
        return handles[-1]

    yield make
    for handle in handles:
        handle.close()


@pytest.fixture
def opened(cuda_handles: Opened) -> Opened:
    return cuda_handles


@pytest.mark.parametrize(("case", "loop"), LOOPS, ids=[f"{case}-{loop['name']}" for case, loop in LOOPS])
def test_recorded_trajectories(
    opened: Opened, double: Double, golden_bundle, tmp_path: Path, case: str, loop: dict
) -> None:
    folder = golden_bundle(case, "x0" if loop.get("predict_xstart") else "epsilon")
    write_program(program_of(folder, loop), tmp_path / "p.json")
    handle, done = opened(folder), []
    for _ in range(2):
        assert replay(handle, case, loop, tmp_path / "p.json") < TOLERANCE
    assert replay(handle, case, loop, tmp_path / "p.json", on_progress=lambda p: done.append(p.done)) < TOLERANCE
    counts = double.report["counts"]
    assert counts["next_state"] == 3 * len(done) and not counts.keys() & {"capture", "launch", "step"}
    assert double.report["longest_queue"] > 8, "work was enqueued ahead of the host"
    assert handle.warnings() == []


def test_seeded_pictures_equal_pythons(opened: Opened, golden_bundle) -> None:
    """Batches, a smaller last one, more images than any plan of the tests was built for, classes to guide away from."""
    folder = golden_bundle("gray1_cfg")
    bundle, handle = open_bundle(folder), opened(folder)
    check_seeded_pictures(handle, bundle)
    labels, seeds = [i % 10 for i in range(20)], list(range(20))
    mine = handle.generate(labels, seeds, images=False, program=b"ddim-10", batch=20)
    whole = generate(bundle, labels, seeds, program=bundle.program("ddim-10"), batch=20, output="latents")
    assert relative_error(mine, whole) < TOLERANCE


def test_previews(opened: Opened, double: Double, golden_bundle) -> None:
    """By the graph `preview`, and those of a loop on the host, which has the provider by its full name."""
    folder, shown = golden_bundle("latent4_learned_sigma"), []
    for name in (b"cuda", b"CUDAExecutionProvider"):
        before = double.report["counts"].get("next_state", 0)
        pictures: list[np.ndarray] = []
        opened(folder, provider=name).generate(
            LABELS, SEEDS, images=False, program=b"ddim-25", preview_every=3, batch=3,
            on_preview=lambda step, made, pictures=pictures: pictures.append(made),
        )  # fmt: skip
        shown.append(pictures)
        assert (double.report["counts"]["next_state"] > before) == (name == b"cuda")
    assert len(shown[0]) == len(shown[1]) == 16
    assert all(np.mean(mine == theirs) >= 0.999 for mine, theirs in zip(*shown, strict=True))


def test_cancelled_then_run_again(opened: Opened, golden_bundle) -> None:
    folder, started = golden_bundle("gray1_cfg"), threading.Event()
    handle = opened(folder)
    thread = threading.Thread(target=lambda: (started.wait(), handle.cancel()))
    thread.start()
    with pytest.raises(DitedgeError, match="stopped before step") as caught:
        handle.generate([1] * 4000, range(4000), images=False, batch=2, on_progress=lambda _: started.set())
    thread.join()
    assert caught.value.status == CANCELLED
    again = handle.generate(LABELS, SEEDS, images=False, program=b"ddim-25")
    bundle = open_bundle(folder)
    expected = generate(bundle, LABELS, SEEDS, program=bundle.program("ddim-25"), output="latents")
    assert relative_error(again, expected) < TOLERANCE


def test_an_image_that_is_not_finite(opened: Opened, golden_bundle) -> None:
    check_one_bad_image(opened(golden_bundle("gray1_cfg")))


def test_what_the_device_cannot_do_is_done_on_the_host(
    opened: Opened, double: Double, golden_bundle, tmp_path: Path
) -> None:
    """Images that go step by step, and further step graphs: the provider, with copies."""
    folder = Path(shutil.copytree(golden_bundle("gray1_cfg"), tmp_path / "bundle"))
    with_half_step(folder)
    program = json.loads((folder / "programs" / "ddim-10.json").read_text())
    (tmp_path / "p.json").write_text(json.dumps(program | {"graph": [*9 * ["step"], "step-half"]}))
    handle, bundle = opened(folder), open_bundle(folder)
    half = {"images": False, "program_file": str(tmp_path / "p.json").encode()}
    by_name = opened(folder, provider=b"CUDAExecutionProvider").generate([1], [2], **half)
    assert np.array_equal(handle.generate([1], [2], **half), by_name)
    run = handle.start(1, 2)
    for _ in range(bundle.program().steps):
        handle.advance([run])
    assert relative_error(handle.latent(run), generate(bundle, [1], [2], output="latents")[0]) < TOLERANCE
    handle.close_run(run)
    assert "next_state" not in double.report["counts"]


def test_a_graph_with_nodes_on_the_cpu_waits_for_its_runs(opened: Opened, golden_bundle, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_PROVIDER", "mixed")
    folder = golden_bundle("gray1_cfg")
    bundle = open_bundle(folder)
    mine = opened(folder).generate(LABELS, SEEDS, images=False, program=b"ddim-25")
    expected = generate(bundle, LABELS, SEEDS, program=bundle.program("ddim-25"), output="latents")
    assert relative_error(mine, expected) < TOLERANCE


def test_no_device(opened: Opened, double: Double, golden_bundle) -> None:
    double.reset(devices=0)
    complaint = "provider 'cuda' needs an NVIDIA GPU and its driver, and there is no CUDA device 0 here: use cpu"
    with pytest.raises(DitedgeError, match=complaint) as caught:
        opened(golden_bundle("gray1_cfg"))
    assert caught.value.status == NO_DEVICE


@pytest.mark.slow
def test_without_headers_of_tensorrt_and_cuda(opened: Opened, build, golden_bundle) -> None:
    folder = golden_bundle("gray1_cfg")
    bundle, handle = open_bundle(folder), opened(folder, build("cpp-plain", "-DDITEDGE_EXAMPLES=OFF") / "libditedge.so")
    mine = handle.generate(LABELS, SEEDS, images=False, program=b"ddim-25")
    expected = generate(bundle, LABELS, SEEDS, program=bundle.program("ddim-25"), output="latents")
    assert relative_error(mine, expected) < TOLERANCE


# Bindings that outlive their shapes are not among them: other shapes have other addresses, unless an allocator gives a
# larger block the address of the one before.
# What stands in engine_ort_cuda.cpp and what stands there instead; what the double says (without it: the pictures are wrong).
NEVER, ALWAYS = "return false; }", "return true; }"
MUTATIONS = {
    "forgotten synchronisation": ([('"disable_synchronize_execution_providers"', '"session.other"')], "the run stops the stream"),
    "never waiting": ([("graph.all_on(kCudaProvider)", "true")], "pinned memory is reused"),
    "captured": ([(f"{text} override {{ {NEVER}", f"{text} override {{ {ALWAYS}") for text in ("capturable() const", "capturable(cudaStream_t)")], "ONNX Runtime allocates while capturing"),
    "stale bindings": ([("bindings_[addresses_]", "bindings_[{}]")], None),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_mutations_are_noticed(opened: Opened, double: Double, mutant, golden_bundle, monkeypatch, name: str) -> None:
    changes, complaint = MUTATIONS[name]
    if name == "never waiting":
        monkeypatch.setenv("CUDA_PROVIDER", "mixed")
    folder = golden_bundle("gray1_cfg")
    bundle, right = open_bundle(folder), []
    handle = opened(folder, mutant(*changes))
    try:
        for count in (1, 5, 5):
            images = handle.generate(LABELS[:count], SEEDS[:count], program=b"ddim-10")
            expected = generate(bundle, LABELS[:count], SEEDS[:count], program=bundle.program("ddim-10"))
            right.append(bool(np.mean(images == expected) >= 0.999))
    except DitedgeError:
        assert complaint
    broken = double.report["broken"]
    handle.close()
    double.reset()
    assert broken == complaint if complaint else not all(right)
