"""The check for a GPU, on the CPU: that it passes, that it can fail, and that what goes wrong stays where it is."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ditedge.runtime.errors import EngineError
from ditedge.runtime.loop import engine_ort_cuda, engine_trt
from tests.conftest import BUNDLES, GOLDEN, ROOT

pytest.importorskip("torch")

import torch  # noqa: E402

from tests.doubles.gpu_double import DoubleGpu  # noqa: E402
from tests.doubles.ort_double import OrtDouble  # noqa: E402
from tests.gpu import gpu_check, loop_checks, ort_checks, speed_checks, torch_plan  # noqa: E402
from tests.gpu.runner import Row, report, run_all  # noqa: E402

SMALL = ["--bundle", str(BUNDLES / "gray1_cfg"), "--ckpt", str(GOLDEN / "gray1_cfg" / "model.pt")]
CHILD = f"""
import os, subprocess, sys, time
sys.path.insert(0, {str(ROOT)!r})
sys.modules["tests"] = type(sys)("tests")
sys.modules["tests"].__path__ = [{str(ROOT / "tests")!r}]
from tests.gpu.runner import run_here, tell
def hang():
    tell(say="so far")
    time.sleep(60)
def leaves():
    subprocess.Popen(["sleep", "50"])  # it holds this process's standard output
    return "left"
def leaves_and_hangs():
    leaves()
    hang()
does = {{"leaves": leaves, "leaves and hangs": leaves_and_hangs, "good": lambda: "fine", "bad": lambda: 1 / 0, "dies": lambda: os._exit(7), "hangs": hang}}
sys.exit(run_here([(name, does[name]) for name in sys.argv[1:]]))
"""


def ran(names: list[str], seconds: float = 30) -> list[Row]:
    rows = [Row(name, 0.5) for name in names]
    run_all(rows, [sys.executable, "-c", CHILD], seconds, lambda: None)
    return rows


@pytest.fixture
def lab(tmp_path: Path) -> loop_checks.Lab:
    return gpu_check._lab(gpu_check.arguments(["--host", *SMALL]), tmp_path)


def test_the_loop_passes_on_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr(gpu_check.cpp_checks, "missing", lambda: "tests/cpp/plans/test_on_cuda.py builds it")
    assert gpu_check.main(["--host", *SMALL]) == 0
    printed = capsys.readouterr().out
    assert printed.rstrip("\n") == (tmp_path / "gpu-check.md").read_text().rstrip("\n")
    assert printed.count("| ok |") == sum(check.host for check in gpu_check.CHECKS.values()) - 1 >= 8


def test_the_small_run_passes_on_the_host(capsys) -> None:
    assert gpu_check.main(["--host", "--small"]) == 0
    assert '"ok": "ddpm-10 ' in capsys.readouterr().out


def test_without_a_gpu_the_way_to_check_is_named(capsys) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu_check.main([]) == 2
    assert "--host" in capsys.readouterr().err


@pytest.mark.parametrize("check", ["golden", "programs", "batches"])
def test_wrong_arithmetic_on_the_device_is_noticed(lab, monkeypatch: pytest.MonkeyPatch, check: str) -> None:
    put = torch_plan.HostGpu.put
    monkeypatch.setattr(
        torch_plan.HostGpu, "put", lambda self, at, x: put(self, at, x * 1.01 if x.is_floating_point() else x + 1)
    )
    with pytest.raises(AssertionError, match="e-0|levels"):
        getattr(loop_checks, check)(lab)


def test_a_graph_that_replays_something_else_is_noticed(lab, monkeypatch: pytest.MonkeyPatch) -> None:
    replayed = torch_plan.HostGpu.launch

    def launch(self, graph: int, stream: int) -> None:
        self.graphs[graph] = self.graphs[graph] + self.graphs[graph][-1:]  # the last work once more, each time
        replayed(self, graph, stream)

    monkeypatch.setattr(torch_plan.HostGpu, "launch", launch)
    monkeypatch.setattr(torch_plan.TorchContext, "enqueue", _once_more(torch_plan.TorchContext.enqueue))
    with pytest.raises(AssertionError, match="not equal"):
        loop_checks.bits(lab)


def _once_more(enqueue):
    """Each execution changes its output in place, so that one too many is seen."""

    def changed(self, stream: int) -> None:
        enqueue(self, stream)
        gpu, name = self.plan.gpu, self.plan.info.outputs[0].name
        if name == "next_state":
            place = self.addresses[name], self.shapes["state"], torch.float32
            gpu.do(lambda: gpu.put(place[0], gpu.tensor(*place) * 1.5), stream, None)

    return changed


@pytest.mark.filterwarnings("ignore:these plans cannot be captured")
def test_a_capture_that_fails_is_noticed(lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop goes on without graphs, with the same numbers."""

    def end_capture(self, stream: int) -> int:
        self.capture = None
        raise EngineError("CUDA: cudaStreamEndCapture failed")

    monkeypatch.setattr(torch_plan.HostGpu, "end_capture", end_capture)
    with pytest.raises(AssertionError, match="could not be captured"):
        loop_checks.bits(lab)


def test_what_is_not_freed_is_noticed(lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_plan.HostGpu, "destroy_event", lambda self, event: None)
    with pytest.raises(AssertionError, match="are left"):
        loop_checks.memory(lab)


def test_a_check_that_fails_dies_or_hangs_does_not_stop_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.gpu.runner.START_SECONDS", 20)
    rows = ran(["good", "bad", "good", "dies", "hangs", "good"])
    assert [row.status for row in rows] == ["ok", "**failed**", "ok", "**failed**", "**failed**", "ok"]
    figures = [" / ".join(row.figures) for row in rows]
    assert figures[0] == "fine" and "ZeroDivisionError" in figures[1] and figures[3] == "exit status 7"
    assert figures[4].startswith("so far / stopped after")
    assert "4 of" not in report(rows, "about") and "3 of 6 ok" in report(rows, "about")


@pytest.mark.skipif(shutil.which("sleep") is None, reason="no program sleep")
def test_processes_that_a_check_started_hold_nothing_up() -> None:
    begin = time.monotonic()
    rows = ran(["good", "leaves and hangs", "leaves"], seconds=20)
    assert [row.status for row in rows] == ["ok", "**failed**", "ok"]
    assert time.monotonic() - begin < 15


def test_the_time_of_all_checks_is_kept() -> None:
    begin = time.monotonic()
    rows = [Row("hangs", 30), Row("good", 30)]
    run_all(rows, [sys.executable, "-c", CHILD], 2, lambda: None)
    assert time.monotonic() - begin < 10
    assert [row.status for row in rows] == ["**failed**", "left out"] and rows[1].figures == ["no time was left"]


def test_the_roofline_counts_the_products_of_a_published_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """118.6 billion multiply-adds of DiT-XL/2 at 256 x 256: table 4 of the paper, which counts the conditioner too."""
    assert 2 * 118.6e9 == pytest.approx(speed_checks.trunk_flops(speed_checks.config_of("XL/2")), rel=0.01)


def test_the_roofline_runs_the_step_graphs_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(speed_checks.SIZES, "tiny", (32, 2, 2))
    config = speed_checks.config_of("tiny")
    network = speed_checks.DiT(config).bfloat16()
    step = speed_checks.Step(speed_checks.Narrow(network, torch.bfloat16))
    inputs = speed_checks.step_inputs(config, 3, "cpu")
    with torch.no_grad():
        state = step(**inputs)
    assert state.shape == inputs["state"].shape and state.isfinite().all()


def test_what_is_not_here_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_check, "_about", lambda host: "a GPU")
    monkeypatch.setattr(ort_checks, "refusal", lambda provider: "needs an ONNX Runtime build that has it")
    assert gpu_check.main(["--only", "ONNX Runtime"]) == 1
    assert (
        "| ONNX Runtime CUDA | left out | 40.0 | needs an ONNX Runtime build that has it |" in capsys.readouterr().out
    )


@pytest.mark.parametrize("wrong", [False, True])
def test_onnx_runtime_on_the_device(lab, monkeypatch: pytest.MonkeyPatch, wrong: bool) -> None:
    """Over the doubles; the provider with copies is the CPU's. wrong: each step's results are a little off."""
    gpu, said = DoubleGpu(), []
    double = OrtDouble(gpu)
    monkeypatch.setattr(engine_trt, "NvidiaGpu", lambda: gpu)
    monkeypatch.setattr(engine_ort_cuda, "check_can_start", lambda provider: None)
    monkeypatch.setattr(engine_ort_cuda, "open_session", double.open)
    for name, value in {"refusal": lambda provider: "", "WITH_COPIES": "cpu", "RUNS": 1}.items():
        monkeypatch.setattr(ort_checks, name, value)
    if wrong:
        double.after = lambda output: np.multiply(output, 1.01, out=output, casting="unsafe")
        with pytest.raises(AssertionError, match="cuda: ddpm-10 "):
            ort_checks.ort_cuda(replace(lab, say=said.append))
        return
    assert ort_checks.ort_cuda(replace(lab, say=said.append)) == ""
    assert len(said) == 2 and said[0].startswith("cuda: ddpm-10 ") and said[1].startswith("cpu: ddpm-10 ")
