"""`verify`: golden trajectories, or layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ditedge.runtime.files import check_writable, write_text

from .failures import importing_extra
from .summary import Summary
from .terminal import progress

if TYPE_CHECKING:
    from ditedge.calibration.layers.request import VerifyCommand


def verified(request: VerifyCommand, told: Summary) -> bool:
    """Whether the engine keeps its tolerance. Raises DitedgeError."""
    request.check()
    if request.options.layers:
        return _layers(request, told)
    from ditedge.runtime.loop.verification import verify_bundle

    with progress() as report:
        found = verify_bundle(request.verify, report)
    told.lines(found.lines())
    told.add(**found.summary())
    return found.passed


def _layers(request: VerifyCommand, told: Summary) -> bool:
    with importing_extra("calibrate"):
        from ditedge.calibration.layers.compare import compare_layers
        from ditedge.calibration.layers.page import page

    out = request.options.page
    if out is not None:
        check_writable(out)
    with progress() as report:
        found = compare_layers(request.verify, request.options, report)
    told.lines(found.lines())
    told.add(**found.summary())
    if out is not None:
        write_text(out, page(found))
        told.add(written=[out])
        told.line(f"wrote {out}")
    return found.passed
