"""Prompts on a device: the loop for plans, and ONNX Runtime's CUDA provider, over the strict doubles of their libraries."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ditedge.runtime import EngineOptions, Session, generate, open_bundle
from ditedge.runtime.bundle.open import Bundle
from ditedge.runtime.errors import RequestError
from ditedge.runtime.loop import device_prompts, engine_ort_cuda
from ditedge.runtime.loop.device_engine import KEPT
from ditedge.runtime.loop.engines import open_engine
from ditedge.runtime.loop.prompts import prompt_of_ids, prompt_of_rows
from ditedge.runtime.loop.text_graphs import TextGraphs
from ditedge.runtime.loop.verify import replay
from tests.conftest import BUNDLES, PIXART
from tests.doubles.gpu_double import DoubleGpu
from tests.doubles.ort_double import OrtDouble
from tests.doubles.plans import write_plans
from tests.runtime.loop.on_plans import plans, same

WIDE, TALL = (96, 48), (32, 64)  # pixels; latents have an eighth, height first
FOX, BOOT, SNOW = (prompt_of_ids(ids) for ids in ([4, 5, 6, 1], [9, 5, 7, 12, 3, 1], [8, 1]))
Opened = Callable[[], Session]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prompts") / "bundle"
    shutil.copytree(BUNDLES / PIXART, out)
    write_plans(out, latents=((8, 8), (6, 12)))
    return out


@pytest.fixture
def bundle(folder: Path) -> Bundle:
    return open_bundle(folder)


@pytest.fixture
def cuda(bundle: Bundle, gpu: DoubleGpu, monkeypatch) -> Opened:
    """Opens a session of `--provider cuda` on the double, with the text encoder on the CPU: its double has no copies."""
    gpu.installed.clear()
    double = OrtDouble(gpu)
    monkeypatch.setattr(engine_ort_cuda, "check_can_start", lambda provider: None)
    monkeypatch.setattr(engine_ort_cuda, "open_session", lambda *graph: double.open(*graph))

    def make() -> Session:
        session = Session(bundle, EngineOptions("cuda"))
        session._host.engines["text"] = open_engine(bundle.graph("text"), EngineOptions())
        return session

    return make


@pytest.fixture(params=["plans", "onnxruntime"])
def device(request: pytest.FixtureRequest, bundle: Bundle, gpu: DoubleGpu) -> Iterator[Opened]:
    """Opens a session of either kind; nothing may be left of it on the double."""
    yield request.getfixturevalue("cuda") if request.param == "onnxruntime" else lambda: plans(bundle)
    assert not gpu.live and not gpu.graphs and not gpu.events and not gpu.streams


def sampled(bundle: Bundle, session: Session, **options: Any) -> np.ndarray:
    settings: dict[str, Any] = {"prompts": [FOX, BOOT, FOX, SNOW], "seeds": [1, 2, 3, 4], "batch": 3, "guidance": 3.0}
    settings |= {"program": bundle.program("ddpm-10"), "output": "latents"}
    return generate(bundle, session=session, **settings | options)


@pytest.fixture
def rows(bundle: Bundle) -> dict[str, Any]:
    """Recorded prompts: neither needs a text encoder."""
    with Session(bundle) as session:
        return {name: prompt_of_rows(session.encode(prompt)) for name, prompt in (("fox", FOX), ("snow", SNOW))}


def test_equals_the_host(device: Opened, bundle: Bundle, rows: dict[str, Any]) -> None:
    """Other prompts in a shape that is kept, negative ones, recorded ones, no guidance, another size, and back again."""
    with Session(bundle) as host, device() as session:
        for options in (
            {},
            {"prompts": [SNOW, FOX, BOOT, BOOT]},
            {"negative": BOOT},
            {"prompts": [rows["fox"], rows["snow"]], "seeds": [5, 6]},
            {"guidance": 1.0},
            {"size": WIDE},
            {},
        ):
            same(sampled(bundle, session, **options), sampled(bundle, host, **options))


def test_pictures_and_golden_trajectories(device: Opened, bundle: Bundle, gpu: DoubleGpu) -> None:
    with Session(bundle) as host, device() as session:
        assert all(replay(session, golden).passed for golden in bundle.manifest.golden)
        for size in ((64, 64), WIDE):
            options = {"output": "images", "size": size, "program": bundle.program("ddim-10")}
            assert np.array_equal(sampled(bundle, session, **options), sampled(bundle, host, **options))
    assert "decoder" in gpu.log


def test_each_prompt_and_size_is_evaluated_once(device: Opened, bundle: Bundle, gpu: DoubleGpu) -> None:
    """Three prompts and that of no words; what a batch of the same prompts reads is on the device already."""
    with device() as session:
        first = sampled(bundle, session)
        assert gpu.log.count("context") == 4 and gpu.log.count("position") == 1
        uploads = gpu.log.count("upload")
        again = sampled(bundle, session, batch=4)
        of_four = gpu.log.count("upload") - uploads
        sampled(bundle, session, batch=4, seeds=[9, 8, 7, 6])
        assert gpu.log.count("context") == 4 and gpu.log.count("position") == 1
        assert gpu.log.count("upload") - uploads - of_four == of_four - 1  # but for what is made of prompts
    same(again, first)


def test_prompts_are_captured_with_the_steps(bundle: Bundle, gpu: DoubleGpu) -> None:
    """A replayed graph reads the prompts of its own run."""
    with Session(bundle) as host, plans(bundle) as session:
        for prompts in ([FOX, BOOT], [FOX, SNOW], [BOOT, SNOW], [SNOW, BOOT]):
            options = {"prompts": prompts, "seeds": [1, 2], "negative": prompt_of_ids([3, 1])}
            same(sampled(bundle, session, **options), sampled(bundle, host, **options))
    assert gpu.log.count("capture") > 0 and gpu.log.count("launch") > gpu.log.count("capture")


def test_what_stays_there_wrongly_is_noticed(bundle: Bundle, gpu: DoubleGpu, monkeypatch) -> None:
    real = device_prompts.Prompts.upload
    never_again = lambda self, *told: None if self._there else real(self, *told)  # noqa: E731
    monkeypatch.setattr(device_prompts.Prompts, "upload", never_again)
    with Session(bundle) as host, plans(bundle) as session:
        for prompts, fits in (([FOX], True), ([SNOW], False)):
            options = {"prompts": prompts, "seeds": [1]}
            difference = np.abs(sampled(bundle, session, **options) - sampled(bundle, host, **options)).max()
            assert (difference < 1e-4) == fits


def test_sizes_that_were_not_built_are_refused(bundle: Bundle, gpu: DoubleGpu) -> None:
    with plans(bundle) as session:
        words = (
            "plans were built for pictures of 64x64, 96x48, and not of 32x64: use --size 64x64, or build with --size"
        )
        with pytest.raises(RequestError, match=words):
            sampled(bundle, session, size=TALL)
        assert np.isfinite(sampled(bundle, session, size=WIDE)).all()


def test_few_sizes_are_kept(bundle: Bundle, cuda: Opened) -> None:
    options = {
        "prompts": [FOX],
        "seeds": [1],
        "output": "images",
        "guidance": 1.0,
        "program": bundle.program("ddim-10"),
    }
    with cuda() as session:
        for side in range(16, 128, 16):
            sampled(bundle, session, size=(side, 64), **options)
        assert len(session.loop._engines._calls) <= KEPT + 2  # trimmed where a run begins


def test_contexts_of_the_same_prompts_are_gathered_once(bundle: Bundle, monkeypatch) -> None:
    """Step after step of a batch of images that are sampled one beside the other."""
    gathered, real = [], TextGraphs._together

    def watched(self: TextGraphs, prompts, of):
        return real(self, prompts, lambda prompt: gathered.append(prompt.key) or of(prompt))

    monkeypatch.setattr(TextGraphs, "_together", watched)
    program = bundle.program("ddim-10")
    with Session(bundle) as session:
        runs = [session.start(program, prompt, 1) for prompt in (FOX, SNOW)]
        while not runs[0].done:
            session.advance(runs)
        assert len(gathered) == 3  # and that of no words
        runs = [session.start(program, prompt, 1) for prompt in (BOOT, SNOW)]
        session.advance(runs)
        assert len(gathered) == 6
