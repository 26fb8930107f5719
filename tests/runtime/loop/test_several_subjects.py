"""Images that are of several classes or prompts at once, each with its weight, and bundles that cannot have them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cli import main
from ditedge.runtime import Session, generate, open_bundle
from ditedge.runtime.errors import RequestError
from ditedge.runtime.loop.tables import Mixed, gather, image_tables
from tests.conftest import BUNDLES, PIXART

CLASSES, PROMPTS = BUNDLES / "latent4_learned_sigma", BUNDLES / PIXART


def raw_outputs(session: Session, state: np.ndarray, labels: list[int], timestep: float) -> np.ndarray:
    """What the network says of one state for each class, [E, O, H, W], by the step graph itself."""
    from dataclasses import replace

    model, program = session.bundle.manifest.model, session.bundle.program(sampler="ddim", steps=1)
    plain = replace(
        program,
        timestep=np.array([timestep]),
        x0_from=np.array([[0.0, 1.0]]),
        mix=np.array([[[0.0, 1.0, 0.0]]]),
        log_sigma=np.array([[0.0, 0.0]]),
        guidance=np.zeros(1),
    )
    found = []
    for label in labels:
        tables = gather([image_tables(plain, model, label, 1.0)])
        inputs = session.step_inputs(tables, 0, state)
        out = np.empty_like(state)
        session.engine("step").run(inputs, {"next_state": out})
        found.append(out[0, 0])
    return np.stack(found)


def test_the_prediction_is_the_weighted_sum_of_the_papers(golden_bundle) -> None:
    """Liu et al. 2022, eq. 11: u + g sum_i w_i (c_i - u), on the guided channels; of the others the first's."""
    bundle = open_bundle(golden_bundle("latent4_learned_sigma"))
    model, g = bundle.manifest.model, 2.5
    state = np.random.default_rng(2).standard_normal((1, 1, *model.latent_shape)).astype(np.float32)
    program = bundle.program(sampler="ddim", steps=4)
    with Session(bundle) as session:
        null = model.null_class
        assert null is not None
        a, b, u = raw_outputs(session, state, [1, 3, null], program.timestep[0])
        tables = gather([image_tables(program, model, Mixed(((1, 1.0), (3, -0.4))), g)])
        out = np.empty_like(state)
        session.engine("step").run(session.step_inputs(tables, 0, state), {"next_state": out})
    epsilon, guided = a.copy(), slice(0, model.guided_channels)
    epsilon[guided] = (u + g * (1.0 * (a - u) - 0.4 * (b - u)))[guided]
    x0 = program.x0_from[0, 0] * state[0, 0] + program.x0_from[0, 1] * epsilon
    expected = program.mix[0, 0, 0] * state[0, 0] + program.mix[0, 0, 1] * x0
    np.testing.assert_allclose(out[0, 0], expected, rtol=0, atol=2e-5)


def test_evaluations_are_those_with_a_weight() -> None:
    bundle = open_bundle(CLASSES)
    program = bundle.program(sampler="dpm++", steps=4)
    model = bundle.manifest.model

    def evaluations(subject, guidance: float) -> list[int]:
        tables = gather([image_tables(program, model, subject, guidance), image_tables(program, model, 0, guidance)])
        return [len(tables.inputs(step)["sample"]) for step in range(4)]

    assert evaluations(Mixed(((1, 1.0), (2, 0.5))), 3.0) == [5] * 4  # 3 and 2
    assert evaluations(Mixed(((1, 0.5), (2, 0.5))), 1.0) == [3] * 4  # they sum to 1: nothing is guided away from
    assert evaluations(Mixed(((1, 1.0),)), 3.0) == evaluations(1, 3.0) == [4] * 4
    plain, mixed = (gather([image_tables(program, model, subject, 3.0)]) for subject in (1, Mixed(((1, 1.0),))))
    for name, values in plain.inputs(0).items():
        np.testing.assert_array_equal(values, mixed.inputs(0)[name])


@pytest.mark.parametrize("folder", [CLASSES, PROMPTS])
def test_an_image_is_the_same_alone_and_beside_plain_ones(folder: Path) -> None:
    bundle = open_bundle(folder)
    prompts = bundle.manifest.text is not None
    one = {"prompts": ["a red fox", "a dark boot", "snow"]} if prompts else {}
    alone = {"prompts": ["a dark boot"]} if prompts else {}
    also = [("in the snow", 0.6)] if prompts else [(3, 0.6)]
    program = bundle.program(steps=3)
    told = {"program": program, "guidance": 3.0, "output": "latents", "also": also}
    several = generate(bundle, [] if prompts else [0, 1, 2], [7, 8, 9], **one, **told)
    single = generate(bundle, [] if prompts else [1], [8], **alone, **told)
    size = np.abs(single).max()  # sums of another number of terms are rounded elsewhere
    np.testing.assert_allclose(several[1], single[0], rtol=0, atol=2e-6 * size)
    plain = generate(bundle, [] if prompts else [1], [8], **alone, **told | {"also": ()})
    assert np.abs(plain - single).max() > 1e-3 * size


@pytest.mark.parametrize(
    ("also", "complaint"),
    [
        ([(99, 0.5)], "99"),
        ([(1, 0.0)], "weight 0 of what the images are also of"),
        ([(1, float("nan"))], "weight nan"),
        ([(1, 0.1)] * 8, "8 things that the images are also of, at most 7"),
    ],
)
def test_what_makes_no_sense(also, complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        generate(open_bundle(CLASSES), [1], [2], also=also)


def ditedge(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.parametrize(
    ("folder", "subject", "also"),
    [
        (BUNDLES / "gray1_cfg", ("--class", 1), ("2:0.5", "0")),
        (PROMPTS, ("--prompt", "a red fox"), ("in the snow: 0.5",)),
    ],
)
def test_on_the_command_line_and_again(folder: Path, subject: tuple, also: tuple[str, ...], tmp_path: Path) -> None:
    out, again, plain = (tmp_path / name for name in ("out.png", "again.png", "plain.png"))
    options = [part for text in also for part in ("--also", text)]
    ditedge("run", "--engine", folder, *subject, *options, "--steps", 3, "-o", out)
    ditedge("run", "--engine", folder, "--like", out, "-o", again)
    assert out.read_bytes() == again.read_bytes()
    ditedge("run", "--engine", folder, *subject, "--steps", 3, "-o", plain)
    from ditedge.runtime.pictures.images import read_metadata

    recorded = read_metadata(out)["also"]
    assert [one["weight"] for one in recorded] == ([0.5, 1.0] if len(also) == 2 else [0.5])
    assert json.dumps(recorded) and "also" not in read_metadata(plain)
    ditedge("run", "--engine", folder, "--like", out, *options, "-o", again, code=2)
