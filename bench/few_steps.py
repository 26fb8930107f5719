"""The figure of docs/few-steps.md: what `tune` found beside the rows of docs/samplers.md, by forward passes.

    python bench/few_steps.py        # writes docs/few-steps.svg from docs/samplers.json and docs/few-steps.json

Both files are of the demo model and the same pictures: seeds 0 on, classes cycled, features of
models/fashion_classifier.onnx, 10,000 held-out pictures as the reference. docs/few-steps.json is a `tune.json`, so
`ditedge tune --start docs/few-steps.json --trials 0 --refine 0 ...` measures its programs again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.svg import standalone  # noqa: E402
from ditedge.calibration.tune.front import front  # noqa: E402
from ditedge.calibration.tune.plot import Mark, plot  # noqa: E402
from ditedge.calibration.tune.record import read_tuned  # noqa: E402
from ditedge.runtime.files import write_text  # noqa: E402

WORST = 8.0  # of the rows that are shown
STYLE = (
    "text{font:13px sans-serif;fill:#5c6573}.rule{stroke:#e1e5ea}.tried{fill:#9aa4b2}.found{fill:#d9822b}"
    ".noise{stroke:#d9822b;stroke-width:1.6}.line{fill:none;stroke:#9aa4b2;stroke-width:1.5}"
)


def marks_of_samplers(path: Path) -> list[Mark]:
    """The rows of docs/samplers.json that are not far worse than the others."""
    rows = json.loads(path.read_text())["rows"]
    names = [f"{row['sampler']}, {row['steps']} steps, {row['guided_steps']} guided" for row in rows]
    passes = [row["steps"] + row["guided_steps"] for row in rows]
    marks = [Mark(x, row["frechet_distance"], name, "tried") for x, row, name in zip(passes, rows, names, strict=True)]
    return [mark for mark in marks if mark.y < WORST]


def main() -> None:
    before = marks_of_samplers(ROOT / "docs" / "samplers.json")
    tuned = read_tuned(ROOT / "docs" / "few-steps.json")
    found = [
        Mark(one.passes, one.figures.distance, f"{one.engine}: {one.name}", "found", one.figures.noise)
        for one in tuned.measured
    ]
    points = [(mark.x, mark.y) for mark in before]
    line = [points[i] for i in front(points)]
    svg = plot([*before, *found], line, "forward passes of the network per image", "Frechet distance")
    back = f'<style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>'
    write_text(ROOT / "docs" / "few-steps.svg", standalone(svg, back))
    print("wrote docs/few-steps.svg")


if __name__ == "__main__":
    main()
