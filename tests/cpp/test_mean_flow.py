"""Models that are told how far a step goes, from C++ as from Python."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from capi_ctypes import DitedgeError

from ditedge.runtime import generate, open_bundle
from ditedge.runtime.loop.verify import relative_error
from ditedge.runtime.samplers.program import write_program
from tests.cpp.support import TOLERANCE


@pytest.mark.parametrize(
    ("program", "guidance"),
    [("mean-flow-1", 1.0), ("mean-flow-2", 1.0), ("mean-flow-4", 2.0), ("mean-consistency-2", 1.0)],
)
def test_the_same_numbers(opened, mean_flow_bundle: Path, program: str, guidance: float) -> None:
    fields = {"program": program.encode(), "guidance": guidance}
    mine = opened(mean_flow_bundle).generate([3, 1, 3], [7, 8, 7], images=False, **fields)
    bundle = open_bundle(mean_flow_bundle)
    settings = {"program": bundle.program(program), "guidance": guidance}
    assert relative_error(mine, generate(bundle, [3, 1, 3], [7, 8, 7], output="latents", **settings)) < TOLERANCE
    assert np.array_equal(mine[0], mine[2])


@pytest.mark.parametrize("guidance", [None, 3.0])
def test_guidance_is_a_number_that_models_of_classes_may_read(
    opened, improved_mean_flow_bundle: Path, guidance: float | None
) -> None:
    """None: the bundle's own. Another is other pictures, by one evaluation a step all the same."""
    bundle = open_bundle(improved_mean_flow_bundle)
    own = bundle.manifest.defaults.guidance
    fields = {"program": b"mean-flow-2", "guidance": guidance or own}
    mine = opened(improved_mean_flow_bundle).generate([3, 1], [7, 8], images=False, **fields)
    theirs, unguided = (
        generate(bundle, [3, 1], [7, 8], output="latents", program=bundle.program("mean-flow-2"), guidance=scale)
        for scale in (guidance, 1.0)
    )
    assert relative_error(mine, theirs) < TOLERANCE
    assert relative_error(mine, unguided) > 5e-4  # measured with these weights: 0.0014 and 0.0011


def test_a_model_that_reads_its_guidance_is_evaluated_once_a_step(opened, improved_mean_flow_bundle: Path) -> None:
    with pytest.raises(DitedgeError, match="reads its guidance as a number and evaluates each step once"):
        opened(improved_mean_flow_bundle).generate([3, 1], [7, 8], images=False, guidance=3.0, away_from=[1, 1])


def test_a_program_has_to_say_how_far(opened, mean_flow_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    write_program(open_bundle(mean_flow_bundle).program("mean-flow-2"), path)
    made = json.loads(path.read_text())
    for interval, complaint in (([0.5], "list of 1 numbers, expected 2"), (None, "does not say how far its steps go")):
        path.write_text(json.dumps(made | {"interval": interval}))
        with pytest.raises(DitedgeError, match=complaint):
            opened(mean_flow_bundle).generate([3], [7], images=False, program_file=str(path).encode())
