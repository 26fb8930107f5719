"""What each part of quantisation is worth, on the demo model: the ablation table of docs/quantization.md.

    python bench/quantization.py --engine build/demo/fashion                      # about 2 hours on 2 cores; resumable
    python bench/quantization.py --engine build/demo/fashion --count 500 --out build/quantization-500.json
    python bench/quantization.py --table                                          # what is measured already

Each row is one bundle from `ditedge quantize`, sampled with seeds 0, 1, ... and cycled classes. Accuracy, kernel and
Frechet distance are those of bench/quality.py; drift is the mean over images of ||latent - float latent|| / ||float
latent||, at equal seeds. The row "other seeds" is the float bundle again with seeds from 1,000,000 on: what two sets of
the same model differ by anyhow. Rows that are in the output file already are not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench"), str(ROOT / "examples")]

from quality import image_features, measure, real_images  # noqa: E402

from ditedge.calibration import psnr  # noqa: E402
from ditedge.calibration.formats.int8 import static_int8  # noqa: E402
from ditedge.calibration.graph.linears import find_linears  # noqa: E402
from ditedge.calibration.graph.surgery import load_graph  # noqa: E402
from ditedge.calibration.kept import select_linears  # noqa: E402
from ditedge.calibration.options import QuantizeOptions  # noqa: E402
from ditedge.calibration.plan import plan_of  # noqa: E402
from ditedge.calibration.pool import pool_of  # noqa: E402
from ditedge.calibration.quantize import collected, quantize_bundle, smoothed, write_step  # noqa: E402
from ditedge.calibration.statistics.sensitivity import drift  # noqa: E402
from ditedge.runtime import Program, Session, generate, open_bundle  # noqa: E402
from ditedge.runtime.bundle.open import Bundle  # noqa: E402
from ditedge.runtime.files import write_text  # noqa: E402
from ditedge.runtime.loop.engine import Engine, EngineOptions  # noqa: E402
from ditedge.runtime.loop.engines import open_engine  # noqa: E402
from ditedge.runtime.report import silent  # noqa: E402

CLASSIFIER = ROOT / "models" / "fashion_classifier.onnx"
OTHER_SEEDS = 1_000_000
GROUPS = "timestep groups"  # not an option of `quantize`: no runtime has them
TENSORRT: dict[str, Any] = {"form": "tensorrt"}
ROWS: dict[str, dict[str, Any] | None] = {  # None: the float bundle itself
    "float32": None,
    "float32, other seeds": None,
    "int8 onnxruntime: per-token": {},
    "int8 tensorrt: static, smoothed": TENSORRT,
    "int8 tensorrt: naive (one scale per tensor, all layers)": TENSORRT | {"naive": True},
    "fp8 tensorrt": TENSORRT | {"precision": "fp8"},
    "int4 weights, onnxruntime": {"precision": "int4"},
    "int8 tensorrt: static, smoothed, 4 layers kept by sensitivity": TENSORRT | {"keep_count": 4},
    "int8 onnxruntime: per-token, smoothed": {"smoothing": 0.5},
    "int8 onnxruntime: per-token, final layer too": {"protect": False},
    "int8 tensorrt: static, not smoothed": TENSORRT | {"smoothing": 0.0},
    "int8 tensorrt: static, smoothed, final layer too": TENSORRT | {"protect": False},
    "int8 tensorrt: static, smoothed, fc2 kept": TENSORRT | {"keep": ("fc2",)},
    "int8 tensorrt: static, smoothed, own scales in each timestep group": TENSORRT | {GROUPS: True},
    "int4 weights, tensorrt": TENSORRT | {"precision": "int4"},
}


def bundle_size(bundle: Bundle) -> int:
    """Bytes of the conditioner and the step graph, their .data files included."""
    return sum(bundle.manifest.graph_bytes(name) for name in ("conditioner", "step"))


def table(results: dict[str, Any]) -> str:
    lines = [
        "| | accuracy | Frechet distance | kernel distance x 1000 | drift | PSNR, dB | size, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        near = f"{100 * row['drift']:.2f} % | {row['psnr']:.1f}" if row["drift"] is not None else "|"
        lines.append(
            f"| {row['name']} | {100 * row['accuracy']:.1f} % | {row['frechet_distance']:.3f} | "
            f"{1000 * row['kernel_distance']:.2f} | {near} | {row['bytes'] / 1e6:.2f} |"
        )
    return "\n".join(lines)


def step_graphs_of_groups(source: Path, options: QuantizeOptions, folder: Path) -> list[Path]:
    """The static step graph once per timestep group, in the order of sampling, each with its own group's scales.

    No runtime switches graphs within a trajectory: this is for measuring what timestep groups would be worth.
    """
    bundle = open_bundle(source)
    plan = plan_of(bundle, options)
    exact, found = smoothed(bundle, collected(bundle, pool_of(bundle), plan, options, silent), plan, folder)
    layers, paths = found.layers, []
    _, kept = select_linears(find_linears(load_graph(exact.graph_file("step"))), options)
    for group in range(len(next(iter(layers.values())).rows)):
        ranges = {
            name: float(np.maximum(np.abs(layer.channel_max[group]), np.abs(layer.channel_min[group])).max())
            for name, layer in layers.items()
        }
        (folder / f"group-{group}").mkdir(exist_ok=True)
        write_step(exact, folder / f"group-{group}", partial(static_int8, amax=ranges), kept)
        paths.append(folder / f"group-{group}" / exact.manifest.graphs["step"].file)
    return paths


class GroupedSteps:
    """An engine that runs another step graph in each timestep group: step i of N takes graph i * groups // N."""

    def __init__(self, paths: list[Path], steps: int, options: EngineOptions) -> None:
        self._engines = [open_engine(path, options) for path in paths]
        self._steps, self._step = steps, 0
        self.inputs = self._engines[0].inputs

    def run(self, inputs: Any, outputs: Any, cancel: Any = None) -> None:
        self._engines[self._step * len(self._engines) // self._steps].run(inputs, outputs, cancel)
        self._step = (self._step + 1) % self._steps

    def close(self) -> None:
        for engine in self._engines:
            engine.close()


def sample(
    given: argparse.Namespace, bundle: Bundle, step: Engine | None, program: Any, seeds: range, show: Any
) -> tuple[Any, Any]:
    """-> latents [n, C, H, W] float32, images [n, h, w, c] uint8. step: instead of the bundle's step graph."""
    labels = [i % bundle.manifest.model.num_classes for i in range(len(seeds))]
    engines = {"step": step} if step is not None else None
    with Session(bundle, EngineOptions(threads=given.threads), engines) as session:
        latents = generate(bundle, labels, seeds, program=program, guidance=given.guidance, batch=given.batch,
                           output="latents", on_step=lambda p: show(p.done, p.total), session=session)  # fmt: skip
        return latents, session.images(latents)


def quantised(given: argparse.Namespace, name: str, source: Bundle, steps: int) -> tuple[Bundle, Engine | None]:
    """A row's bundle, and the engine that takes the place of its step graph, if any."""
    options = ROWS[name]
    if options is None:
        return source, None
    wanted = {"sampler": given.sampler, "steps": given.steps, "force": True, **options}
    grouped = wanted.pop(GROUPS, False)
    quantize_bundle(given.engine, given.work / "bundle", QuantizeOptions(**wanted))
    bundle = open_bundle(given.work / "bundle")
    if not grouped:
        return bundle, None
    paths = step_graphs_of_groups(given.engine, QuantizeOptions(**wanted), given.work)
    return bundle, GroupedSteps(paths, steps, EngineOptions(threads=given.threads))


@dataclass(frozen=True)
class Measuring:
    """What every row is measured with."""

    given: argparse.Namespace
    source: Bundle
    program: Program
    real: Any  # features of real pictures

    def row(self, name: str, show: Any) -> dict[str, Any]:
        """A row of the table: its bundle made, sampled, compared with float32's latents (which the first row keeps)."""
        given, start = self.given, time.perf_counter()
        kept = given.work / f"float-{self.program.name}-{given.count}-{self.source.sha256[:12]}.npz"
        bundle, step = quantised(given, name, self.source, self.program.steps)
        made = time.perf_counter()
        first = OTHER_SEEDS if name == "float32, other seeds" else 0
        latents, images = sample(given, bundle, step, self.program, range(first, first + given.count), show)
        row = {"name": name, "bytes": bundle_size(bundle), "drift": None, "psnr": None}
        row |= {"quantize_seconds": round(made - start, 1), "sample_seconds": round(time.perf_counter() - made, 1)}
        if name == "float32":
            np.savez(kept, latents=latents, images=images)
        elif first == 0:
            exact = np.load(kept)
            row |= {"drift": drift(latents, exact["latents"]), "psnr": psnr(images, exact["images"])}
        if bundle.manifest.quantization is not None:
            row["kept"] = bundle.manifest.quantization.kept
        labels = np.arange(given.count) % self.source.manifest.model.num_classes
        return row | measure(images, labels, self.real, CLASSIFIER)


def arguments_given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, default=ROOT / "build" / "demo" / "fashion")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "quantization.json")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "quantization", help="folder for the bundles")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--sampler", default="dpm++")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS), help="only these")
    parser.add_argument("--table", action="store_true", help="print what is measured already, and stop")
    return parser.parse_args()


def main() -> None:
    given = arguments_given()
    results = json.loads(given.out.read_text()) if given.out.exists() else {"rows": []}
    if given.table:
        print(table(results))
        return
    source = open_bundle(given.engine)
    program = source.program(sampler=given.sampler, steps=given.steps)
    setting = {"count": given.count, "program": program.name, "guidance": given.guidance, "bundle": source.sha256}
    if results["rows"] and {key: results.get(key) for key in setting} != setting:
        sys.exit(f"{given.out} was measured with other settings: give another --out")
    results |= setting
    given.work.mkdir(parents=True, exist_ok=True)
    measuring = Measuring(given, source, program, image_features(CLASSIFIER, real_images("test")[0])[1])
    todo = [name for name in given.rows if name not in {row["name"] for row in results["rows"]}]
    with Progress() as progress:
        overall, current = progress.add_task("rows", total=len(todo)), progress.add_task("samples")
        for name in todo:
            progress.update(current, description=name, completed=0)
            show = lambda done, total: progress.update(current, completed=done, total=total)  # noqa: E731
            results["rows"].append(measuring.row(name, show))
            write_text(given.out, json.dumps(results, indent=1) + "\n")
            progress.advance(overall)
    print(table(results))


if __name__ == "__main__":
    main()
