"""What a search leaves: tune.json, report.html, program files, programs in the bundles; and the printed table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...runtime.bundle.open import open_bundle
from ...runtime.files import write_text
from ...runtime.samplers.program import write_program
from .finals import Result
from .page import tune_page
from .record import Found, Tuned
from .request import TuneRequest
from .writing import add_programs

RECORD, PAGE = "tune.json", "report.html"


def write_result(request: TuneRequest, result: Result) -> tuple[Tuned, list[Path]]:
    """-> the record as it was written; the files, and the bundles that have new programs.

    Raises RequestError, BundleError.
    """
    folder, written = request.folder, []
    for one in result.programs:
        path = folder / str(one.found.file)
        write_program(one.program, path)
        written.append(path)
    tuned = result.tuned
    if request.write:
        for path, engine in zip(request.engine, tuned.engines, strict=True):
            own = {one.found.name: one.program for one in result.programs if one.found.engine == engine}
            if own:
                bundle = open_bundle(path)
                add_programs(bundle, own)
                written.append(bundle.folder)
        programs = [one.model_copy(update={"written": True}) for one in tuned.programs]
        tuned = tuned.model_copy(update={"programs": programs})
    write_text(folder / RECORD, tuned.model_dump_json(indent=1) + "\n")
    write_text(folder / PAGE, tune_page(tuned, result.pictures))
    return tuned, [folder / PAGE, folder / RECORD, *written]


def table(tuned: Tuned) -> Iterator[str]:
    """What `tune` prints: the default program first, then what was found, cheapest first."""
    judged = tuned.judged
    yield (
        f"{tuned.trials} trials, {tuned.pruned} ended early; {tuned.rungs[2]} images from seed {tuned.seed} on, which "
        f"the search never saw; Frechet distance to {judged.reference} ({judged.reference_count})"
    )
    yield f"{'program':28} {'passes':>6} {'steps':>6} {'guided':>6} {'s an image':>11} {'distance':>18} {'accuracy':>9}"
    for one in (*([tuned.baseline] if tuned.baseline else []), *tuned.programs):
        yield _row(one)


def _row(one: Found) -> str:
    figures = one.figures
    share = "" if figures.accuracy is None else f"{100 * figures.accuracy:.1f} %"
    distance = f"{figures.distance:.4g} +- {figures.noise:.2g}"
    name = f"{one.engine}: {one.name}"
    return (
        f"{name:28} {one.passes:6} {one.steps:6} {one.guided:6} {one.seconds:11.4f} {distance:>18} {share:>9}".rstrip()
    )
