"""How near this machine's limit the graphs of bundles come, for several batches and numbers of threads.

    python -m bench.roofline --engine build/demo/fashion --engine build/demo/fashion-int8
    python -m bench.roofline --engine xl --engine xl-int8 --batch 1 --batch 8 --threads 0 --json roofline.json
    python -m bench.roofline --engine xl-int8-static --provider openvino --batch 1 --threads 0

The limit of a graph: its multiply-adds, each at the measured peak of its arithmetic, or its weights, inputs and outputs
at the measured speed of memory, whichever takes longer. Peaks are measured before every bundle and after the last one;
the best counts, so a disturbed moment makes a fraction too small, never too large. A graph's work is that of its nodes
on ONNX Runtime, and a product's peak ONNX Runtime's, whatever engine is timed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench.roofline.limits import limits_of  # noqa: E402
from bench.roofline.peaks import measure_peaks  # noqa: E402
from bench.roofline.profiles import graphs_of, profiled  # noqa: E402
from ditedge.runtime.bench.machine import this_machine  # noqa: E402
from ditedge.runtime.bench.table import figures  # noqa: E402
from ditedge.runtime.errors import DitedgeError  # noqa: E402
from ditedge.runtime.files import check_writable, write_text  # noqa: E402
from ditedge.runtime.processors import thread_count  # noqa: E402
from ditedge.terminal import progress, say  # noqa: E402

GRAPH_HEAD = "| bundle | graph | batch | threads | ms | ms an image | GMAC | limit ms | binds | of the limit |"
KIND_HEAD = "| bundle | layers | share of time | ms | GMAC | of their limit |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, action="append", required=True, help="a bundle; repeat it")
    parser.add_argument("--batch", type=int, action="append", help="repeat it [default: 1, 2, 4, 8]")
    parser.add_argument("--threads", type=int, action="append", help="repeat it; 0: every core [default: 1, 2, 0]")
    parser.add_argument("--provider", choices=("cpu", "openvino"), default="cpu", help="what is timed [default: cpu]")
    parser.add_argument("--json", type=Path, help="write everything here")
    given = parser.parse_args()
    threads = sorted({thread_count(number) for number in given.threads or (1, 2, 0)})
    try:
        if given.json is not None:
            check_writable(given.json)
        with progress() as report:
            found = measure(given.engine, given.batch or [1, 2, 4, 8], threads, report, given.provider)
    except DitedgeError as error:
        sys.exit(f"Error: {error}")
    if given.json is not None:
        write_text(given.json, json.dumps(found, indent=1) + "\n")
    say(markdown(found))


def measure(
    engines: Sequence[Path], batches: Sequence[int], threads: Sequence[int], report: Any, provider: str = "cpu"
) -> dict[str, Any]:
    """Everything, as JSON: the machine, the peaks by number of threads, a row of each graph."""
    peaks: dict[int, dict[str, float]] = {number: {} for number in threads}
    profiles = []
    for path in engines:
        given = {batch: graphs_of(path, batch) for batch in batches}
        for number in threads:
            _better(peaks[number], number, report)
            for batch, graphs in given.items():
                report(f"{path.name}: batch {batch}, {number} thread(s)")
                for graph, (file, inputs) in graphs.items():
                    profiles.append((path.name, graph, batch, number, profiled(file, inputs, number, provider)))
    for number in threads:
        _better(peaks[number], number, report)
    rows = []
    for bundle, graph, batch, number, profile in profiles:
        whole, kinds = limits_of(graph, profile, peaks[number])
        row = {"bundle": bundle, "provider": provider, "batch": batch, "threads": number, **whole.json()}
        rows.append(row | {"kinds": [kind.json() for kind in kinds if provider == "cpu"]})  # ONNX Runtime's times
    return {"machine": this_machine().model_dump(), "peaks": peaks, "rows": rows}


def _better(peaks: dict[str, float], threads: int, report: Any) -> None:
    report(f"peaks of {threads} thread(s)")
    for name, peak in measure_peaks(threads).items():
        peaks[name] = max(peaks.get(name, 0.0), peak)


def markdown(found: dict[str, Any]) -> str:
    """Tables for docs/performance.md."""
    machine = found["machine"]
    lines = [f"{machine['processor']}, {machine['processors']} processors ({machine['kernels']}), load "
             f"{machine['load']}.", "", *_peaks(found["peaks"]), "", GRAPH_HEAD, _rule(GRAPH_HEAD)]  # fmt: skip
    for row in found["rows"]:
        limit, macs = max(row["compute_ms"], row["memory_ms"]), _macs(row)
        name = row["bundle"] if row.get("provider", "cpu") == "cpu" else f"{row['bundle']} on {row['provider']}"
        told = (name, row["name"], row["batch"], row["threads"], figures(row["milliseconds"]),
                figures(row["milliseconds"] / row["batch"]), macs, figures(limit), row["binds"],
                f"{row['fraction']:.0%}")  # fmt: skip
        lines.append(_row(told))
    lines += ["", KIND_HEAD, _rule(KIND_HEAD)]
    most = max(row["threads"] for row in found["rows"])
    for row in found["rows"]:
        if row["name"] == "step" and row["batch"] == 1 and row["threads"] == most:
            lines += [_row((row["bundle"], kind["name"], f"{kind['share']:.0%}", figures(kind["milliseconds"]),
                            _macs(kind), f"{kind['fraction']:.0%}")) for kind in row["kinds"]]  # fmt: skip
    return "\n".join(lines)


def _peaks(peaks: dict[int, dict[str, float]]) -> list[str]:
    names = list(next(iter(peaks.values())))
    head = "| threads | " + " | ".join("memory, GB/s" if n == "memory" else f"{n}, GOP/s" for n in names) + " |"
    rows = [
        _row((number, *(f"{own[name] * (1 if name == 'memory' else 2) / 1e9:.0f}" for name in names)))
        for number, own in peaks.items()
    ]
    return [head, _rule(head), *rows]


def _macs(row: dict[str, Any]) -> str:
    return ", ".join(f"{macs:.3g} {name}" for name, macs in row["gigamacs"].items() if macs)


def _rule(head: str) -> str:
    return "|" + "---|" * (head.count("|") - 1)


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    main()
