"""Steps against quality for every sampler, on the demo model: the table and the figure of docs/samplers.md.

    python bench/samplers.py --engine build/demo/fashion --out docs/samplers.json      # hours on 2 cores; resumable

Each row: 2,000 samples (200 a class, seeds 0 to 1,999) of one sampler at one number of network evaluations, guided
at every step or only inside an interval of sigma. Accuracy, kernel and Frechet distance as in bench/quality.py. Rows
that are in the output file already are not measured again; `--table` prints the file as Markdown, `--figure FILE.png`
draws it (pip install matplotlib).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench"), str(ROOT / "examples")]

from quality import image_features, measure, real_images, real_like  # noqa: E402

from ditedge.runtime import Program, Session, generate, open_bundle  # noqa: E402
from ditedge.runtime.bundle.open import Bundle  # noqa: E402
from ditedge.runtime.files import write_text  # noqa: E402

SAMPLERS: dict[str, dict[str, Any]] = {
    "DDPM": {"sampler": "ddpm"},
    "DDIM": {"sampler": "ddim"},
    "DPM-Solver++ 2": {"sampler": "dpm++", "order": 2},
    "UniPC 2": {"sampler": "unipc", "order": 2},
    "Heun": {"sampler": "heun"},
}
EVALUATIONS = (10, 20, 6, 4, 50)
COUNT = 2000


def program_of(bundle: Bundle, sampler: str, evaluations: int, interval: tuple[float, float] | None) -> Program:
    """The sampler's program of at most this many network evaluations (Heun: 2 N - 1)."""
    steps = (evaluations + 1) // 2 if sampler == "Heun" else evaluations
    return bundle.program(steps=steps, guidance_interval=interval, **SAMPLERS[sampler])


def rows_to_measure(interval: tuple[float, float]) -> list[dict[str, Any]]:
    return [
        {"sampler": sampler, "evaluations": evaluations, "interval": list(chosen) if chosen else None}
        for chosen in (None, interval)
        for evaluations in EVALUATIONS
        for sampler in SAMPLERS
    ]


def table(results: dict[str, Any]) -> str:
    lines = [
        "| sampler | evaluations | guided | forward passes | accuracy | kernel distance x 1000 | Frechet distance |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(results["rows"], key=lambda r: (r["sampler"], r["interval"] is not None, r["evaluations"])):
        guided = "every step" if row["interval"] is None else f"{row['guided_steps']} of {row['steps']} steps"
        lines.append(
            f"| {row['sampler']} | {row['steps']} | {guided} | {passes(row)} | {100 * row['accuracy']:.1f} % | "
            f"{1000 * row['kernel_distance']:.2f} | {row['frechet_distance']:.3f} |"
        )
    floor = results["real_training_images"]
    lines.append(
        f"| real training images | | | | {100 * floor['accuracy']:.1f} % | {1000 * floor['kernel_distance']:.2f} | "
        f"{floor['frechet_distance']:.3f} |"
    )
    return "\n".join(lines)


def passes(row: dict[str, Any]) -> int:
    """Forward passes of the network per image: a guided step takes two. What a run costs."""
    return int(row["steps"] + row["guided_steps"])


def draw(results: dict[str, Any], path: Path) -> None:
    """Quality against forward passes: Frechet distance and accuracy, solid guided at every step, dashed inside the
    interval. Colours of Okabe & Ito, which colour-blind readers can tell apart."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained", dpi=150)
    left, right = figure.subplots(1, 2)
    for colour, sampler in zip(("#000000", "#E69F00", "#0072B2", "#009E73", "#CC79A7"), SAMPLERS, strict=True):
        for guided_inside, style in ((False, "-"), (True, "--")):
            chosen = [r for r in results["rows"] if r["sampler"] == sampler and bool(r["interval"]) == guided_inside]
            rows = sorted(chosen, key=passes)
            costs = [passes(row) for row in rows]
            label = sampler if not guided_inside else None
            plot = {"color": colour, "linestyle": style, "marker": "o", "markersize": 4, "label": label}
            left.plot(costs, [row["frechet_distance"] for row in rows], **plot)
            right.plot(costs, [100 * row["accuracy"] for row in rows], **plot)
    floor = results["real_training_images"]
    left.set_yscale("log")
    left.set_ylim(top=10)
    left.set_ylabel("Frechet distance to held-out images (lower is better)")
    right.axhline(100 * floor["accuracy"], color="grey", linewidth=1, label="real training images")
    right.set_ylim(85, 100)
    right.set_ylabel("classifier takes it for the class asked for, %")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks([6, 10, 20, 40, 100], ["6", "10", "20", "40", "100"])
        axes.minorticks_off()
        axes.set_xlabel("forward passes of the network per image")
        axes.grid(alpha=0.3)
    right.legend(loc="lower right")
    figure.suptitle("Solid: guided at every step. Dashed: guided only while sigma is inside the interval.", fontsize=10)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, default=ROOT / "build" / "demo" / "fashion")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "samplers.json")
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--interval", type=float, nargs=2, default=(0.3, 5.0), help="sigma, low and high")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--table", action="store_true", help="print what is measured already, and stop")
    parser.add_argument("--figure", type=Path, help="draw what is measured already, and stop")
    arguments = parser.parse_args()
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"rows": []}
    if arguments.table:
        print(table(results))
    if arguments.figure:
        draw(results, arguments.figure)
        print(f"wrote {arguments.figure}")
    if arguments.table or arguments.figure:
        return
    classifier = ROOT / "models" / "fashion_classifier.onnx"
    bundle = open_bundle(arguments.engine)
    labels = np.arange(COUNT) % 10
    _, real = image_features(classifier, real_images("test")[0])
    results |= {"count": COUNT, "guidance": arguments.guidance, "source_sha256": bundle.manifest.source_sha256}
    results["real_training_images"] = measure(real_like(labels), labels, real, classifier)
    done = [{key: row[key] for key in ("sampler", "evaluations", "interval")} for row in results["rows"]]
    todo = [row for row in rows_to_measure(tuple(arguments.interval)) if row not in done]
    with Progress() as progress, Session(bundle) as session:
        overall, current = progress.add_task("rows", total=len(todo)), progress.add_task("samples")
        for row in todo:
            interval = tuple(row["interval"]) if row["interval"] else None
            program = program_of(bundle, row["sampler"], row["evaluations"], interval)
            progress.update(current, description=program.name, completed=0)
            start = time.perf_counter()
            images = generate(
                bundle,
                labels.tolist(),
                seeds=range(COUNT),
                program=program,
                guidance=arguments.guidance,
                batch=arguments.batch,
                on_step=lambda p: progress.update(current, completed=p.done, total=p.total),
                session=session,
            )
            row |= {"steps": program.steps, "guided_steps": int(np.count_nonzero(program.guidance))}
            row |= {"seconds": round(time.perf_counter() - start, 1)} | measure(images, labels, real, classifier)
            results["rows"].append(row)
            write_text(arguments.out, json.dumps(results, indent=1) + "\n")
            progress.advance(overall)
    print(table(results))


if __name__ == "__main__":
    main()
