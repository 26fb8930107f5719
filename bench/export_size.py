"""Time and memory of an export, for the standard sizes with random weights.

    python bench/export_size.py --model XL      # DiT-XL/2 at 256: the claim is under 3 minutes and 12 GB

The weights are random but not the reference's initial ones: those are zero in adaLN and the final layer, so the network
would output zeros and hide every error. The export runs in a process of its own, with all its checks.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ditedge.export.networks.dit import DiT, DiTConfig  # noqa: E402

SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}  # D, L, heads


def random_checkpoint(model: str, image_size: int, patch: int, path: Path) -> int:
    """Writes a flat .pt of random weights; returns the number of parameters."""
    torch.manual_seed(0)
    hidden, depth, heads = SIZES[model]
    with torch.device("meta"):
        expected = DiT(DiTConfig(image_size // 8, patch, 4, hidden, depth, heads, 1000)).state_dict()
    state = {}
    for key, tensor in expected.items():
        fan_in = tensor[0].numel() if tensor.ndim > 1 else 1
        state[key] = torch.randn(tensor.shape) * (0.02 if tensor.ndim == 1 else fan_in**-0.5)
    torch.save(state, path)
    return sum(tensor.numel() for tensor in state.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, default="XL")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--patch", type=int, default=2)
    parser.add_argument("--keep", type=Path, default=None, help="move the bundle here instead of deleting it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, bundle = Path(folder) / "random.pt", Path(folder) / "bundle"
        parameters = random_checkpoint(arguments.model, arguments.image_size, arguments.patch, checkpoint)
        start = time.perf_counter()
        subprocess.run([sys.executable, ROOT / "cli.py", "export", "--ckpt", checkpoint, "--out", bundle], check=True)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        size = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file()) / 1e9
        print(
            f"DiT-{arguments.model}/{arguments.patch} at {arguments.image_size}: {parameters / 1e6:.1f} M parameters, "
            f"exported and checked in {seconds:.0f} s, peak memory {peak:.1f} GB, bundle {size:.2f} GB"
        )
        if arguments.keep:
            shutil.move(bundle, arguments.keep)


if __name__ == "__main__":
    main()
