"""What of `TorchGpu` can be tried without a GPU: its code over a fake libcudart, and what its modules ask of a capture."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import BUNDLES, GOLDEN

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from ditedge.runtime.plans.library import GpuInfo  # noqa: E402
from tests.doubles.fake_cudart import FakeCudart  # noqa: E402
from tests.doubles.gpu_double import DoubleGpu  # noqa: E402
from tests.gpu import gpu_check, loop_checks, torch_plan  # noqa: E402
from tests.gpu.torch_plan import Subject, TorchGpu, modules_of  # noqa: E402


class FakeTorchGpu(TorchGpu):
    """With memory of the host behind its pointers. Only its stream is another: the double does work when it is polled."""

    def __init__(self, bundle, modules) -> None:
        super().__init__(bundle, modules)
        self.double = DoubleGpu()
        self._library = FakeCudart(self.double).library()

    def device(self) -> GpuInfo:
        return GpuInfo("Fake GPU", "sm90", 80 << 30)

    def do(self, work: Callable[[], None], stream: int, pool: object) -> None:
        assert pool == "pool"
        self.double.enqueue(work, stream)

    def put(self, address: int, result) -> None:
        super().put(address, result)
        block, part = self.double.find(address, result.numel() * result.element_size())
        block.written[part] = True


@pytest.fixture
def subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    def as_tensor(thing, device: str):
        assert device == "cuda"
        interface = thing.__cuda_array_interface__
        (size,), (pointer, _) = interface["shape"], interface["data"]
        return torch.from_numpy(np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer)))

    ones, cuda = torch.ones, torch.cuda
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda module: module)
    monkeypatch.setattr(torch, "as_tensor", as_tensor)
    monkeypatch.setattr(torch, "ones", lambda *size, device: ones(*size))
    monkeypatch.setattr(cuda, "MemPool", lambda: "pool")
    monkeypatch.setattr(cuda, "ExternalStream", lambda stream: stream)
    monkeypatch.setattr(cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch_plan, "TorchGpu", FakeTorchGpu)
    return Subject(BUNDLES / "gray1_cfg", GOLDEN / "gray1_cfg" / "model.pt", tmp_path / "demo", host=False)


@pytest.mark.parametrize("check", ["golden", "programs", "bits", "ring", "batches", "cancelled"])
def test_the_checks_run_over_a_fake_libcudart(subject: Subject, check: str) -> None:
    lab = SimpleNamespace(subject=subject, host=True)  # fewer steps where a GPU does more
    assert getattr(loop_checks, check)(lab)


def test_nothing_is_left(subject: Subject) -> None:
    gpu = subject.gpu()
    with subject.session(gpu=gpu) as session:
        subject.sample(session, output="images")
        assert gpu.left() and gpu.double.live
    assert not gpu.left() and not gpu.double.live and not gpu.double.graphs and not gpu.double.streams


def test_tensors_lie_in_the_allocation_that_holds_their_address(subject: Subject) -> None:
    gpu = subject.gpu()
    first, second = (gpu.malloc(size) for size in (1024, 512))
    for start in (first, second):
        gpu.put(start + 256, torch.arange(16.0))
        assert gpu.tensor(start + 256 + 8, (2, 3), torch.float32).tolist() == [[2, 3, 4], [5, 6, 7]]
        assert gpu.tensor(start + 256, (1,), torch.float32).data_ptr() == start + 256
    with pytest.raises(AssertionError, match="beyond its allocation"):
        gpu.tensor(second + 256, (65,), torch.float32)


@pytest.mark.parametrize("case", ["gray1_cfg", "latent4_learned_sigma"])
def test_no_module_reads_a_tensor_of_the_host(case: str) -> None:
    """Not even a number: in a capture that would be a copy from memory which is not pinned, which CUDA refuses."""
    bundle, found = torch_plan.open_bundle(BUNDLES / case), []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            tensors = [x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
            found.extend(str(function) for x in tensors if x.device.type != "meta")
            return function(*args, **(kwargs or {}))

    sizes = {"B": 2, "K": 1, "K+2": 3, "E": 4, "U": 3}
    for graph, module in modules_of(bundle, GOLDEN / case / "model.pt").items():
        feeds = {
            tensor.name: torch.empty(
                [sizes.get(size, size) for size in tensor.shape], dtype=torch_plan.DTYPES[tensor.dtype], device="meta"
            )
            for tensor in bundle.manifest.graphs[graph].inputs
        }
        module.to("meta")
        with torch.no_grad(), Watch():
            module(**feeds)
    assert not found


@pytest.mark.parametrize("late", [0, 1])
def test_noise_of_another_draw_is_noticed(monkeypatch: pytest.MonkeyPatch, late: int) -> None:
    drawn: list[int] = []

    class FakeTorch:
        def manual_seed(self, seed: int) -> None:
            self.seed = seed
            drawn.clear()

        def randn(self, *shape: int, device: str):
            drawn.append(1)
            numbers = loop_checks.standard_normal(self.seed, len(drawn) - 1 + late, int(np.prod(shape)))
            return torch.from_numpy(numbers.reshape(shape))

    monkeypatch.setattr(loop_checks, "torch", FakeTorch())
    monkeypatch.setattr(loop_checks, "SHAPES", ((3, 29, 31), (4, 8, 8)))
    lab = SimpleNamespace(host=False)
    if late:
        with pytest.raises(AssertionError, match="seed 0, shape .*apart"):
            loop_checks.noise(lab)
    else:
        assert "100.0% equal to the bit" in loop_checks.noise(lab)


def test_the_speed_of_a_run_is_told_batch_by_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = gpu_check.arguments(
        ["--host", "--bundle", str(BUNDLES / "gray1_cfg"), "--ckpt", str(GOLDEN / "gray1_cfg" / "model.pt")]
    )
    told: list[str] = []
    monkeypatch.setattr(gpu_check, "tell", lambda say: told.append(say))
    assert loop_checks.idle(gpu_check._lab(given, tmp_path)) == ""
    assert [text.partition(":")[0] for text in told] == ["batch 1", "batch 8"]
