"""An engine is one loaded graph. A new kind is one file with these members and a line in `ENGINES` (engines.py)."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import RequestError
from ..options import THREADS, option


@dataclass(frozen=True)
class EngineOptions:
    """How to load engines. provider: "cpu", "cuda", ... of ONNX Runtime."""

    provider: str = field(
        default="cpu", metadata=option("--provider", help="ONNX Runtime provider: cpu, cuda, openvino ...")
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
        default=False, metadata=option("--spin", help="Idle threads wait busily: for a machine that nobody else uses.")
    )
    keep_buffers: bool = True  # between runs: quicker for many runs of one shape; False halves the memory of a decoder
    plans: Path | None = None  # a folder of TensorRT plans to run instead of the graphs (engine_trt.py)
    cuda_graphs: bool = True  # of plans: capture each run and replay it; False enqueues every step anew


def options_for(path: Path, options: EngineOptions) -> EngineOptions:
    """What `--engine PATH` means: a .plan selects all plans of its folder, anything else the bundle's graphs."""
    if path.suffix != ".plan":
        return options
    if options.provider != EngineOptions.provider:
        raise RequestError(f"{path}: a plan does not run on ONNX Runtime's provider '{options.provider}': leave it out")
    return replace(options, plans=path.parent)


class Engine(Protocol):
    """One loaded graph. Not thread-safe: one caller at a time."""

    inputs: frozenset[str]

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
        cancel: threading.Event | None = None,
    ) -> None:
        """Runs the graph once, writing into `outputs`.

        Arrays are C-contiguous and have the dtype and shape of the graph's tensors; inputs that the graph does not
        have are ignored. Every output given is overwritten in place; nothing is kept after the call.
        Raises EngineError when the library refuses; Cancelled when `cancel` was set meanwhile and it stopped for that.
        """

    def close(self) -> None:
        """Frees the graph. Calling it twice is fine."""
