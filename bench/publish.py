"""Measures docs/benchmarks.md and docs/performance.md again, with their figures: `make bench`, on an idle machine.

    python bench/publish.py                           # demo model and DiT-S/2, under half an hour on 2 cores
    python bench/publish.py --only every --docs /tmp/x  # one section, elsewhere

Every section stands between <!-- NAME --> and <!-- end NAME -->; what is around them is written by hand. Each section
is a command of its own, which is printed above its table; the numbers are kept as JSON beside the figure.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.roofline.__main__ import markdown  # noqa: E402
from bench.svg import standalone  # noqa: E402
from ditedge.runtime.bench.page import step_chart  # noqa: E402
from ditedge.runtime.bench.record import Record  # noqa: E402
from ditedge.runtime.bench.table import HEADS, cells, lead, reasons  # noqa: E402
from ditedge.runtime.files import write_text  # noqa: E402

BUILD = Path("build/bench")
DEMO, SMALL = Path("build/demo/fashion"), BUILD / "dit-s-2"
MARKS = "<!-- {} -->", "<!-- end {} -->"
SHOWN = [i for i, head in enumerate(HEADS) if head not in ("loop", "first ms", "busy", "p95")]
COLOURS = """<style>text{font:13px system-ui,sans-serif;fill:#5c6573}rect{fill:#1f5fd0}.whisker{stroke:#5c6573}
@media(prefers-color-scheme:dark){text{fill:#9aa4b2}rect{fill:#78a9ff}.whisker{stroke:#9aa4b2}}</style>"""


@dataclass(frozen=True)
class Section:
    """page: of docs/. command: prints or writes JSON; it is run in the checkout. to: its option for the file, or ""
    where the document is its standard output. shown: the JSON as Markdown, below a figure or without one."""

    page: str
    command: tuple[str, ...]
    to: str = "--json"
    figure: bool = True


def sections(seconds: int) -> dict[str, Section]:
    """By name. seconds: of each contender's rounds."""
    for_time = ("--repeats", "30", "--seconds", str(seconds))
    ours, peers = ("-m", "ditedge"), ("-m", "bench.peers")
    small = (*bundles_of(SMALL), "--ckpt", f"{SMALL}.pt")
    demo = (*bundles_of(DEMO), "--ckpt", "models/fashion-dit.safetensors", "--heads", "3")
    engines = [("--engine", str(path)) for path in (DEMO, f"{DEMO}-int8", SMALL, f"{SMALL}-int8")]
    return {
        "every": Section("benchmarks.md", (*ours, "bench", "--engine", str(DEMO), "--all", *for_time, "--json"), ""),
        "batch": Section("benchmarks.md", (*ours, "bench", "--engine", str(DEMO), "--engine", f"{DEMO}-int8", "--batch",
                                           "8", *for_time, "--json"), ""),
        "peers-demo": Section("benchmarks.md", (*peers, *demo, *for_time)),
        "peers-s": Section("benchmarks.md", (*peers, *small, *for_time)),
        "roofline": Section("performance.md", ("-m", "bench.roofline", *sum(engines, ())), figure=False),
    }  # fmt: skip


def static_of(bundle: Path) -> Path:
    return BUILD / f"{bundle.name}-int8-static"


def bundles_of(bundle: Path) -> tuple[str, ...]:
    """A bundle and its forms in int8, for the peers."""
    return "--engine", str(bundle), "--int8", f"{bundle}-int8", "--int8-static", str(static_of(bundle))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(sections(0)), help="this section; repeat it")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the pages are")
    parser.add_argument("--seconds", type=int, default=40, help="of the rounds of each group of contenders")
    given = parser.parse_args()
    chosen = {name: section for name, section in sections(given.seconds).items() if name in (given.only or (name,))}
    if any(str(SMALL) in section.command for section in chosen.values()):
        make_small()
    for bundle in (DEMO, SMALL):
        if any(str(static_of(bundle)) in section.command for section in chosen.values()):
            make_static(bundle)
    failed = [name for name, section in chosen.items() if not publish(name, section, given.docs)]
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


def make_small() -> None:
    """DiT-S/2 at 256 with random weights, float32 and int8, once."""
    from export_size import random_checkpoint

    (ROOT / BUILD).mkdir(parents=True, exist_ok=True)
    checkpoint = ROOT / f"{SMALL}.pt"
    if not checkpoint.exists():
        random_checkpoint("S", 256, 2, checkpoint)
    if not (ROOT / SMALL).exists():
        _python("cli.py", "export", "--ckpt", checkpoint, "--out", SMALL)
    if not (ROOT / f"{SMALL}-int8").exists():
        _python("cli.py", "quantize", "--engine", SMALL, "--out", f"{SMALL}-int8", "--count", "0")


def make_static(bundle: Path) -> None:
    """int8 with scales from calibration, which OpenVINO runs."""
    out = ROOT / static_of(bundle)
    if not out.exists():
        settings = ("--form", "tensorrt", "--samples", "4", "--count", "0")
        _python("cli.py", "quantize", "--engine", bundle, "--out", out, *settings)


def _python(*command: object) -> None:
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True, stdout=sys.stderr)


def publish(name: str, section: Section, docs: Path) -> bool:
    """Measures a section and writes it, its numbers and its figure. False when the command failed, and said why."""
    numbers = docs / "benchmarks" / f"{name}.json"
    numbers.parent.mkdir(parents=True, exist_ok=True)
    command, started = [sys.executable, *section.command], time.monotonic()
    print(f"{name}: python {' '.join(section.command)}", file=sys.stderr, flush=True)
    done = subprocess.run([*command, *([section.to, str(numbers)] if section.to else [])], cwd=ROOT, stdout=-1)
    if done.returncode:
        return False
    told = numbers.read_text() if section.to else done.stdout.decode()
    write_text(numbers, without_places(told))
    made: Callable[[str], str] = roofline_text if not section.figure else record_text
    text = f"`python {' '.join(section.command)}`\n\n{made(numbers.read_text())}"
    if section.figure:
        write_text(numbers.with_suffix(".svg"), figure(Record.model_validate_json(numbers.read_text())))
        text += f"\n\n![milliseconds of one step](benchmarks/{name}.svg)"
    page = docs / section.page
    write_text(page, replaced(page.read_text(), name, text))
    print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return True


def without_places(text: str) -> str:
    """Nothing of this machine's folders is published: temporary ones, and the checkout."""
    return re.sub(rf"{re.escape(tempfile.gettempdir())}/[^/\s]+/", "", text).replace(f"{ROOT}/", "")


def replaced(page: str, name: str, text: str) -> str:
    """The page with another text between the marks of a section. Raises ValueError where it has none."""
    begin, end = (mark.format(name) for mark in MARKS)
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(f"the page has no section {begin} ... {end}")
    return re.sub(f"(?s){re.escape(begin)}.*{re.escape(end)}", lambda _: f"{begin}\n{text}\n{end}", page)


def record_text(document: str) -> str:
    """A record as Markdown."""
    record = Record.model_validate_json(document)
    lines = [*lead(record), "", _line([HEADS[i] for i in SHOWN]), "|" + "---|" * len(SHOWN)]
    lines += [_line([cells(row)[i] for i in SHOWN]) for row in record.rows]
    told = reasons(record.rows)
    return "\n".join([*lines, *(["", *(f"- {reason}" for reason in told)] if told else [])])


def roofline_text(document: str) -> str:
    return markdown(json.loads(document))


def figure(record: Record) -> str:
    """The chart of the page that `bench --report` writes, as a file of its own."""
    return standalone(step_chart([row for row in record.rows if "step" in row.parts]), COLOURS)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    main()
