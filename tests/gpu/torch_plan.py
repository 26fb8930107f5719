"""PyTorch behind the plans' seam (engine_trt.py): real kernels on any CUDA device, without TensorRT.

The loop's memory, copies, captures, replays and events are real then: `TorchGpu` is `NvidiaGpu` with another
`deserialize`. `HostGpu` runs the same plans on the CPU, over the strict double of every CUDA call.
"""

from __future__ import annotations

import bisect
import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ditedge.export.graphs.modules import Conditioner, PixelDecoder, Step
from ditedge.export.graphs.preview import plain_preview
from ditedge.export.sources.read import read_checkpoint
from ditedge.runtime import EngineOptions, Session, generate, open_bundle
from ditedge.runtime.bundle.graph_contract import GraphInfo
from ditedge.runtime.bundle.held_files import HeldFile
from ditedge.runtime.bundle.open import Bundle
from ditedge.runtime.loop.device_loop import DeviceLoop
from ditedge.runtime.loop.engine_trt import NvidiaGpu
from ditedge.runtime.plans.record import PLAN_NAMES, RECORD_NAME, BuildRecord
from tests.doubles.gpu_double import ALIGNMENT, DoubleGpu
from tests.doubles.plans import OURS, Library, write_plans

DTYPES = {"float32": torch.float32, "int64": torch.int64, "uint8": torch.uint8}
GRAPH_OF = {name: graph for graph, name in PLAN_NAMES.items()}
Modules = Mapping[str, nn.Module]  # by graph


class TorchPlan:
    """A graph of a bundle as the module that it was exported from. gpu: a TorchGpu or a HostGpu."""

    capturable = True
    scratch_bytes = 1000

    def __init__(self, gpu: Any, info: GraphInfo, module: nn.Module) -> None:
        self.gpu, self.info, self.module = gpu, info, module
        self.inputs = frozenset(tensor.name for tensor in info.inputs)

    def context(self, stream: int, profile: int = 0) -> TorchContext:
        return TorchContext(self, self.gpu.pool(stream))

    def keep(self) -> None:
        """Nothing is compiled."""


class TorchContext:
    """pool: where its intermediate tensors lie, so that their addresses stay valid for captured graphs."""

    def __init__(self, plan: TorchPlan, pool: object) -> None:
        self.plan, self.pool = plan, pool
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_memory(self, pointer: int, size: int) -> None:
        assert size >= self.plan.scratch_bytes and pointer % ALIGNMENT == 0, "scratch memory does not do"

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self.shapes[name] = shape

    def set_output(self, name: str, shape: tuple[int, ...]) -> None:
        """PyTorch knows."""

    def set_address(self, name: str, pointer: int) -> None:
        assert pointer % ALIGNMENT == 0, f"address of {name} is not aligned to {ALIGNMENT} bytes"
        self.addresses[name] = pointer

    def capturable(self, stream: int) -> bool:
        return True

    def enqueue(self, stream: int) -> None:
        plan, gpu = self.plan, self.plan.gpu
        inputs = [(t.name, self.addresses[t.name], self.shapes[t.name], DTYPES[t.dtype]) for t in plan.info.inputs]
        target = self.addresses[plan.info.outputs[0].name]

        def work() -> None:
            with torch.no_grad():
                gpu.put(target, plan.module(**{name: gpu.tensor(*place) for name, *place in inputs}))

        gpu.do(work, stream, self.pool)


class TorchGpu(NvidiaGpu):
    """A CUDA device. Tensors are slices of one tensor per allocation: no call of CUDA's is made for them in a capture."""

    def __init__(self, bundle: Bundle, modules: Modules) -> None:
        super().__init__()
        self._bundle, self._modules = bundle, {graph: module.cuda() for graph, module in modules.items()}
        self._blocks: dict[int, Tensor] = {}  # uint8 [size], by address
        self._starts: list[int] = []  # sorted

    def libraries(self) -> dict[str, str]:
        return {OURS.name: OURS.version}

    def deserialize(self, record: BuildRecord, file: HeldFile) -> TorchPlan:
        self.set_device()
        graph = GRAPH_OF[file.path.name]
        return TorchPlan(self, self._bundle.manifest.graphs[graph], self._modules[graph])

    def malloc(self, size: int) -> int:
        pointer = super().malloc(size)
        interface = {"shape": (size,), "typestr": "|u1", "data": (pointer, False), "version": 3, "strides": None}
        self._blocks[pointer] = torch.as_tensor(SimpleNamespace(__cuda_array_interface__=interface), device="cuda")
        assert self._blocks[pointer].data_ptr() == pointer, "PyTorch made a copy"
        bisect.insort(self._starts, pointer)
        return pointer

    def free(self, pointer: int) -> None:
        del self._blocks[pointer]
        self._starts.remove(pointer)
        super().free(pointer)

    def pool(self, stream: int) -> torch.cuda.MemPool:
        with self._on(stream):  # cuBLAS takes its memory for a stream at the first product: not of a context's pool
            ones = torch.ones(16, 16, device="cuda")
            torch.mm(ones, ones)
        return torch.cuda.MemPool()

    def tensor(self, address: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        start = self._starts[bisect.bisect_right(self._starts, address) - 1]
        size = prod(shape) * dtype.itemsize
        part = self._blocks[start][address - start : address - start + size]
        assert len(part) == size, "a tensor reaches beyond its allocation"
        return part.view(dtype).view(shape)

    def put(self, address: int, result: Tensor) -> None:
        self.tensor(address, tuple(result.shape), result.dtype).copy_(result)

    def do(self, work: Callable[[], None], stream: int, pool: torch.cuda.MemPool) -> None:
        with self._on(stream), torch.cuda.use_mem_pool(pool):
            work()

    def _on(self, stream: int) -> AbstractContextManager[Any]:
        return torch.cuda.stream(torch.cuda.ExternalStream(stream))

    def left(self) -> int:
        """Allocations that were not freed."""
        return len(self._blocks)


class HostGpu(DoubleGpu):
    """The CPU: work is done bit by bit while the host polls, and what a GPU would punish raises DoubleError."""

    def __init__(self, bundle: Bundle, modules: Modules) -> None:
        super().__init__(installed={OURS.name: OURS.version})
        self._bundle, self._modules = bundle, modules

    def deserialize(self, record: BuildRecord, file: HeldFile) -> TorchPlan:
        graph = GRAPH_OF[file.path.name]
        return TorchPlan(self, self._bundle.manifest.graphs[graph], self._modules[graph])

    def pool(self, stream: int) -> None:
        self.demand(stream in self.streams, "no such stream")

    def tensor(self, address: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        data = self.read(address, prod(shape) * dtype.itemsize, f"input {list(shape)}")
        return torch.from_numpy(data).view(dtype).view(shape)

    def put(self, address: int, result: Tensor) -> None:
        self.write(address, result.contiguous().numpy().reshape(-1).view(np.uint8))

    def do(self, work: Callable[[], None], stream: int, pool: None) -> None:
        self.enqueue(work, stream)

    def left(self) -> int:
        return len(self.live) + len(self.graphs) + len(self.events) + len(self.streams)


class TorchEngine:
    """A module as an engine of the host's loop: the reference, which shares neither loop nor device with the plans."""

    def __init__(self, info: GraphInfo, module: nn.Module) -> None:
        self.inputs = frozenset(tensor.name for tensor in info.inputs)
        self._module = module

    @torch.no_grad()
    def run(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], cancel: object = None) -> None:
        ((_, output),) = outputs.items()
        feeds = {name: torch.from_numpy(inputs[name].copy()) for name in self.inputs}
        output[...] = self._module(**feeds).numpy()

    def close(self) -> None:
        """Nothing to free."""


def modules_of(bundle: Bundle, checkpoint: Path) -> dict[str, nn.Module]:
    """The modules that the bundle's graphs were exported from, on the CPU."""
    model, graphs = bundle.manifest.model, bundle.manifest.graphs
    network = read_checkpoint(checkpoint, heads=model.num_heads).model()
    made = {"conditioner": Conditioner(network), "step": Step(network), "decoder": PixelDecoder()}
    made["preview"] = plain_preview(model.in_channels)
    return {graph: module.eval().requires_grad_(False) for graph, module in made.items() if graph in graphs}


@dataclass(frozen=True)
class Subject:
    """A bundle, its checkpoint, and a folder to write plans to: what the checks of the loop run on."""

    source: Path
    checkpoint: Path
    folder: Path  # a copy of the bundle
    host: bool

    @cached_property
    def bundle(self) -> Bundle:
        if not self.folder.exists():
            shutil.copytree(self.source, self.folder)
            write_plans(self.folder, slots=5, library=Library(as_plan=lambda source, graph, *_: graph.encode()))
            path = self.folder / "engines" / "double" / RECORD_NAME
            path.write_text(json.dumps(json.loads(path.read_text()) | {"compute_capabilities": []}))  # any GPU
        return open_bundle(self.folder)

    def gpu(self) -> Any:
        return (HostGpu if self.host else TorchGpu)(self.bundle, modules_of(self.bundle, self.checkpoint))

    def session(self, cuda_graphs: bool = True, gpu: Any = None) -> Session:
        """On plans, with or without captured graphs."""
        folder = self.folder / "engines" / "double"
        session = Session(self.bundle, EngineOptions(plans=folder, cuda_graphs=cuda_graphs))
        session._device = DeviceLoop(
            self.bundle, folder, EngineOptions(cuda_graphs=cuda_graphs), gpu if gpu is not None else self.gpu()
        )
        return session

    def reference(self) -> Session:
        """On the CPU, step by step."""
        graphs = self.bundle.manifest.graphs
        modules = modules_of(self.bundle, self.checkpoint)
        return Session(self.bundle, engines={graph: TorchEngine(graphs[graph], m) for graph, m in modules.items()})

    def sample(self, session: Session, name: str = "ddpm-10", **options: Any) -> np.ndarray:
        """Five images of four classes: latents, unless `output` says otherwise."""
        settings = {"guidance": 4.0, "program": self.bundle.program(name), "output": "latents"} | options
        return generate(self.bundle, [9, 0, 3, 3, 5], [1, 2, 3, 4, 5], session=session, **settings)
