"""The command `bench`, for cli.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from ditedge.runtime.files import check_writable

from .failures import UserError, importing_extra
from .options import command
from .terminal import print_json, printable, progress, say

if TYPE_CHECKING:
    from ditedge.runtime.bench.record import Record
    from ditedge.runtime.bench.request import BenchRequest
    from ditedge.runtime.report import Report

WIDE = 200  # columns where there is no terminal


def add_bench(group: click.Group) -> None:
    @command(group, "ditedge.runtime.bench.request:BenchRequest")
    @click.option("--json", "as_json", is_flag=True, help="Print everything that was measured as JSON.")
    def bench(request: BenchRequest, as_json: bool) -> None:
        """Time bundles and engines in turns, part by part, each in a process of its own (docs/benchmarks.md).

        \b
        Examples:
          ditedge bench --engine fashion --engine fashion-int8 --provider cpu --provider openvino --report bench.html
          ditedge bench --engine fashion --all --repeats 5
        """
        from ditedge.runtime.bench.page import write_page

        if request.report is not None:
            check_writable(request.report)
        with progress() as report:
            record = measured(request, report)
        if request.report is not None:
            write_page(record, request.report)
        if as_json:
            print_json(record.model_dump())
            return
        show(record)
        if request.report is not None:
            say(f"wrote {request.report}")


def measured(request: BenchRequest, report: Report) -> Record:
    """By the runtime alone, or, with --all, with what makes other precisions."""
    if request.every:
        with importing_extra("calibrate"):
            from ditedge.calibration.every import bench_every
        return bench_every(request, report)
    from ditedge.runtime.bench.measure import bench

    if request.keep is not None:
        raise UserError(f"--keep {request.keep} is for the bundles of --all: leave it out")
    return bench(request, report)


def show(record: Record) -> None:
    """Tables; what is no terminal has room for them."""
    from ditedge.runtime.bench.table import HEADS, PART_HEADS, cells, lead, part_cells, reasons

    say("\n".join(lead(record)))
    _print_table(HEADS, [cells(row) for row in record.rows])
    ran = [part_cells(row) for row in record.rows if row.parts]
    used = [i for i in range(len(PART_HEADS)) if i == 0 or any(row[i] for row in ran)]
    _print_table([PART_HEADS[i] for i in used], [[row[i] for i in used] for row in ran])
    for reason in reasons(record.rows):
        say(reason)


def _print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, head in enumerate(heads):
        table.add_column(
            Text(head), justify="right" if i > 1 or heads[1] != "status" and i else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    console.print(table)
