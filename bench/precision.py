"""16-bit graphs against float32 on the demo model: trajectory error, accuracy and Frechet distance at the same seeds.

    python bench/precision.py --engine build/demo/fashion                  # 2,000 samples a row: half an hour
    python bench/precision.py --engine build/demo/fashion --count 200

Rows: float32; fp16 as ONNX Runtime's CPU provider runs it (chains of float16 nodes in float32); fp16 and bf16 rounded
after every 16-bit node, as GPUs do (`emulated` in calibration/graph/lowering.py). Golden: relative error of the latents
after the last step of the bundle's recorded PyTorch trajectories. PSNR: pixels against float32's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.progress import Progress

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench"), str(ROOT / "examples")]

from quality import image_features, measure, real_images  # noqa: E402

from ditedge.calibration import psnr  # noqa: E402
from ditedge.calibration.convert import convert_bundle, emulated_engines  # noqa: E402
from ditedge.calibration.options import ConvertOptions  # noqa: E402
from ditedge.runtime import EngineOptions, Session, generate, open_bundle  # noqa: E402
from ditedge.runtime.loop.verify import replay  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, default=ROOT / "build" / "demo" / "fashion")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    classifier = ROOT / "models" / "fashion_classifier.onnx"
    labels = np.arange(arguments.count) % 10
    _, real = image_features(classifier, real_images("test")[0])
    options = EngineOptions(threads=arguments.threads)
    with tempfile.TemporaryDirectory() as folder, Progress() as progress:
        scratch = Path(folder)
        convert_bundle(arguments.engine, scratch / "fp16", ConvertOptions("fp16"))
        convert_bundle(arguments.engine, scratch / "bf16", ConvertOptions("bf16"))
        rows = {
            "float32": (arguments.engine, False),
            "fp16, ONNX Runtime CPU": (scratch / "fp16", False),
            "fp16, every node rounded": (scratch / "fp16", True),
            "bf16, every node rounded": (scratch / "bf16", True),
        }
        exact: np.ndarray | None = None
        lines = []
        for name, (path, rounded) in rows.items():
            bundle = open_bundle(path)
            (scratch / name).mkdir()
            engines = emulated_engines(bundle, scratch / name, options) if rounded else None
            bar = progress.add_task(name)
            with Session(bundle, options, engines) as session:
                golden = max(replay(session, recorded).error[-1] for recorded in bundle.manifest.golden)
                images = generate(
                    bundle,
                    labels.tolist(),
                    seeds=range(arguments.count),
                    batch=arguments.batch,
                    session=session,
                    on_step=lambda p, bar=bar: progress.update(bar, completed=p.done, total=p.total),
                )
            exact = images if exact is None else exact
            found = measure(images, labels, real, classifier)
            lines.append(
                f"| {name} | {golden:.1e} | {psnr(images, exact):.1f} dB | {100 * found['accuracy']:.2f} % | "
                f"{1000 * found['kernel_distance']:.2f} | {found['frechet_distance']:.3f} |"
            )
    program = open_bundle(arguments.engine).program().name
    print(f"{arguments.count} samples, {program}")
    print("| graphs | golden, last step | PSNR | accuracy | kernel distance x 1000 | Frechet distance |")
    print("|---|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
