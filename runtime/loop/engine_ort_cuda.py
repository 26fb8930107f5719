"""ONNX Runtime's CUDA provider behind the seam of plans (engine_trt.py): a bundle's own graphs, always on the device.

Nothing is built, and any NVIDIA GPU will do that this ONNX Runtime is for. Tensors are bound by their addresses on the
device, and the provider works on the loop's stream, which it does not stop at the end of a run where every node is on
the device. It may allocate in any run, which a capture forbids, so every step is enqueued plainly.
"""

from __future__ import annotations

from typing import Any

from ..bundle.graph_contract import GraphInfo
from ..bundle.open import Bundle
from ..errors import EngineError, first_line
from ..plans.profile import Sizes, graph_profile
from ..plans.record import PLAN_NAMES, BuildRecord, PlanInfo
from .engine import EngineOptions
from .engine_ort import PROVIDERS, check_can_start, open_session
from .engine_trt import Context, Gpu, Plan

PROVIDER = "cuda"  # by its full name it is the host's loop, which copies what every step reads and writes
STREAM = "user_compute_stream"
KEEP_GOING = ("disable_synchronize_execution_providers", "1")  # of a run: the loop waits for events of its own
ANY = 1 << 20  # as large as anything that is asked of a plan
Bound = tuple[tuple[str, int], ...]  # tensor and address, of every tensor


def open_graphs(bundle: Bundle, gpu: Gpu, options: EngineOptions) -> tuple[BuildRecord, dict[str, Plan], int]:
    """A record without limits, the bundle's graphs, and the stream of their work. Raises EngineError, BundleError."""
    check_can_start(options.provider)
    stream = gpu.stream()
    try:
        plans: dict[str, Plan] = {}
        for graph, info in bundle.manifest.graphs.items():
            if graph in PLAN_NAMES:
                session = open_session(bundle.graph(graph), options, {STREAM: str(stream)})
                plans[graph] = OrtPlan(graph, info, session)
    except BaseException:
        gpu.destroy_stream(stream)
        raise
    return record_of(bundle), plans, stream


def record_of(bundle: Bundle) -> BuildRecord:
    """As of plans that were built for every size. It is in no file, so its library has a name that no file may give."""
    sizes = Sizes(ANY, ANY, ANY)
    profiles = {graph: graph_profile(bundle.manifest, graph, sizes) for graph in bundle.manifest.graphs}
    plans = {graph: PlanInfo.model_construct(file=graph, profile=profile) for graph, profile in profiles.items()}
    return BuildRecord.model_construct(library="onnxruntime", max_batch=ANY, max_rows=ANY, plans=plans)


class OrtPlan:
    """One graph in an onnxruntime.InferenceSession on the loop's stream."""

    capturable = False
    scratch_bytes = 0  # it allocates by itself, and keeps what it allocated

    def __init__(self, graph: str, info: GraphInfo, session: Any) -> None:
        import onnxruntime

        self.info, self.session = info, session
        self.inputs = frozenset(tensor.name for tensor in info.inputs)
        _check_inputs(graph, session)
        self.run_options = onnxruntime.RunOptions()
        if _all_on_device(session):
            self.run_options.add_run_config_entry(*KEEP_GOING)

    def context(self, stream: int, profile: int = 0) -> Context:
        return OrtContext(self)

    def keep(self) -> None:
        """Nothing is compiled here."""


class OrtContext:
    """Bindings of one graph, by the addresses in them: a run has few, because its steps take turns at a few places."""

    def __init__(self, plan: OrtPlan) -> None:
        self._plan = plan
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._bindings: dict[Bound, Any] = {}

    def set_memory(self, pointer: int, size: int) -> None:
        """It has its own."""

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self._shapes[name] = shape
        self._bindings.clear()

    def set_output(self, name: str, shape: tuple[int, ...]) -> None:
        self.set_shape(name, shape)

    def set_address(self, name: str, pointer: int) -> None:
        self._addresses[name] = pointer

    def capturable(self, stream: int) -> bool:
        return False

    def enqueue(self, stream: int) -> None:
        bound = tuple(sorted(self._addresses.items()))
        if bound not in self._bindings:
            self._bindings[bound] = self._bind()
        try:
            self._plan.session.run_with_iobinding(self._bindings[bound], self._plan.run_options)
        except Exception as error:  # onnxruntime's own exception types are not public
            raise EngineError(f"ONNX Runtime failed: {first_line(error)}") from None

    def _bind(self) -> Any:
        info, binding = self._plan.info, self._plan.session.io_binding()
        for tensors, bind in ((info.inputs, binding.bind_input), (info.outputs, binding.bind_output)):
            for tensor in tensors:
                place = self._shapes[tensor.name], self._addresses[tensor.name]
                bind(tensor.name, PROVIDER, 0, tensor.dtype, *place)
        return binding


def _check_inputs(graph: str, session: Any) -> None:
    """Raises EngineError when an input is read on the CPU: it would be copied when it is bound, and not at each run."""
    known = getattr(session, "get_input_memory_infos", None)  # from ONNX Runtime 1.23 on
    for tensor, memory in zip(session.get_inputs(), known() if known is not None else (), strict=known is not None):
        if memory.name == "Cpu":
            raise EngineError(
                f"provider '{PROVIDER}' leaves input {tensor.name} of graph {graph} to the CPU: "
                "use --provider CUDAExecutionProvider, which copies every step's tensors"
            )


def _all_on_device(session: Any) -> bool:
    """Whether no node is on the CPU; False where ONNX Runtime (before 1.24) does not say so.

    What a node on the CPU leaves in pinned memory is still being copied when a run returns that does not wait, and the
    next run may write there.
    """
    try:
        parts = session.get_provider_graph_assignment_info()
    except Exception:  # an older one, and builds that do not record it
        return False
    return bool(parts) and all(part.ep_name == PROVIDERS[PROVIDER] for part in parts)
