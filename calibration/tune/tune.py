"""`tune` in its order of work: load, measure costs, search, look beside the best, measure them on fresh seeds.

Whatever is measured is kept in the search's journal, so the same command goes on where it was ended.
"""

from __future__ import annotations

from collections.abc import Callable

from ...runtime.report import Report, silent
from .closer import shapes_of
from .finals import Result, result_of
from .request import TuneRequest
from .search import search
from .work import begun


def tune(request: TuneRequest, report: Report = silent, note: Callable[[str], object] = silent) -> Result:
    """Searches and measures; writes nothing but what it goes on from. Raises DitedgeError.

    That is the journal and, of a search without a reference, the features of the model's own samples (OWN_FILE).
    note: told what the distances are, where that is not said by the options.
    """
    if request.start is not None:
        shapes_of(request.start)  # fails now
    with begun(request, report, note) as work:
        rungs = request.images[:2]
        search(work.study, work.space.shape, work.contenders, work.judge, rungs, work.seed, request.trials, report)
        return result_of(work)
