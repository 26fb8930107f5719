"""Time and memory of an export, for the standard sizes with random weights.

    python bench/export_size.py --model XL         # DiT-XL/2 at 256: the claim is under 3 minutes and 12 GB
    python bench/export_size.py --model sana-0.6b  # a transformer folder of prompts, at its own size: under 14 GB

The weights are random but not the reference's initial ones: those are zero in adaLN and the final layer, so the network
would output zeros and hide every error. The export runs in a process of its own, with all its checks and the replay of
the recorded trajectories on ONNX Runtime.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

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


PIXART = {
    "_class_name": "PixArtTransformer2DModel",
    "caption_channels": 4096,
    "sample_size": 64,
    "interpolation_scale": 1,
}
SANA = {
    "_class_name": "SanaTransformer2DModel",
    "num_attention_heads": 36,
    "num_layers": 28,
    "cross_attention_dim": 1152,
}
FOLDERS: dict[str, dict[str, Any]] = {  # config.json of networks that take prompts
    "pixart-sigma": PIXART | {"use_additional_conditions": False},
    "sana-0.6b": SANA | {"num_cross_attention_heads": 16, "cross_attention_head_dim": 72},
}


def random_folder(config: dict[str, Any], folder: Path) -> int:
    """Writes a diffusers transformer folder of random weights; returns the number of parameters."""
    import diffusers
    from safetensors.torch import save_file

    torch.manual_seed(0)
    with torch.device("meta"):
        expected = getattr(diffusers, config["_class_name"]).from_config(config).state_dict()
    state = {}
    for key, tensor in expected.items():
        fan_in = tensor[0].numel() if tensor.ndim > 1 else 1
        ones = "norm" in key and tensor.ndim == 1
        state[key] = torch.randn(tensor.shape) * (0.02 if tensor.ndim == 1 else fan_in**-0.5) + float(ones)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    return sum(tensor.numel() for tensor in state.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[*SIZES, *FOLDERS], default="XL")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--patch", type=int, default=2)
    parser.add_argument("--golden-steps", type=int, default=4, help="steps of the recorded trajectories")
    parser.add_argument("--keep", type=Path, default=None, help="move the bundle here instead of deleting it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, bundle, name = Path(folder) / "random.pt", Path(folder) / "bundle", arguments.model
        if name in FOLDERS:
            parameters = random_folder(FOLDERS[name], checkpoint)
        else:
            parameters = random_checkpoint(name, arguments.image_size, arguments.patch, checkpoint)
            name = f"DiT-{name}/{arguments.patch} at {arguments.image_size}"
        start = time.perf_counter()
        command = [sys.executable, ROOT / "cli.py", "export", "--ckpt", checkpoint, "--out", bundle]
        subprocess.run([*command, "--golden-steps", str(arguments.golden_steps)], check=True)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        size = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file()) / 1e9
        print(
            f"{name}: {parameters / 1e6:.1f} M parameters, "
            f"exported, checked and replayed in {seconds:.0f} s, peak memory {peak:.1f} GB, bundle {size:.2f} GB"
        )
        if arguments.keep:
            shutil.move(bundle, arguments.keep)


if __name__ == "__main__":
    main()
