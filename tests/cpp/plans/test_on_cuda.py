"""The double's half of libnvinfer as work of a stream of CUDA, and here the CUDA is the other double's.

tests/gpu/gpu_check.py runs libditedge so on a real GPU, which needs no TensorRT.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ditedge.runtime.samplers.program import write_program
from tests.conftest import BUNDLES, GOLDEN
from tests.cpp.plans.support import Double, replay
from tests.cpp.support import LOOPS, TOLERANCE, program_of


@pytest.mark.parametrize("case", ["gray1_cfg", "latent4_learned_sigma"])
def test_recorded_trajectories(opened, double: Double, plan_bundle, tmp_path: Path, monkeypatch, case: str) -> None:
    """Plain, captured, replayed: each step is copies and a function of the host in a stream."""
    monkeypatch.setenv("DOUBLE_ON_CUDA", str(double.path))
    double.path = Path(shutil.copy(double.path, tmp_path / "libnvinfer.so"))  # another file is another library
    loop = next(loop for name, loop in LOOPS if name == case)
    folder = plan_bundle(case, "x0" if loop.get("predict_xstart") else "epsilon")
    program = program_of(folder, loop)
    write_program(program, tmp_path / "p.json")
    for options in ({}, {"no_cuda_graph": 1}):
        handle = opened(folder, **options)
        for _ in range(2):
            assert replay(handle, case, loop, tmp_path / "p.json") < TOLERANCE
    counts = double.report["counts"]
    assert counts["host call"] >= 4 * program.steps and counts["capture"] >= 1 and "step" not in counts


def test_the_check_for_a_gpu_has_it(built: Path, gpu_headers, capsys) -> None:
    from tests.gpu import gpu_check

    bundle = ["--bundle", str(BUNDLES / "gray1_cfg"), "--ckpt", str(GOLDEN / "gray1_cfg" / "model.pt")]
    assert gpu_check.main(["--host", "--only", "C++", *bundle]) == 0
    assert "captured, replayed and plain are equal" in capsys.readouterr().out
