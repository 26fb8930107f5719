"""Time and memory of building a bundle's plans with TensorRT-RTX ahead of time, for the standard sizes, random weights.

    python bench/build_size.py --model XL --precision fp16     # the claim is under 2 minutes and 8 GB
    python bench/build_size.py --bundle dit-xl-2-256           # a bundle that is there

The export (random weights as in bench/export_size.py, deleted afterwards) and the build are processes of their own, so
the peak memory is the build's alone. No GPU is used.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bench"))


def measured(command: list[str]) -> tuple[float, float]:
    """Runs a command -> (seconds, peak resident GB of that process alone). Exits when it fails."""
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {' '.join(command)}")
    return time.perf_counter() - start, usage.ru_maxrss / 1e6


def export(model: str, image_size: int, precision: str | None, bundle: Path) -> None:
    """Random weights -> bundle."""
    from export_size import random_checkpoint

    checkpoint = bundle.with_name("random.pt")
    random_checkpoint(model, image_size, 2, checkpoint)
    command = [sys.executable, str(ROOT / "cli.py"), "export", "--ckpt", str(checkpoint), "--out", str(bundle)]
    subprocess.run([*command, *(["--precision", precision] if precision else [])], check=True)
    checkpoint.unlink()


def build(bundle: Path, arch: str, max_batch: int) -> None:
    command = [sys.executable, str(ROOT / "cli.py"), "build", "--engine", str(bundle), "--target", "tensorrt-rtx"]
    seconds, peak = measured([*command, "--arch", arch, "--max-batch", str(max_batch), "--force"])
    plans = bundle / "engines" / "tensorrt-rtx"
    size = sum(file.stat().st_size for file in plans.iterdir()) / 1e9
    print(f"{bundle.name} for {arch}: built in {seconds:.0f} s, peak memory {peak:.1f} GB, plans {size:.2f} GB")
    shutil.rmtree(plans)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("S", "B", "L", "XL"), default="XL")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--precision", choices=("fp16", "bf16"), help="default: float32")
    parser.add_argument("--arch", default="sm86")
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--bundle", type=Path, help="use this bundle instead; its TensorRT-RTX plans are replaced")
    arguments = parser.parse_args()
    if arguments.bundle:
        build(arguments.bundle, arguments.arch, arguments.max_batch)
        return
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / f"DiT-{arguments.model}-2-{arguments.image_size}"
        export(arguments.model, arguments.image_size, arguments.precision, bundle)
        build(bundle, arguments.arch, arguments.max_batch)


if __name__ == "__main__":
    main()
