"""An engine is one loaded graph. A new kind is a file and a line in `ENGINES` (docs/adding-an-engine.md)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from ..bundle.held_files import HeldGraph
from ..errors import RequestError
from ..options import THREADS, option

Tensors = Mapping[str, np.ndarray]
PROVIDER_NAMES = "ditedge.runtime.loop.engines:providers"


@dataclass(frozen=True)
class EngineOptions:
    """How to load engines. provider: one of `providers()` (engines.py), which says which engine it is, too."""

    provider: str = field(
        default="cpu", metadata=option("--provider", help="What computes: {}.", listed=PROVIDER_NAMES)
    )
    threads: int = field(  # 0: processors.py
        default=0,
        metadata=option(
            "--threads",
            help="CPU threads, at most the processors that may be used. [default: the cores that may be used]",
            range=THREADS,
        ),
    )
    spin: bool = field(
        default=False, metadata=option("--spin", help="ONNX Runtime's idle threads wait busily: for one's own machine.")
    )
    share_weights: bool = field(
        default=False,
        metadata=option(
            "--share-weights",
            help="Of ONNX Runtime on the CPU: weights beside a graph stay in the file's pages, which processes share: "
            "a quicker start, and slower steps (int8 by 2 to 8 %, float32 by 10 %).",
        ),
    )
    keep_buffers: bool = True  # between runs: quicker for many runs of one shape; False halves the memory of a decoder
    exact: bool = False  # float32, whatever the provider would round to: of every graph but the step (host_loop.py)
    fused: bool = True  # ONNX Runtime may make one node of several; False where tensors between them are read
    plans: Path | None = None  # a folder of TensorRT plans to run instead of the graphs (engine_trt.py)
    cuda_graphs: bool = field(  # capture each run and replay it
        default=True,
        metadata=option("--cuda-graph/--no-cuda-graph", help="Plans: replay steps, or enqueue each."),
    )


def options_for(path: Path, options: EngineOptions) -> EngineOptions:
    """What `--engine PATH` means: a .plan selects all plans of its folder, anything else the bundle's graphs."""
    if path.suffix != ".plan":
        return options
    if options.provider != EngineOptions.provider:
        raise RequestError(f"{path}: a plan does not run on provider '{options.provider}': leave it out")
    return replace(options, plans=path.parent)


class Engine(Protocol):
    """One loaded graph. Not thread-safe: one caller at a time."""

    inputs: frozenset[str]

    def run(self, inputs: Tensors, outputs: Tensors, cancel: threading.Event | None = None) -> None:
        """Runs the graph once, writing into `outputs`.

        Arrays are C-contiguous and have the dtype and shape of the graph's tensors; inputs that the graph does not
        have are ignored. Every output given is overwritten in place; nothing is kept after the call.
        Raises EngineError when the library refuses; Cancelled when `cancel` was set meanwhile and it stopped for that.
        """

    def close(self) -> None:
        """Frees the graph. Calling it twice is fine."""


class WatchedEngine:
    """Another engine, whose runs a subclass looks at or changes."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.inputs = engine, engine.inputs

    @contextmanager
    def around(self, inputs: Tensors, outputs: Tensors) -> Iterator[tuple[Tensors, Tensors]]:
        """To override: the run takes place where it yields, with the inputs and outputs that it yields."""
        yield inputs, outputs

    def run(self, inputs: Tensors, outputs: Tensors, cancel: threading.Event | None = None) -> None:
        with self.around(inputs, outputs) as (given, made):
            self.engine.run(given, made, cancel)

    def close(self) -> None:
        self.engine.close()


@dataclass(frozen=True)
class EngineKind:
    """A library that runs graphs: an entry of `ENGINES` (engines.py).

    packages: distributions that bring it -> (what it is for, how to get it).
    providers: what `--provider` calls its ways to compute -> what each is.
    open: loads a graph, a bundle's as it was hashed or a file of our own by name. Raises EngineError, BundleError.
    refusal: why this machine cannot run a provider; "" when it can. Raises nothing.
    more: the end of further names that it takes, as its own documentation spells them; "" for none.
    """

    packages: Mapping[str, tuple[str, str]]
    providers: Mapping[str, str]
    open: Callable[[HeldGraph | Path, EngineOptions], Engine]
    refusal: Callable[[str], str]
    more: str = ""

    def has(self, provider: str) -> bool:
        return provider in self.providers or bool(self.more and provider.endswith(self.more))
