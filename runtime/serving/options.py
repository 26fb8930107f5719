"""What the scheduler and the server can be told, each option once: name, help, range and default beside the field."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..loop.engine import EngineOptions
from ..options import BATCH, TRUSTED_KEYS, Range, option

QUEUE: Range = (1, 100_000)
SECONDS: Range = (1, 7 * 24 * 3600)
PORTS: Range = (0, 65535)


@dataclass(frozen=True)
class Limits:
    """How much the scheduler takes on."""

    max_batch: int = field(
        default=16, metadata=option("--max-batch", help="Images of a bundle that share a step.", range=BATCH)
    )
    a_call: int | None = field(
        default=None,
        metadata=option(
            "--images-per-call", help="Of them, in a call of the engine. [default: measured at the start]", range=BATCH
        ),
    )
    max_queue: int = field(
        default=64,
        metadata=option("--max-queue", help="Images that may wait; more are told when to come again.", range=QUEUE),
    )
    max_seconds: int = field(
        default=600,
        metadata=option("--max-seconds", help="An image that is not done by then is given up.", range=SECONDS),
    )


@dataclass(frozen=True)
class ServeRequest:
    """`serve`: bundles, where to listen, and how much to take on."""

    engines: tuple[Path, ...] = field(
        default=(), metadata=option("--engine", help="Bundle folder; repeat it for several. The first is the default.")
    )
    host: str = field(default="127.0.0.1", metadata=option("--host", help="Address to listen on; 0.0.0.0 is any."))
    port: int = field(default=8000, metadata=option("--port", help="0 is any that is free.", range=PORTS))
    limits: Limits = Limits()
    max_steps: int = field(default=1000, metadata=option("--max-steps", help="Steps of one image.", range=(1, 1000)))
    max_images: int = field(default=16, metadata=option("--max-images", help="Images of one request.", range=QUEUE))
    api_key_file: Path | None = field(
        default=None, metadata=option("--api-key-file", help="A file with a key a line; requests have to bring one.")
    )
    allowed_hosts: tuple[str, ...] = field(
        default=(),
        metadata=option(
            "--allowed-host",
            help="A name of this machine, or of the proxy before it; repeat it. Without keys, other names are refused.",
            metavar="NAME",
        ),
    )
    drain: int = field(
        default=30,
        metadata=option("--drain", help="Seconds for what is begun when the server is stopped.", range=(0, 3600)),
    )
    options: EngineOptions = EngineOptions()
    trusted_keys: tuple[Path, ...] = field(default=(), metadata=TRUSTED_KEYS)
