"""A test double of the CUDA and TensorRT calls: host memory behind the pointers, ONNX Runtime behind the plans.

Stricter than a GPU, which would go on with wrong numbers. Nothing runs when it is enqueued: work is recorded and done
bit by bit while the host polls. Every violation raises DoubleError, which the loop does not catch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ditedge.runtime.bundle.held_files import HeldFile
from ditedge.runtime.plans.library import GpuInfo
from ditedge.runtime.plans.record import PLAN_NAMES, BuildRecord
from tests.doubles.block import Block
from tests.doubles.sessions import session_of

ALIGNMENT = 256
SCRATCH_BYTES = {"conditioner": 1000, "step": 5000, "decoder": 3000, "preview": 100, "context": 2000, "position": 50}
DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(uint8)": np.uint8}


class DoubleError(AssertionError):
    """The loop did what a GPU would punish, or would silently get wrong."""


@dataclass
class DoubleGpu:
    installed: dict[str, str] = field(default_factory=lambda: {"tensorrt-rtx": "1.7.1.116"})
    count: int = 1
    sm: str = "sm86"
    may_synchronize: bool = False  # with work enqueued; the loop must not
    log: list[str] = field(default_factory=list)  # graph names as they run, "capture", "launch", copies by their way
    bound: list[dict[str, int]] = field(default_factory=list)  # addresses of every enqueued execution

    def __post_init__(self) -> None:
        self.blocks: list[Block] = []  # freed ones stay: their memory is never given out again
        self.queue: list[tuple[Callable[[], None], int]] = []  # (work, event it completes, or 0)
        self.capture: list[Callable[[], None]] | None = None
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.events: dict[int, bool] = {}  # whether the last record of it was passed
        self.streams: set[int] = set()
        self.handles = 1000
        self.broken = ""
        self.deserialized: list[Path] = []
        self.profiles: list[tuple[str, int]] = []  # (graph, profile) of every context, as chosen

    # libraries and device

    def libraries(self) -> dict[str, str]:
        return dict(self.installed)

    def device(self) -> GpuInfo | None:
        return GpuInfo("Double GPU", self.sm, 8 << 30) if self.count else None

    def deserialize(self, record: BuildRecord, file: HeldFile) -> DoublePlan:
        self.demand(self.count > 0, "a TensorRT runtime without a driver crashes")
        self.deserialized.append(file.path)
        return DoublePlan(self, file.path, record)

    # memory

    def malloc(self, size: int) -> int:
        return self._allocate(size, "device").address

    def malloc_host(self, size: int) -> np.ndarray:
        return self._allocate(size, "pinned").data

    def _allocate(self, size: int, kind: str) -> Block:
        self.demand(self.capture is None, "allocation while capturing")
        self.demand(size > 0, "allocation of nothing")
        room = np.full(size + 2 * ALIGNMENT, 0xFF, dtype=np.uint8)  # NaN as float32, -1 as int64
        skip = -room.ctypes.data % ALIGNMENT
        data = room[skip : skip + size]
        block = Block(data.ctypes.data, data, np.zeros(size, dtype=bool), kind)
        self.blocks.append(block)
        return block

    def free(self, pointer: int) -> None:
        self._free(pointer, "device")

    def free_host(self, array: np.ndarray) -> None:
        self._free(array.ctypes.data, "pinned")

    def _free(self, address: int, kind: str) -> None:
        found = [block for block in self.live if block.address == address and block.kind == kind]
        self.demand(len(found) == 1, "free of what is not allocated")
        self.demand(not self.queue, "free while work is enqueued")
        found[0].live = False
        found[0].data[:] = 0xFF

    @property
    def live(self) -> list[Block]:
        return [block for block in self.blocks if block.live]

    def find(self, address: int, size: int) -> tuple[Block, slice]:
        """The live allocation that holds [address, address + size)."""
        for block in self.blocks:
            if block.address <= address < block.address + len(block.data):
                self.demand(block.live, "use after free")
                start = address - block.address
                self.demand(start + size <= len(block.data), f"{size} bytes reach beyond their allocation")
                return block, slice(start, start + size)
        self.demand(False, "address outside every allocation")
        raise AssertionError

    def read(self, address: int, size: int, what: str) -> np.ndarray:
        block, part = self.find(address, size)
        self.demand(block.kind == "pinned" or bool(block.written[part].all()), f"read of memory never written: {what}")
        return block.data[part]

    def write(self, address: int, data: np.ndarray) -> None:
        block, part = self.find(address, data.nbytes)
        block.data[part] = data
        block.written[part] = True

    def copy(self, destination: int, source: int, size: int, stream: int) -> None:
        kinds = self.find(source, size)[0].kind, self.find(destination, size)[0].kind
        way = {("pinned", "device"): "upload", ("device", "pinned"): "download"}.get(kinds, "copy")

        def work() -> None:
            self.log.append(way)
            self.write(destination, self.read(source, size, "source of a copy"))

        self.enqueue(work, stream)

    # streams, events, graphs

    def stream(self) -> int:
        self.streams.add(self._handle())
        return self.handles

    def destroy_stream(self, stream: int) -> None:
        self.demand(not self.queue, "stream destroyed while work is enqueued")
        self.streams.remove(stream)

    def enqueue(self, work: Callable[[], None], stream: int, event: int = 0) -> None:
        self.demand(stream in self.streams, "no such stream")
        if self.capture is not None:
            self.demand(event == 0, "event recorded while capturing")
            self.capture.append(work)
        else:
            self.queue.append((work, event))

    def synchronize(self, stream: int) -> None:
        self.demand(self.capture is None, "synchronisation while capturing")
        self.demand(self.may_synchronize or not self.queue, "host synchronisation while work is enqueued")
        while self.queue:
            self.advance()

    def advance(self) -> None:
        """Does the oldest piece of enqueued work."""
        work, event = self.queue.pop(0)
        work()
        if event and not any(event == later for _, later in self.queue):
            self.events[event] = True

    def event(self) -> int:
        self.events[self._handle()] = True
        return self.handles

    def destroy_event(self, event: int) -> None:
        del self.events[event]

    def record(self, event: int, stream: int) -> None:
        self.events[event] = False
        self.enqueue(lambda: None, stream, event)

    def done(self, event: int) -> bool:
        self.demand(self.capture is None, "event queried while capturing")
        if not self.events[event]:
            self.demand(bool(self.queue), "waiting for an event that nothing will complete")
            self.advance()
        return self.events[event]

    def begin_capture(self, stream: int) -> None:
        self.demand(self.capture is None, "capture within a capture")
        self.capture = []

    def end_capture(self, stream: int) -> int:
        assert self.capture is not None
        self.graphs[self._handle()], self.capture = self.capture, None
        self.log.append("capture")
        return self.handles

    def launch(self, graph: int, stream: int) -> None:
        calls = self.graphs[graph]
        self.log.append("launch")
        self.enqueue(lambda: [work() for work in calls] and None, stream)

    def destroy_graph(self, graph: int) -> None:
        del self.graphs[graph]

    def _handle(self) -> int:
        self.handles += 1
        return self.handles

    def demand(self, fine: bool, complaint: str) -> None:
        """Like CUDA's own errors, the first one stays: whatever is called afterwards reports it again."""
        self.broken = self.broken or ("" if fine else complaint)
        if self.broken:
            raise DoubleError(self.broken)


class DoublePlan:
    """An ONNX graph in a .plan file, with the profiles that the build record beside it gives."""

    capturable = True

    def __init__(self, gpu: DoubleGpu, path: Path, record: BuildRecord) -> None:
        self.gpu, self.graph = gpu, next(graph for graph, name in PLAN_NAMES.items() if name == path.name)
        self.session = session_of(path.read_bytes())
        self.dtypes = {tensor.name: np.dtype(DTYPES[tensor.type]) for tensor in self.session.get_inputs()}
        self.inputs = frozenset(self.dtypes)
        self.outputs = [tensor.name for tensor in self.session.get_outputs()]
        self.profiles = record.plans[self.graph].profiles or [{}]
        self.scratch_bytes = SCRATCH_BYTES[self.graph]

    def context(self, stream: int, profile: int = 0) -> DoubleContext:
        self.gpu.demand(stream in self.gpu.streams, "no such stream")
        return DoubleContext(self, profile)

    def keep(self) -> None:
        self.gpu.demand(not self.gpu.queue, "asked while work is enqueued")


class DoubleContext:
    def __init__(self, plan: DoublePlan, profile: int) -> None:
        self.plan, self.gpu = plan, plan.gpu
        self.set_profile(profile)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.made: dict[str, tuple[int, ...]] = {}  # of outputs, as the loop says
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)
        self.warm = False  # enqueued outside of a capture since the last change of shape

    def set_profile(self, profile: int) -> None:
        self.gpu.demand(0 <= profile < len(self.plan.profiles), f"no profile {profile}")
        self.limits = self.plan.profiles[profile]
        self.gpu.profiles.append((self.plan.graph, profile))

    def set_memory(self, pointer: int, size: int) -> None:
        self.gpu.demand(size >= self.plan.scratch_bytes and pointer % ALIGNMENT == 0, "scratch memory does not do")
        self.memory = (pointer, size)

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        limits = self.limits[name]
        inside = len(shape) == len(limits.min) and all(
            low <= size <= high for low, size, high in zip(limits.min, shape, limits.max, strict=True)
        )
        self.gpu.demand(inside, f"shape {shape} of {name} is outside the profile")
        self.warm = self.warm and self.shapes.get(name) == shape
        self.shapes[name] = shape

    def set_output(self, name: str, shape: tuple[int, ...]) -> None:
        self.gpu.demand(name in self.plan.outputs, f"no output {name}")
        self.made[name] = shape

    def set_address(self, name: str, pointer: int) -> None:
        self.gpu.demand(name in self.plan.inputs or name in self.plan.outputs, f"no tensor {name}")
        self.gpu.demand(pointer % ALIGNMENT == 0, f"address of {name} is not aligned to {ALIGNMENT} bytes")
        self.addresses[name] = pointer

    def capturable(self, stream: int) -> bool:
        self.gpu.demand(self.gpu.capture is None, "asked while capturing")
        return True

    def enqueue(self, stream: int) -> None:
        plan, gpu = self.plan, self.gpu
        for name in plan.inputs:
            gpu.demand(name in self.shapes, f"input {name} has no shape")
        for name in (*plan.inputs, *plan.outputs):
            gpu.demand(name in self.addresses, f"tensor {name} has no address")
        gpu.demand(gpu.capture is None or self.warm, "captured before its first enqueue")
        self.warm = self.warm or gpu.capture is None
        shapes, addresses, (scratch, size) = dict(self.shapes), dict(self.addresses), self.memory
        gpu.bound.append(addresses)
        gpu.find(scratch, size)
        noise = np.random.default_rng(len(gpu.bound)).integers(0, 256, size, dtype=np.uint8)

        def work() -> None:
            gpu.log.append(plan.graph)
            feeds, regions = {}, [(scratch, size)]
            for name, dtype in plan.dtypes.items():
                nbytes = int(np.prod(shapes[name])) * dtype.itemsize
                data = gpu.read(addresses[name], nbytes, f"input {name} of {plan.graph}")
                feeds[name] = data.copy().view(dtype).reshape(shapes[name])
                regions.append((addresses[name], nbytes))
            gpu.write(scratch, noise)
            for name, output in zip(plan.outputs, plan.session.run(plan.outputs, feeds), strict=True):
                start = addresses[name]
                gpu.demand(output.shape == self.made.get(name, output.shape), f"output {name} is {output.shape}")
                overlap = any(start < base + length and base < start + output.nbytes for base, length in regions)
                gpu.demand(not overlap, f"output {name} lies over an input or the scratch memory")
                gpu.write(start, np.ascontiguousarray(output).reshape(-1).view(np.uint8))

        gpu.enqueue(work, stream)
