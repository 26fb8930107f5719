"""The commands of `ditedge.runtime.serving` and `ditedge.runtime.sets`; `bench` and `tune` have files of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .benching import add_bench
from .extras import ray_if_asked
from .failures import importing_extra
from .options import command
from .summary import Summary
from .terminal import progress, say
from .tuning import add_tune

if TYPE_CHECKING:
    from ditedge.runtime.serving.options import ServeRequest
    from ditedge.runtime.sets.request import MergeRequest, SampleSetRequest
    from ditedge.runtime.sets.sample import Done

JSON = click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")


def add_commands(group: click.Group) -> None:
    """`serve`, `sample-set`, `merge`, `bench` and `tune`."""
    _add_serve(group)
    _add_sets(group)
    add_bench(group)
    add_tune(group)


def _add_serve(group: click.Group) -> None:

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


def _add_sets(group: click.Group) -> None:
    @command(group, "ditedge.runtime.sets.request:SampleSetRequest", "sample-set")
    @JSON
    def sample_set(request: SampleSetRequest, as_json: bool) -> None:
        """Sample thousands of images, and go on where it was stopped (docs/scaling.md).

        \b
        Examples:
          ditedge sample-set --engine dit-xl-2-256 --count 50000 --format npz --out samples
          ditedge sample-set --engine fashion --count 2000 --balanced --shard 1/4 --out part-1
        """
        from ditedge.runtime.sets import sample

        ray_if_asked(request.ray)
        with progress() as report:
            done = sample.sample_set(request, report)
        _say_done(done, as_json, f"{done.sampled} sampled, {done.kept} were there")

    @command(group, "ditedge.runtime.sets.request:MergeRequest")
    @JSON
    def merge(request: MergeRequest, as_json: bool) -> None:
        """Put shards of `sample-set` together: the same files as of one process.

        \b
        Examples:
          ditedge merge --shard part-1 --shard part-2 --shard part-3 --shard part-4 --out samples
          ditedge merge --shard samples --shard late --out samples
        """
        from ditedge.runtime.sets import sample

        with progress() as report:
            done = sample.merge(request, report)
        _say_done(done, as_json, f"{done.kept} of {done.plan.count} images")


def _say_done(done: Done, as_json: bool, what: str) -> None:
    told = Summary(as_json)
    told.add(images=done.plan.count, sampled=done.sampled, kept=done.kept, missing=done.missing, sha256=done.sha256)
    if done.whole is None:
        told.line(f"{done.folder}: {what}, {done.missing} are missing")
        told.line("next: the other shards, then ditedge merge --shard FOLDER ... --out FOLDER")
    else:
        told.add(written=[done.whole])
        told.line(f"wrote {done.whole}: {what}\nsha256 {done.sha256}")
    told.end()
