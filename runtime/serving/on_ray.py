"""The server as an application of Ray Serve: as many replicas as the load needs, on many machines, at one address.

    serve run ditedge.runtime.serving.on_ray:app engines=/srv/bundles/dit-xl-2-256 max_replicas=8

Each replica is what `ditedge serve` is, with a scheduler and engines of its own; Ray's proxy listens and streams.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from ..errors import RequestError
from ..loop.engine import EngineOptions
from ..options import BATCH
from .options import QUEUE, Limits, ServeRequest

if TYPE_CHECKING:
    from ray.serve import Application

DRAIN = ServeRequest.drain  # seconds for what a replica has begun when it is taken down


class Arguments(BaseModel):
    """What `serve run` takes as name=value, or a Serve config file as `args`."""

    model_config = ConfigDict(extra="forbid")

    engines: str = Field(description="Bundle folders, with commas between: on every node.")
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1, le=10_000)
    threads: int = Field(1, ge=1, description="Of a replica's engines: so many CPUs it takes.")
    gpus: FiniteFloat = Field(0.0, ge=0, description="That a replica takes.")
    provider: str = EngineOptions.provider
    max_batch: int = Field(Limits.max_batch, ge=BATCH[0], le=BATCH[1])
    max_queue: int = Field(Limits.max_queue, ge=QUEUE[0], le=QUEUE[1])
    api_key_file: Path | None = Field(None, description="On every node.")
    allowed_hosts: str = Field("", description="With commas between.")

    def request(self) -> ServeRequest:
        """Of one replica, which nobody reaches but Ray's proxy."""
        return ServeRequest(
            engines=tuple(Path(engine).expanduser().absolute() for engine in self.engines.split(",") if engine),
            limits=Limits(max_batch=self.max_batch, max_queue=self.max_queue),
            api_key_file=self.api_key_file,
            allowed_hosts=tuple(name for name in self.allowed_hosts.split(",") if name),
            drain=DRAIN,
            options=EngineOptions(provider=self.provider, threads=self.threads),
        )


def app(arguments: Arguments) -> Application:
    """For `serve run`. Raises RequestError for replicas that are none."""
    request = arguments.request()
    if arguments.min_replicas > arguments.max_replicas:
        raise RequestError(f"min_replicas {arguments.min_replicas} is more than max_replicas {arguments.max_replicas}")
    from ray import serve

    alone = arguments.max_replicas == 1

    def replica() -> Any:
        from ditedge.runtime.serving.server import served

        return served(request, alone=alone).app

    deployment = serve.deployment(
        name="ditedge",
        ray_actor_options={"num_cpus": arguments.threads, "num_gpus": arguments.gpus},
        max_ongoing_requests=arguments.max_batch + arguments.max_queue + 1,  # what is too much is the replica's to say
        autoscaling_config={
            "min_replicas": arguments.min_replicas,
            "max_replicas": arguments.max_replicas,
            "target_ongoing_requests": arguments.max_batch,
        },
        graceful_shutdown_timeout_s=DRAIN + 5,
    )
    return deployment(serve.ingress(replica)()).bind()  # type: ignore[no-any-return]
