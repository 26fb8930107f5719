"""One guided step of a DiT: PyTorch eager, ONNX Runtime float32 and int8, in turns, with ratios.

    python bench/step_latency.py --size S                                  # DiT-S/2 at 256, random weights
    python bench/step_latency.py --size XL --threads 2 --int8 build/xl-int8
    python bench/step_latency.py --engine build/demo/fashion --ckpt models/fashion-dit.safetensors --heads 3

Every contender has a process of its own, so that thread pools do not disturb each other, and rounds are interleaved
(torch, float32, int8, torch, ...), so that whatever else the machine does hits all alike. A step is 2 network
evaluations per image: guidance. PyTorch runs the reference network alone, both evaluations in one batch, without the
sampler's update; the bundles run their whole step graph. int8 is `--int8 BUNDLE`, or ONNX Runtime's quantize_dynamic of
every MatMul and Gemm (per-channel int8 weights, uint8 activations per tensor), which is made on the spot.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from ditedge.calibration.quality.stopwatch import Laps, bundle_contender, interleave, serve  # noqa: E402
from ditedge.runtime import EngineOptions, open_bundle  # noqa: E402
from ditedge.runtime.files import sha256_of_file  # noqa: E402

GUIDANCE = 4.0


def torch_step(checkpoint: Path, heads: int | None, batch: int, threads: int) -> Callable[[], None]:
    """The reference network in PyTorch eager, float32: 2 x batch evaluations at one timestep."""
    import torch

    from ditedge.export import read_checkpoint

    if threads:
        torch.set_num_threads(threads)
    source = read_checkpoint(checkpoint, heads=heads)
    model, config = source.model(), source.config
    torch.manual_seed(0)
    x = torch.randn(batch, config.in_channels, config.input_size, config.input_size).repeat(2, 1, 1, 1)
    timestep = torch.full((2 * batch,), 500.0)
    labels = torch.arange(2 * batch) % config.num_classes
    labels[batch:] = config.num_classes if config.null_class else 0

    def step() -> None:
        with torch.inference_mode():
            model(x, timestep, labels)

    return step


def dynamic_int8(bundle: Path, out: Path) -> Path:
    """A copy of `bundle` whose step graph's MatMul and Gemm are ONNX Runtime's dynamic int8."""
    from onnxruntime.quantization import quantize_dynamic

    info = open_bundle(bundle).manifest.graphs["step"]
    shutil.copytree(bundle, out)
    source, target = bundle / info.file, out / info.file
    large = sum(file.stat().st_size for file in bundle.glob(f"{info.file}*")) > 1 << 30
    for file in out.glob(f"{info.file}*"):
        file.unlink()
    quantize_dynamic(
        source, target, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, use_external_data_format=large
    )
    manifest = json.loads((out / "manifest.json").read_text())
    files = {name: entry for name, entry in manifest["files"].items() if not name.startswith(info.file)}
    for file in out.glob(f"{info.file}*"):
        files[file.name] = {"sha256": sha256_of_file(file), "bytes": file.stat().st_size}
    (out / "manifest.json").write_text(json.dumps(manifest | {"files": files}))
    return out


def table(names: list[str], laps: list[Laps]) -> str:
    """Medians, ranges and, per pair, the median over rounds of the ratio of times in one round."""
    lines = []
    for name, lap in zip(names, laps, strict=True):
        ms = 1000 * lap.seconds
        lines.append(
            f"{name:22} median {np.median(ms):9.1f} ms   min {ms.min():9.1f}   max {ms.max():9.1f}   "
            f"peak memory {lap.peak_bytes / 1e9:5.2f} GB"
        )
    for i, slow in enumerate(names):
        for j in range(i + 1, len(names)):
            ratio = laps[i].seconds / laps[j].seconds
            lines.append(
                f"{names[j]} over {slow}: {np.median(ratio):.2f}x faster ({ratio.min():.2f} to {ratio.max():.2f})"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["S", "B", "L", "XL"], default="S", help="patch 2, 256 px, random weights")
    parser.add_argument("--engine", type=Path, help="a float32 bundle instead; PyTorch runs when --ckpt is given")
    parser.add_argument("--ckpt", type=Path, help="the checkpoint of --engine")
    parser.add_argument("--heads", type=int, help="of --ckpt, when it has no standard size")
    parser.add_argument("--int8", type=Path, help="an int8 bundle of the same model [default: quantize_dynamic]")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="0: each library's default")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", nargs=4, metavar="X", help=argparse.SUPPRESS)  # checkpoint, heads, batch, threads
    arguments = parser.parse_args()
    if arguments.worker:
        checkpoint, heads, batch, threads = arguments.worker
        serve(lambda: torch_step(Path(checkpoint), int(heads) or None, int(batch), int(threads)))
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(arguments, Path(folder))


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    bundle, checkpoint, heads = arguments.engine, arguments.ckpt, arguments.heads or 0
    what = str(bundle)
    if bundle is None:
        from export_size import random_checkpoint

        what = f"DiT-{arguments.size}/2 at 256"
        checkpoint, bundle = folder / "random.pt", folder / "float32"
        random_checkpoint(arguments.size, 256, 2, checkpoint)
        command = [sys.executable, ROOT / "cli.py", "export", "--ckpt", checkpoint, "--out", bundle]
        subprocess.run(command, check=True, stdout=sys.stderr)
    int8 = arguments.int8
    if int8 is None:
        print("quantize_dynamic", file=sys.stderr)
        int8 = dynamic_int8(bundle, folder / "int8")
    options = EngineOptions(threads=arguments.threads)
    names, commands = [], []
    if checkpoint is not None:
        worker = [str(checkpoint), str(heads), str(arguments.batch), str(arguments.threads)]
        names.append("PyTorch eager")
        commands.append([sys.executable, str(Path(__file__).resolve()), "--worker", *worker])
    for name, contender in (("ONNX Runtime float32", bundle), ("ONNX Runtime int8", int8)):
        names.append(name)
        commands.append(bundle_contender(contender, options, arguments.batch, GUIDANCE))
    laps = interleave(commands, arguments.rounds, lambda what, done, total: print(f"{done}/{total}", file=sys.stderr))
    if arguments.json:
        rows = {
            name: {"seconds": lap.seconds.tolist(), "peak_bytes": lap.peak_bytes}
            for name, lap in zip(names, laps, strict=True)
        }
        print(json.dumps({"model": what, "batch": arguments.batch, "threads": arguments.threads, "rows": rows}))
        return
    print(f"{what}, batch {arguments.batch}, one guided step, {arguments.rounds} interleaved rounds")
    print(table(names, laps))


if __name__ == "__main__":
    main()
