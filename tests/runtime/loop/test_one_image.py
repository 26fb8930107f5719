"""The second profile of a step plan: chosen for one image, as the default program binds it, and for nothing else."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ditedge.runtime import open_bundle
from ditedge.runtime.bundle.open import Bundle
from tests.doubles.gpu_double import DoubleGpu
from tests.doubles.plans import write_plans
from tests.runtime.loop.on_plans import latents, plans, same

ONE = {"labels": [3], "seeds": [11]}


@pytest.fixture(scope="module")
def two_profiles(golden_bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = Path(shutil.copytree(golden_bundle("gray1_cfg"), tmp_path_factory.mktemp("one") / "gray"))
    write_plans(folder, one_image=True)
    return open_bundle(folder)


def profiles_of_step(gpu: DoubleGpu) -> set[int]:
    return {profile for graph, profile in gpu.profiles if graph == "step"}


def test_one_guided_image_of_the_default_program_takes_it(two_profiles: Bundle, plan_bundle, gpu: DoubleGpu) -> None:
    program = two_profiles.program()
    with plans(two_profiles) as device:
        alone = latents(two_profiles, device, program, **ONE)
    assert profiles_of_step(gpu) == {1}
    assert {profile for graph, profile in gpu.profiles if graph != "step"} == {0}
    gpu.profiles.clear()
    ordinary = plan_bundle("gray1_cfg")
    with plans(ordinary) as device:
        same(alone, latents(ordinary, device, program, **ONE))
    assert profiles_of_step(gpu) == {0}, "a plan that has one profile"


OTHERS = {
    "two images": ({"labels": [3, 4], "seeds": [11, 12]}, {}),
    "one evaluation a step": (ONE | {"guidance": 1.0}, {}),
    "fewer slots": (ONE, {"sampler": "ddim", "steps": 4}),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_runs_take_the_first_profile(two_profiles: Bundle, gpu: DoubleGpu, case: str) -> None:
    options, settings = OTHERS[case]
    with plans(two_profiles) as device:
        latents(two_profiles, device, two_profiles.program(**settings), **options)
    assert profiles_of_step(gpu) == {0}


def test_each_kind_of_step_takes_its_own(two_profiles: Bundle, gpu: DoubleGpu) -> None:
    """Guidance in a part of the steps: those of two evaluations on one profile, the others on the other."""
    program = two_profiles.program(sampler="dpm++", steps=6)
    program = replace(program, guidance=np.array([1.0, 1.0, 1.0, 0.0, 0.0, 1.0]))
    with plans(two_profiles) as device:
        latents(two_profiles, device, program, **ONE)
    assert profiles_of_step(gpu) == {0, 1}
