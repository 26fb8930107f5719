"""Shapes that a search tries first: what is known to be good elsewhere. They are measured as all others are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Of the search space (space.py). share, start: how many steps are guided, and where among the others.
NAMES = ("sampler", "spacing", "rho", "first", "last", "share", "start", "scale", "ramp")
ROWS = (
    # DPM-Solver++ and UniPC as their papers have them, guided at every step
    ("dpm++2", "timestep", 7.0, 157.0, 0.3, 1.0, 0.0, 4.0, 1.0),
    ("unipc2", "log-snr", 7.0, 80.0, 0.2, 1.0, 0.0, 4.0, 1.0),
    # guided in the middle alone (Kynkaanniemi et al. 2024)
    ("dpm++2", "timestep", 7.0, 157.0, 0.3, 0.5, 0.6, 4.0, 1.0),
    ("unipc2", "karras", 7.0, 80.0, 0.2, 0.4, 0.5, 3.0, 1.0),
    ("ddim", "timestep", 7.0, 157.0, 0.3, 0.34, 0.6, 4.0, 1.0),
    # guided in most steps but the first and the last: good on the demo model (docs/few-steps.md)
    ("dpm++2", "timestep", 7.0, 80.0, 0.2, 0.6, 0.5, 3.0, 1.0),
    ("unipc2", "karras", 7.0, 157.0, 0.1, 0.5, 0.8, 4.0, 1.0),
)
STARTS: tuple[Mapping[str, Any], ...] = tuple(dict(zip(NAMES, row, strict=True)) for row in ROWS)
