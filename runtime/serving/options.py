"""What the scheduler and the server can be told, each option once: name, help, range and default beside the field."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..options import BATCH, option

QUEUE = (1, 100_000)
SECONDS = (1, 7 * 24 * 3600)


@dataclass(frozen=True)
class Limits:
    """How much the scheduler takes on."""

    max_batch: int = field(
        default=16, metadata=option("--max-batch", help="Images of a bundle that share a step.", range=BATCH)
    )
    max_queue: int = field(
        default=64,
        metadata=option("--max-queue", help="Images that may wait; more are told when to come again.", range=QUEUE),
    )
    max_seconds: int = field(
        default=600,
        metadata=option("--max-seconds", help="An image that is not done by then is given up.", range=SECONDS),
    )
