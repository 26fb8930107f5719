"""Memory and time of decoding on the CPU: a VAE decoder of Stable Diffusion's size, random weights.

    python bench/decode_memory.py                        # 512 px: the claim is under 2 GB
    python bench/decode_memory.py --size 256 --batch 4   # as many pixels, in one run of the graph
    python bench/decode_memory.py --tiny                 # TAESD's layout

The decoder is exported as `ditedge export --vae` does it. A process of its own, without PyTorch, decodes: its peak
resident memory holds Python, ONNX Runtime, the weights and all buffers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SD_WIDTHS, SD_LAYERS, FACTOR = (128, 256, 512, 512), 2, 8


def export_random_decoder(path: Path, size: int, tiny: bool, precision: str) -> None:
    """Writes decoder.onnx for latents [B, 4, size, size]."""
    import torch

    from ditedge.export.graphs import LatentDecoder
    from ditedge.export.to_onnx import onnx_from_module
    from ditedge.export.vae import KlConfig, KlDecoder, TinyConfig, TinyDecoder, half_precision

    torch.manual_seed(0)
    if tiny:
        vae = TinyDecoder(TinyConfig(4, 3, (64,) * 4, (3, 3, 3, 1)))
    else:
        vae = KlDecoder(KlConfig(4, 3, SD_WIDTHS, SD_LAYERS))
    vae = (half_precision(vae) if precision == "float16" else vae).eval().requires_grad_(False)
    latent = torch.randn(2, 4, size, size)
    onnx_from_module(LatentDecoder(vae), {"latent": latent}, "image", {"latent": {0: "B"}}, path)


def decode(path: Path, size: int, batch: int, threads: int) -> None:
    """Decodes once and prints the peak memory [bytes] and seconds as JSON. Runs in the child process."""
    import resource
    import time

    import numpy as np

    from ditedge.runtime.engine import EngineOptions, open_engine

    latent = np.random.default_rng(0).standard_normal((batch, 4, size, size), dtype=np.float32)
    image = np.empty((batch, size * FACTOR, size * FACTOR, 3), np.uint8)
    engine = open_engine(path, EngineOptions(threads=threads))
    start = time.perf_counter()
    engine.run({"latent": latent}, {"image": image})
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    print(json.dumps({"peak_bytes": peak, "seconds": seconds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="of the picture, in pixels")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--precision", choices=["float32", "float16"], default="float32")
    parser.add_argument("--decode", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size = arguments.size // FACTOR
    if arguments.decode:
        decode(arguments.decode, size, arguments.batch, arguments.threads)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "decoder.onnx"
        export_random_decoder(path, size, arguments.tiny, arguments.precision)
        child = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--decode", path], stdout=subprocess.PIPE, check=True, text=True
        )
        megabytes = path.stat().st_size / 1e6
    result = json.loads(child.stdout)
    print(
        f"{'tiny' if arguments.tiny else 'SD'} decoder, {arguments.precision}, {megabytes:.0f} MB: {arguments.batch} x "
        f"{arguments.size} px in {result['seconds']:.1f} s, peak memory {result['peak_bytes'] / 1e9:.2f} GB"
    )


if __name__ == "__main__":
    main()
