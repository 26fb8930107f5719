"""TensorRT's versions, flags and messages, with stand-ins for the library."""

from __future__ import annotations

from pathlib import Path

import pytest

from ditedge.runtime.errors import DitedgeError, EngineError, RequestError
from ditedge.runtime.plans import library as tensorrt_library
from ditedge.runtime.plans.options import BuildOptions


class FakeLibrary:
    """Stands for a version of the library: only what `Library` reads."""

    def __init__(self, version: str, **enums: object) -> None:
        self.__version__ = version
        self.__dict__.update(enums)


@pytest.mark.parametrize(
    ("target", "version", "sentence"),
    [
        ("tensorrt", "8.6.1", "TensorRT 8.6.1 is too old: ditedge needs 10.3 or later"),
        ("tensorrt", "10.2.0.19", "TensorRT 10.2.0.19 is too old"),
        ("tensorrt-rtx", "1.0.0", "TensorRT-RTX 1.0.0 is too old"),
    ],
)
def test_old_libraries_are_refused(monkeypatch, target: str, version: str, sentence: str) -> None:
    monkeypatch.setattr(tensorrt_library.importlib, "import_module", lambda _: FakeLibrary(version))
    with pytest.raises(EngineError, match=sentence):
        tensorrt_library.load_library(target)


@pytest.mark.parametrize("version", ["10.3.0.26", "10.14.1.48", "11.4.0.1"])
def test_versions_from_jetpack_6_to_the_newest_are_taken(monkeypatch, version: str) -> None:
    monkeypatch.setattr(tensorrt_library.importlib, "import_module", lambda _: FakeLibrary(version))
    library = tensorrt_library.load_library("tensorrt")
    assert (library.version, library.major) == (version, int(version.split(".")[0]))


def test_a_flag_that_a_version_lacks_is_refused_by_name() -> None:
    library = tensorrt_library.Library("tensorrt", FakeLibrary("11.4.0.1", BuilderFlag=object()), "11.4.0.1")
    with pytest.raises(EngineError, match=r"TensorRT 11.4.0.1 has no BuilderFlag.STRIP_PLAN"):
        library.member("BuilderFlag", "STRIP_PLAN")


def test_a_library_without_its_shared_objects_is_a_sentence(monkeypatch) -> None:
    def broken(_: str) -> object:
        raise ImportError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(tensorrt_library.importlib, "import_module", broken)
    with pytest.raises(EngineError, match="installed but does not load .libnvinfer.so.10"):
        tensorrt_library.load_library("tensorrt")


TENSORRT = tensorrt_library.Library("tensorrt", FakeLibrary("10.3.0.26"), "10.3.0.26")


ORIN = tensorrt_library.GpuInfo("Orin", "sm87", 8 << 30)


@pytest.mark.parametrize(
    ("gpu", "options", "sentence"),
    [
        (None, BuildOptions("tensorrt"), "there is no GPU or NVIDIA driver here"),
        (ORIN, BuildOptions("tensorrt", archs=("sm86",)), "--arch is not for TensorRT 10.3.0.26"),
        (ORIN, BuildOptions("tensorrt", max_rows=0), "must be at least 1"),
    ],
)
def test_what_full_tensorrt_refuses(gpu: object, options: BuildOptions, sentence: str) -> None:
    from ditedge.runtime.plans.build import check_options

    with pytest.raises(DitedgeError, match=sentence):
        check_options(TENSORRT, gpu, options)


def test_full_tensorrt_on_a_gpu_takes_every_option() -> None:
    from ditedge.runtime.plans.build import check_options

    everything = BuildOptions("tensorrt", version_compatible=True, hardware_compatible=True, refit=True, dla=0)
    check_options(TENSORRT, ORIN, everything)


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ("CUDA initialization failure with error: 35", "there is no NVIDIA driver here"),
        ("[checkMacros.cpp] (cudaError 35: CUDA driver version is insufficient)", "no NVIDIA driver"),
        ("IBuilder::build: Error Code 2: OutOfMemory (no further information)", "smaller --max-batch or --workspace"),
        ("Error Code 10: Could not find any implementation for node Foo.", "no kernel for Foo"),
        (
            "IBuilder::x: Error Code 4: API Usage Error (odd thing. In f at /_src/a/b.cpp:12)",
            "API Usage Error (odd thing.",
        ),
    ],
)
def test_messages_of_the_library_become_sentences(message: str, sentence: str) -> None:
    from ditedge.runtime.plans.messages import refusal

    said = refusal("step.onnx", TENSORRT, [message])
    assert said.startswith("TensorRT 10.3.0.26 refuses step.onnx: ") and sentence in said and "_src" not in said


def test_a_timing_cache_is_read_and_written_atomically(tmp_path: Path) -> None:
    """With the calls of the library recorded: TensorRT-RTX times nothing, so no cache can be real here."""
    from ditedge.runtime.plans.graph import _load_timing_cache

    given: list[bytes] = []

    class Config:
        accepts = True

        def create_timing_cache(self, data: bytes) -> bytes:
            given.append(data)
            return data

        def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
            assert ignore_mismatch is False
            return self.accepts

    path = tmp_path / "timing.cache"
    _load_timing_cache(TENSORRT, Config(), path)
    path.write_bytes(b"timings")
    _load_timing_cache(TENSORRT, Config(), path)
    assert given == [b"", b"timings"]
    Config.accepts = False
    with pytest.raises(RequestError, match="is no timing cache of TensorRT 10.3.0.26"):
        _load_timing_cache(TENSORRT, Config(), path)
