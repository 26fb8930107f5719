"""The command of `ditedge.calibration.tune`, for cli.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .extras import ray_if_asked
from .failures import UserError, importing_extra
from .options import command
from .summary import Summary
from .terminal import progress, say

if TYPE_CHECKING:
    from ditedge.calibration.tune.request import TuneRequest

JSON = click.option("--json", "as_json", is_flag=True, help="Print tune.json instead of the table.")


def add_tune(group: click.Group) -> None:
    @command(group, "ditedge.calibration.tune.request:TuneRequest")
    @JSON
    def tune(request: TuneRequest, as_json: bool) -> None:
        """Find the program with the best pictures for what it costs, by measuring (docs/few-steps.md).

        Samplers, where their steps lie and where they are guided are searched, and the best measured once more on fresh
        seeds. The same command goes on with a search that was stopped.

        \b
        Examples:
          ditedge tune --engine fashion --budget 8passes --features models/fashion_classifier.onnx --reference real.npz
          ditedge tune --engine dit-xl-2-256 --engine dit-xl-2-256-int8 --budget 2.5s
        """
        request.check()
        with importing_extra("tune"):
            import optuna  # noqa: F401
        ray_if_asked(request.ray)
        with importing_extra("calibrate"):
            from ditedge.calibration.tune.output import table, write_result
            from ditedge.calibration.tune.tune import tune as found
        told = Summary(as_json)
        try:
            with progress() as report:
                result = found(request, report, told.note)
        except KeyboardInterrupt:
            say(f"what was tried is kept in {request.folder}: the same command goes on", err=True)
            raise
        tuned, written = write_result(request, result)
        told.add(**tuned.model_dump(), written=written)
        told.lines(table(tuned))
        told.lines(f"wrote {path}" for path in written)
        if result.missed is not None:
            told.end()
            raise UserError(result.missed)
        for one in tuned.programs[:1]:
            name = one.name if request.write else request.folder / str(one.file)
            told.line(f"next: ditedge run --engine {request.engine[0]} --program {name}")
        told.end()
