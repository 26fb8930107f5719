"""Memory and time of decoding on the CPU: a VAE decoder of Stable Diffusion's size, random weights.

    python bench/decode_memory.py                        # 512 px: under 2 GB, for any number of pictures
    python bench/decode_memory.py --size 256 --count 8
    python bench/decode_memory.py --precision int8 --size 1024   # as `ditedge quantize` makes it: under 2 GB, too
    python bench/decode_memory.py --tiny                 # TAESD's layout
    python bench/decode_memory.py --keep-buffers         # ONNX Runtime's own defaults, which the sampler turns off

The decoder is exported as `ditedge export --vae` does it. A process of its own, without PyTorch, decodes as the sampler
does: its peak resident memory holds Python, ONNX Runtime, the weights and all buffers.
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

from ditedge.runtime.bench.turns import peak_memory  # noqa: E402
from ditedge.runtime.loop.engine import EngineOptions  # noqa: E402
from ditedge.runtime.loop.engines import open_engine  # noqa: E402
from ditedge.runtime.loop.host_loop import decode_images  # noqa: E402

SD_WIDTHS, SD_LAYERS, FACTOR = (128, 256, 512, 512), 2, 8


def export_random_decoder(path: Path, size: int, tiny: bool, precision: str) -> None:
    """Writes decoder.onnx for latents [B, 4, size, size]; precision: float32, float16 or int8."""
    import torch

    from ditedge.export.graphs.modules import LatentDecoder
    from ditedge.export.graphs.to_onnx import onnx_from_module
    from ditedge.export.networks.vae import KlConfig, KlDecoder, TinyConfig, TinyDecoder, half_precision

    torch.manual_seed(0)
    if tiny:
        vae = TinyDecoder(TinyConfig(4, 3, (64,) * 4, (3, 3, 3, 1)))
    else:
        vae = KlDecoder(KlConfig(4, 3, SD_WIDTHS, SD_LAYERS))
    vae = (half_precision(vae) if precision == "float16" else vae).eval().requires_grad_(False)
    if precision != "int8":
        latent = torch.randn(2, 4, size, size)
        onnx_from_module(LatentDecoder(vae), {"latent": latent}, "image", {"latent": {0: "B"}}, path)
        return
    from ditedge.calibration.formats.static_decoder import static_int8

    latent = torch.randn(2, 4, 16, 16)  # statistics of noise do not depend on its size
    exact = path.with_name("exact.onnx")
    onnx_from_module(LatentDecoder(vae), {"latent": latent}, "image", {"latent": {0: "B", 2: "H", 3: "W"}}, exact)
    static_int8(exact, path, latent.numpy())


def decode(path: Path, size: int, count: int, options: EngineOptions) -> None:
    """Decodes `count` pictures and prints the peak memory [bytes] and seconds as JSON. Runs in the child process."""
    import time

    import numpy as np

    latent = np.random.default_rng(0).standard_normal((count, 4, size, size), dtype=np.float32)
    engine = open_engine(path, options)
    start = time.perf_counter()
    decode_images(engine, latent, (size * FACTOR, size * FACTOR, 3))
    seconds = (time.perf_counter() - start) / count
    print(json.dumps({"peak_bytes": peak_memory(), "seconds_per_picture": seconds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="of the picture, in pixels")
    parser.add_argument("--count", type=int, default=3, help="pictures to decode")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--precision", choices=["float32", "float16", "int8"], default="float32")
    parser.add_argument("--keep-buffers", action="store_true")
    parser.add_argument("--decode", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size = arguments.size // FACTOR
    if arguments.decode:
        options = EngineOptions(threads=arguments.threads, keep_buffers=arguments.keep_buffers)
        decode(arguments.decode, size, arguments.count, options)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "decoder.onnx"
        export_random_decoder(path, size, arguments.tiny, arguments.precision)
        child = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--decode", path], stdout=subprocess.PIPE, check=True, text=True
        )
        megabytes = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*")) / 1e6
    result = json.loads(child.stdout)
    name = "tiny" if arguments.tiny else "SD"
    print(
        f"{name} decoder, {arguments.precision}, {megabytes:.0f} MB: {arguments.count} x {arguments.size} px, "
        f"{result['seconds_per_picture']:.1f} s each, peak memory {result['peak_bytes'] / 1e9:.2f} GB"
    )


if __name__ == "__main__":
    main()
