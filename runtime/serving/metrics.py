"""`/metrics`, for Prometheus: what the scheduler counts, and how long images took."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .scheduler import Scheduler
from .ticket import Ticket

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Metrics:
    """`observe` is told of each ticket that ends; `watch` begins to look at a scheduler."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram

        self.registry = CollectorRegistry()
        self._images = Counter(
            "ditedge_images", "Images that ended, by how.", ["model", "state"], registry=self.registry
        )
        self._seconds = Histogram(
            "ditedge_image_seconds",
            "From the request to the pixels.",
            ["model"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._queued = Histogram(
            "ditedge_queue_seconds",
            "From the request to the first step.",
            ["model"],
            buckets=SECONDS,
            registry=self.registry,
        )

    def observe(self, ticket: Ticket) -> None:
        self._images.labels(ticket.model, ticket.state).inc()
        if ticket.started is not None:
            self._queued.labels(ticket.model).observe(ticket.started - ticket.submitted)
        if ticket.state == "done" and ticket.ended is not None:
            self._seconds.labels(ticket.model).observe(ticket.ended - ticket.submitted)

    def watch(self, scheduler: Scheduler) -> None:
        self.registry.register(_Collector(scheduler))

    def text(self) -> bytes:
        from prometheus_client import generate_latest

        return generate_latest(self.registry)


class _Collector:
    """Asked when somebody reads `/metrics`: nothing is counted twice."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        scheduler, counts = self._scheduler, self._scheduler.counts
        waiting = GaugeMetricFamily("ditedge_waiting_images", "Images in the queue.", labels=["model"])
        running = GaugeMetricFamily("ditedge_running_images", "Images that share steps now.", labels=["model"])
        for model in scheduler.sessions:
            waiting.add_metric([model], len(scheduler.waiting(model)))
            running.add_metric([model], len(scheduler.running(model)))
        yield from (waiting, running)
        yield GaugeMetricFamily("ditedge_decoding_images", "Images whose pixels are made.", value=scheduler.decoding)
        for name, about, value in (
            ("turns", "Turns: a step of each bundle's batch.", counts.turns),
            ("image_steps", "Steps of images; by turns: how full the batches are.", counts.image_steps),
            ("step_seconds", "Seconds in the engines.", counts.step_seconds),
            ("turn_seconds", "Seconds of turns: less step_seconds, what scheduling costs.", counts.turn_seconds),
            ("refused_images", "Images that found the queue full.", scheduler.refused),
        ):
            yield CounterMetricFamily(f"ditedge_{name}", about, value=value)


async def metrics(request: Request) -> Response:
    from prometheus_client import CONTENT_TYPE_LATEST
    from starlette.responses import Response

    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE_LATEST)
