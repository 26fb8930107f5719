"""CUDA's runtime: which library is taken for which driver, and its errors as sentences; the real one where it is."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ditedge.runtime.errors import EngineError
from ditedge.runtime.loop import cuda, engine_trt
from ditedge.runtime.loop.cuda import Cuda, load_cudart
from ditedge.runtime.plans.library import GpuInfo, first_gpu
from tests.doubles.fake_cudart import driver_library


def libraries(monkeypatch: pytest.MonkeyPatch, driver: int, *versions: int) -> list[str]:
    """libcudart of these versions are on this machine, and a driver. Returns the names that are asked for."""
    monkeypatch.delenv(cuda.VARIABLE, raising=False)
    monkeypatch.setattr(cuda.importlib.util, "find_spec", lambda name: None)
    asked: list[str] = []

    def load(name: str) -> Any:
        asked.append(name)
        for version in versions:
            if name.endswith(f".so.{version}"):
                return driver_library(version * 1000, driver)
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(cuda.ctypes, "CDLL", load)
    return asked


def version_of(library: Any) -> int:
    number = ctypes.c_int()
    library.cudaRuntimeGetVersion(ctypes.byref(number))
    return number.value


@pytest.mark.parametrize(
    ("driver", "versions", "taken"),
    [(13000, (13, 12), 13), (12040, (13, 12), 12), (12040, (12,), 12), (13000, (12,), 12)],
)
def test_the_newest_library_that_the_driver_runs(
    monkeypatch: pytest.MonkeyPatch, driver: int, versions: tuple[int, ...], taken: int
) -> None:
    libraries(monkeypatch, driver, *versions)
    assert version_of(load_cudart()) == 1000 * taken


@pytest.mark.parametrize(
    ("driver", "versions", "complaint"),
    [
        (
            12040,
            (13,),
            "driver, which is for CUDA 12.4, is too old for CUDA 13.0: update it, or .* library of CUDA 12$",
        ),
        (11080, (13, 12), "for CUDA 11.8, is too old for CUDA 13.0 and CUDA 12.0: update it"),
        (13000, (), r"CUDA's runtime library \(libcudart.so.13 or libcudart.so.12\) is not to be found.*pip install"),
        (0, (13, 12), "^there is no NVIDIA driver$"),
    ],
)
def test_what_keeps_it_from_running_is_said(
    monkeypatch: pytest.MonkeyPatch, driver: int, versions: tuple[int, ...], complaint: str
) -> None:
    """Error 35 is "CUDA driver version is insufficient for CUDA runtime version", and no missing device."""
    libraries(monkeypatch, driver, *versions)
    with pytest.raises(EngineError, match=complaint):
        load_cudart()


def test_an_old_driver_is_no_missing_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    libraries(monkeypatch, 12020, 13)
    monkeypatch.setattr(engine_trt, "first_gpu", lambda: GpuInfo("Orin", "sm87", 8 << 30))
    with pytest.raises(EngineError, match="for CUDA 12.2, is too old for CUDA 13.0"):
        engine_trt.NvidiaGpu().device()


def test_a_library_that_is_named_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = libraries(monkeypatch, 13000, 13, 12)
    monkeypatch.setenv(cuda.VARIABLE, "/opt/cuda/libcudart.so.12")
    assert version_of(load_cudart()) == 12000 and asked == ["/opt/cuda/libcudart.so.12"]


def test_another_library_of_that_name_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    libraries(monkeypatch, 13000, 12)
    found = cuda.ctypes.CDLL
    monkeypatch.setattr(cuda.ctypes, "CDLL", lambda name: SimpleNamespace() if name.endswith("13") else found(name))
    assert version_of(load_cudart()) == 12000


def test_nvidias_packages_are_searched(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    asked = libraries(monkeypatch, 13000, 13)
    folder = tmp_path / "nvidia" / "cuda_runtime" / "lib"
    folder.mkdir(parents=True)
    (folder / "libcudart.so.12").touch()
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "nvidia")])
    monkeypatch.setattr(cuda.importlib.util, "find_spec", lambda name: spec if name == "nvidia" else None)
    monkeypatch.setattr(cuda, "NAMES", ("libcudart.so.11", "libcudart.so.12"))
    with pytest.raises(EngineError, match="not to be found"):
        load_cudart()
    assert asked == ["libcudart.so.11", "libcudart.so.12", str(folder / "libcudart.so.12")]


def test_errors_become_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    libraries(monkeypatch, 13000, 13)
    device = Cuda()
    assert device.malloc(1024) == 0  # the fake writes no address
    with pytest.raises(
        EngineError, match="^CUDA: cudaMalloc failed with cudaErrorMemoryAllocation: use a smaller --batch$"
    ):
        device.malloc(1 << 33)  # more than 32 bits


def test_pinned_memory_is_the_pointers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    device, room = Cuda(), np.zeros(64, dtype=np.uint8)
    monkeypatch.setattr(device, "_made", lambda name, *arguments: room.ctypes.data)
    device.malloc_host(64)[:] = 7
    assert room.tolist() == [7] * 64


CALLS: dict[str, Callable[[Cuda], Any]] = {
    "malloc": lambda device: device.malloc(1024),
    "free": lambda device: device.free(4096),
    "malloc_host": lambda device: device.malloc_host(1024),
    "copy": lambda device: device.copy(4096, 8192, 16, 0),
    "stream": lambda device: device.stream(),
    "synchronize": lambda device: device.synchronize(0),
    "event": lambda device: device.event(),
    "record": lambda device: device.record(0, 0),
    "done": lambda device: device.done(0),
    "begin_capture": lambda device: device.begin_capture(0),
    "end_capture": lambda device: device.end_capture(0),
    "launch": lambda device: device.launch(0, 0),
    "set_device": lambda device: device.set_device(),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_real_library_takes_every_call(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Up to where a driver would be needed."""
    if first_gpu() is not None:
        pytest.skip("this machine has a GPU: null handles would not be refused")
    monkeypatch.setattr(cuda, "DRIVER_TOO_OLD", -1)  # of no driver: so that the library is taken all the same
    try:
        device = Cuda()
        device.load()
    except EngineError as error:
        pytest.skip(str(error))
    with pytest.raises(EngineError, match=r"^CUDA: cuda\w+ failed with cudaError\w+"):
        CALLS[name](device)
