"""One run on a real GPU, in the order of value: noise, the loop on CUDA with PyTorch behind the plans, rooflines.

    python tests/gpu/gpu_check.py            every check, in at most --seconds; the report is Markdown
    python tests/gpu/gpu_check.py --host     the loop's checks on the CPU, over a double of CUDA's calls
    python tests/gpu/gpu_check.py --small    one recorded trajectory, in this process: for compute-sanitizer

Needs numpy, pydantic, safetensors and torch (`make gpu-pack` packs what a machine without a network lacks). The report
goes to standard output, and to $OUT/gpu-check.md if OUT is set. Exit status 1: a check failed or was left out.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":  # as a script: of this checkout, whatever else calls itself `tests`
    sys.path.insert(0, str(ROOT))
    sys.modules["tests"] = ModuleType("tests")
    sys.modules["tests"].__path__ = [str(ROOT / "tests")]

import torch  # noqa: E402

from ditedge.runtime.loop.cuda import load_cudart, version_of  # noqa: E402
from tests.gpu import cpp_checks, loop_checks, ort_checks, speed_checks  # noqa: E402
from tests.gpu.loop_checks import Lab  # noqa: E402
from tests.gpu.runner import Row, report, run_all, run_here, tell, written  # noqa: E402
from tests.gpu.torch_plan import Subject  # noqa: E402

LATENT = "latent4_learned_sigma"  # its bundle has the graph `preview`
SANITIZER = "compute-sanitizer"
HOST_SLOWER = 3  # budgets are for a GPU


@dataclass(frozen=True)
class Check:
    """seconds: its budget. host: whether it can run without a GPU."""

    run: Callable[[Lab], str]
    seconds: float
    host: bool = True


def memcheck(lab: Lab) -> str:
    """--small under compute-sanitizer: addresses that are out of bounds or not aligned."""
    tool = [SANITIZER, "--tool", "memcheck", "--error-exitcode", "9", "--report-api-errors", "no"]  # the loop looks
    result = subprocess.run([*tool, sys.executable, str(Path(__file__)), "--small"], capture_output=True, text=True)
    said = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]
    assert result.returncode == 0, " / ".join(said[-6:])
    return " / ".join(said[-2:])


CHECKS = {
    "noise against torch.randn on CUDA": Check(loop_checks.noise, 20, host=False),
    "golden trajectories": Check(loop_checks.golden, 30),
    "programs against the host's loop": Check(loop_checks.programs, 40),
    "captured, replayed, plain, watched": Check(loop_checks.bits, 30),
    "noise ring": Check(loop_checks.ring, 30),
    "batches of 1, 2, 5": Check(loop_checks.batches, 40),
    "cancelled, then run again": Check(loop_checks.cancelled, 30),
    "previews": Check(loop_checks.previews, 40),
    "memory given back": Check(loop_checks.memory, 40),
    "speed of the demo, host idle": Check(loop_checks.idle, 40, host=False),
    "roofline XL/2 bfloat16": Check(speed_checks.roofline("XL/2", torch.bfloat16), 70, host=False),
    "roofline S/2 bfloat16": Check(speed_checks.roofline("S/2", torch.bfloat16), 40, host=False),
    "memcheck": Check(memcheck, 90, host=False),
    "the C++ loop": Check(cpp_checks.cpp_loop, 40),
    "roofline XL/2 float16": Check(speed_checks.roofline("XL/2", torch.float16), 70, host=False),
    "roofline S/2 float16": Check(speed_checks.roofline("S/2", torch.float16), 40, host=False),
    "ONNX Runtime CUDA": Check(ort_checks.ort_cuda, 40, host=False),
}


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    packed, made = ROOT / ".gpu" / "fashion", ROOT / "build" / "demo" / "fashion"
    parser.add_argument("--bundle", type=Path, default=packed if packed.exists() else made, help="of the demo model")
    parser.add_argument("--ckpt", type=Path, default=ROOT / "models" / "fashion-dit.safetensors")
    parser.add_argument("--host", action="store_true", help="the loop's checks on the CPU")
    parser.add_argument("--small", action="store_true", help="one recorded trajectory, in this process")
    parser.add_argument("--only", default="", help="checks whose name has this in it")
    parser.add_argument("--seconds", type=float, default=330, help="for all checks together")
    parser.add_argument("--child", nargs="+", metavar="CHECK", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    given = arguments(argv)
    if not given.host and not torch.cuda.is_available():
        print("PyTorch finds no CUDA device: --host checks the loop without one", file=sys.stderr)
        return 2
    if given.child or given.small:
        with tempfile.TemporaryDirectory() as folder:
            return _work(_lab(given, Path(folder)), given.child)
    away = {"memcheck": None if shutil.which(SANITIZER) else f"{SANITIZER} is not installed"}
    away |= {"the C++ loop": cpp_checks.missing(), "ONNX Runtime CUDA": ort_checks.missing()}
    names = [name for name, check in CHECKS.items() if given.only in name]
    names = [name for name in names if not given.host or (CHECKS[name].host and not away.get(name))]
    rows = [Row(name, CHECKS[name].seconds * (HOST_SLOWER if given.host else 1)) for name in names]
    for row in rows:
        row.figures = [away[row.name]] if away.get(row.name) else row.figures
    out, about = os.environ.get("OUT"), _about(given.host)
    path = Path(out) / "gpu-check.md" if out else None
    where = ["--bundle", str(given.bundle), "--ckpt", str(given.ckpt), *(["--host"] if given.host else [])]
    command = [sys.executable, str(Path(__file__)), *where, "--child"]
    run_all([row for row in rows if not away.get(row.name)], command, given.seconds, written(rows, about, path))
    print(report(rows, about))
    return int(not rows or any(row.status != "ok" for row in rows))


def _lab(given: argparse.Namespace, folder: Path) -> Lab:
    latent = ROOT / "tests" / "bundles" / LATENT, ROOT / "tests" / "golden" / LATENT / "model.pt"
    return Lab(
        Subject(given.bundle, given.ckpt, folder / "demo", given.host),
        Subject(*latent, folder / "latent", given.host),
        lambda figures: tell(say=figures),
    )


def _work(lab: Lab, names: list[str] | None) -> int:
    """A child's checks; without names, the small one. float32 products are those of float32, not of TF32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if lab.host:
        torch.set_num_threads(1)  # small products: threads would wait for each other more than they compute
    if names is None:
        return run_here([("small", partial(loop_checks.golden_small, lab))])
    return run_here([(name, partial(CHECKS[name].run, lab)) for name in names])


def _about(host: bool) -> str:
    """Date, machine and versions."""
    said = [f"{datetime.date.today()}", f"Python {platform.python_version()}", f"PyTorch {torch.__version__}"]
    if host:
        return ", ".join([*said, "on the CPU, over a double of CUDA's calls"])
    runtime = f"CUDA {torch.version.cuda} in PyTorch, runtime {version_of(load_cudart())} here"
    return ", ".join([*said, runtime, torch.cuda.get_device_name()])


if __name__ == "__main__":
    sys.exit(main())
