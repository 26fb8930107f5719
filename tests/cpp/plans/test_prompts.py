"""Prompts on a device in libditedge: plans, and ONNX Runtime's CUDA provider, over the doubles of their libraries."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from capi_ctypes import Ditedge, DitedgeError

from ditedge.runtime import generate, open_bundle
from ditedge.runtime.loop.prompts import prompt_of_ids, read_prompt
from ditedge.runtime.loop.verify import relative_error
from tests.conftest import BUNDLES, PIXART
from tests.cpp.plan_text import with_cpp_plans
from tests.cpp.plans.support import Double
from tests.cpp.plans.test_ort_cuda import cuda_handles, provider  # noqa: F401  (a fixture)
from tests.cpp.support import FOX, REQUEST, SNOW, TOLERANCE

Opened = Callable[..., Ditedge]
WIDE = (96, 48)


@pytest.fixture(scope="session")
def folder(tensorrt_version: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cpp-prompts") / "bundle"
    shutil.copytree(BUNDLES / PIXART, out)
    return with_cpp_plans(out, tensorrt_version, latents=((8, 8), (6, 12)))


@pytest.fixture(params=["plans", "onnxruntime"])
def handle(request: pytest.FixtureRequest, folder: Path) -> Any:
    if request.param == "plans":
        return request.getfixturevalue("opened")(folder)
    return request.getfixturevalue("cuda_handles")(folder)


def test_latents_and_pictures_equal_pythons(handle: Ditedge, folder: Path, recorded: Path) -> None:
    """By ids and recorded, with negative prompts, other prompts in a shape that is kept, another size, and back again."""
    bundle = open_bundle(folder)
    fox, boot, snow = handle.prompt(FOX), handle.prompt(recorded), handle.prompt(SNOW)
    of = {fox.value: prompt_of_ids(FOX), boot.value: read_prompt(recorded, bundle), snow.value: prompt_of_ids(SNOW)}
    for prompts, negatives, size, guidance in (
        ([fox, boot, fox, snow], None, (0, 0), 3.0),
        ([snow, fox, boot, boot], None, (0, 0), 3.0),
        ([snow, fox], [boot, None], WIDE, 2.5),
        ([boot], None, WIDE, 1.0),
        ([fox, boot, fox, snow], None, (0, 0), 3.0),
    ):
        seeds = list(range(len(prompts)))
        fields: dict[str, Any] = {"prompts": prompts, "batch": 3, "guidance": guidance, "program": b"ddpm-10"}
        fields |= {"pixels": size, "negatives": negatives}
        options: dict[str, Any] = {"prompts": [of[p.value] for p in prompts], "guidance": guidance, "batch": 3}
        options |= {"program": bundle.program("ddpm-10"), "size": size if any(size) else None}
        if negatives is not None:
            options["negative"] = [None if p is None else of[p.value] for p in negatives]
        mine = handle.generate(None, seeds, images=False, **fields)
        assert relative_error(mine, generate(bundle, seeds=seeds, output="latents", **options)) < TOLERANCE
        pictures = handle.generate(None, seeds, **fields)
        assert np.mean(pictures == generate(bundle, seeds=seeds, **options)) >= 0.999


def test_each_prompt_and_size_is_evaluated_once(opened: Opened, folder: Path, double: Double) -> None:
    handle = opened(folder)
    fox, snow = handle.prompt(FOX), handle.prompt(SNOW)
    for _ in range(2):
        handle.generate(None, [1, 2, 3], images=False, prompts=[fox, snow, fox], batch=2, program=b"ddim-10")
    counts = double.report["counts"]
    assert (counts["context"], counts["position"]) == (3, 1)  # and that of no words


def test_sizes_that_were_not_built_are_refused_with_pythons_sentence(opened: Opened, folder: Path) -> None:
    handle = opened(folder)
    words = (
        "the plans were built for pictures of 64x64, 96x48, and not of 32x64: use --size 64x64, or build with --size"
    )
    with pytest.raises(DitedgeError, match=words) as caught:
        handle.generate(None, [1], images=False, prompts=[handle.prompt(FOX)], pixels=(32, 64))
    assert caught.value.status == REQUEST
