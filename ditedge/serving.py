"""The commands of `ditedge.runtime.serving`, for cli.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .failures import importing_extra
from .options import command
from .terminal import say

if TYPE_CHECKING:
    from ditedge.runtime.serving.options import ServeRequest


def add_commands(group: click.Group) -> None:
    """`serve`."""

    @command(group, "ditedge.runtime.serving.options:ServeRequest")
    def serve(request: ServeRequest) -> None:
        """Answer requests for images over HTTP, many at a time in one batch (docs/serving.md).

        \b
        Examples:
          ditedge serve --engine fashion
          ditedge serve --engine dit-xl-2-256 --engine dit-xl-2-512 --host 0.0.0.0 --api-key-file keys.txt
        """
        with importing_extra("serve"):
            import prometheus_client  # noqa: F401
            import starlette  # noqa: F401
            import uvicorn  # noqa: F401
        from ditedge.runtime.serving.server import run_server

        run_server(request, lambda text: say(text, err=True))
