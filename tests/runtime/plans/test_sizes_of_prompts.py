"""Profiles of plans of a model that takes prompts: one for each size of pictures, and which of them a run takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from ditedge.cli import main
from ditedge.runtime import open_bundle
from ditedge.runtime.errors import BundleError, RequestError
from ditedge.runtime.loop.plan_limits import check_shape, check_size
from ditedge.runtime.loop.session import Session
from ditedge.runtime.loop.subjects import any_subject, told_besides
from ditedge.runtime.loop.tables import step_tables
from ditedge.runtime.plans.checks import latents_to_build
from ditedge.runtime.plans.options import BuildOptions
from ditedge.runtime.plans.profile import forecast, graph_profile, graph_profiles, one_image_shapes, sizes_of
from ditedge.runtime.plans.record import PLAN_NAMES, BuildRecord, PlanInfo, ShapeRange
from tests.conftest import BUNDLES, PIXART

BUNDLE = BUNDLES / PIXART
SIZES = ("64x64", "96x48")  # latents of 8 x 8 and, height first, 6 x 12; patches of 2


def options(**changes: object) -> BuildOptions:
    return BuildOptions("tensorrt-rtx", **changes)  # type: ignore[arg-type]


def sizes(max_batch: int = 3, given: tuple[str, ...] = SIZES):
    bundle = open_bundle(BUNDLE)
    return bundle, sizes_of(bundle, max_batch, None, latents_to_build(bundle, options(sizes=given)))


def test_a_profile_for_each_size_with_every_batch_and_prompts_padded() -> None:
    bundle, asked = sizes()
    first, second = graph_profiles(bundle.manifest, "step", asked)
    assert first["state"].min == [1, 1, 4, 8, 8] and first["state"].max == [3, asked.slots, 4, 8, 8]
    assert second["state"].max == [3, asked.slots, 4, 6, 12] and second["noise"].min == [1, 4, 6, 12]
    assert second["position"].min == second["position"].max == [3, 6, 24]
    assert first["context"].min == [1, 120, 96] and first["context"].max == [6, 120, 96]
    assert first["context"].opt == [4, 120, 96]  # a prompt for each image, and what all are guided away from
    assert first["prompt"].max == [6] and first["context_bias"].max == [6, 120]
    assert [profile["latent"].max for profile in graph_profiles(bundle.manifest, "decoder", asked)] == [
        [3, 4, 8, 8],
        [3, 4, 6, 12],
    ]
    rows = [
        profile["row"].max + profile["column"].max for profile in graph_profiles(bundle.manifest, "position", asked)
    ]
    assert rows == [[4, 4], [3, 6]]
    [once] = graph_profiles(bundle.manifest, "context", asked)  # each prompt alone, whatever the size
    assert once["hidden"].min == once["hidden"].max == [1, 120, 16]
    [rows] = graph_profiles(bundle.manifest, "conditioner", asked)
    assert rows["timestep"].max == [64]


def test_without_sizes_plans_are_for_that_of_training() -> None:
    bundle, asked = sizes(given=())
    [profile] = graph_profiles(bundle.manifest, "step", asked)
    assert profile["state"].max[3:] == [8, 8]
    assert forecast(bundle.manifest, asked).activations < forecast(bundle.manifest, sizes()[1]).activations * 2


def test_guidance_that_is_no_second_evaluation() -> None:
    """Of distilled models: tuned for an evaluation an image, with room for another."""
    bundle = open_bundle(BUNDLE)
    assert bundle.manifest.text is not None
    text = bundle.manifest.text.model_copy(update={"guidance": "embedded"})
    told = replace(bundle, manifest=bundle.manifest.model_copy(update={"text": text}))
    asked = sizes_of(told, 3, None)
    profile = graph_profile(told.manifest, "step", asked)
    assert (profile["sample"].opt, profile["sample"].max) == ([3], [6])
    assert (profile["context"].opt[0], profile["context"].max[0]) == (3, 6)
    assert one_image_shapes(told, asked)["prompt"] == [1] and one_image_shapes(bundle, sizes()[1])["prompt"] == [2]


def test_what_a_run_binds_is_in_the_profile_of_its_size_alone() -> None:
    """Of the steps of real runs: one image and two, guided; at either size."""
    bundle, asked = sizes()
    [profile, *further] = graph_profiles(bundle.manifest, "step", asked)
    exact = one_image_shapes(bundle, asked)
    info = {"sha256": "0" * 64, "bytes": 1}
    plan = PlanInfo(file="dit.plan", plan=info, source_sha256="0" * 64, profile=profile, seconds=1, further=further)
    record = BuildRecord.model_construct(plans={"step": plan})
    assert [found for found in plan.profiles] == [profile, *further]
    with_one = BuildRecord.model_construct(plans={"step": plan.model_copy(update={"one_image": exact})})
    import numpy as np

    for images, latent, plain, one in ((1, (8, 8), 0, 1), (2, (8, 8), 0, 0), (1, (6, 12), 1, 2), (2, (6, 12), 1, 2)):
        shapes = {name: array.shape for name, array in bound(bundle, images, latent).items()}
        assert record.profile_for("step", shapes) == plain
        assert with_one.profile_for("step", shapes) == one
        if one == 1:
            assert {name: tuple(shape) for name, shape in exact.items()} == {name: shapes[name] for name in exact}
    assert record.profile_for("step", {"state": (1, 2, 4, 10, 10)}) == 0  # of no profile: whoever binds it says so
    assert np.prod(exact["context"]) == 2 * 120 * 96


def test_profiles_that_limit_nothing() -> None:
    """Whatever a record leaves out: its plan says what it takes."""
    bundle, asked = sizes()
    text = bundle.manifest.text
    assert text is not None
    [profile, *further] = graph_profiles(bundle.manifest, "step", asked)
    info = {"sha256": "0" * 64, "bytes": 1}
    flat = {"state": ShapeRange(min=[1, 1], opt=[1, 1], max=[9, 9])}
    for of_one, others in ((profile, [{}]), (profile, [flat]), (flat, further), ({}, further), ({}, [])):
        plan = PlanInfo(file="dit.plan", plan=info, source_sha256="0" * 64, profile=of_one, seconds=1, further=others)
        record = BuildRecord.model_construct(plans={"step": plan})
        check_size(record, (100, 100), text)
        for shape in ((1, 2, 4, 8, 8), (1, 2, 4, 6, 12), (1, 2, 4, 100, 100)):
            index = record.profile_for("step", {"state": shape})
            if not plan.profiles or plan.profiles[index].get("state") is None:
                check_shape(record, "step", index, "state", shape)
            elif not plan.profiles[index]["state"].takes(shape):
                with pytest.raises(RequestError, match="input state is"):
                    check_shape(record, "step", index, "state", shape)


def bound(bundle, images: int, latent: tuple[int, int]):
    import numpy as np

    subject, away_from, size = any_subject(bundle)
    program, model = bundle.program(), bundle.manifest.model
    guidance, besides = told_besides(bundle, bundle.manifest.defaults.guidance, size)
    from ditedge.runtime.loop.prompts import prompt_of_rows

    prompts = [subject, prompt_of_rows(np.ones((2, 16), np.float32))][:images]
    others = [prompt_of_rows(np.full((1, 16), 2, np.float32))] * images
    assert away_from is not None
    tables = step_tables(program, model, prompts, guidance, others, besides)
    state = np.zeros((images, program.slots, 4, *latent), np.float32)
    with Session(bundle) as session:
        return session.step_inputs(tables, 3, state)


def test_graphs_that_get_plans() -> None:
    """A text encoder has none."""
    assert PLAN_NAMES["context"] == "context.plan" and PLAN_NAMES["position"] == "position.plan"
    assert "text" not in PLAN_NAMES and PLAN_NAMES["step"] == "dit.plan"


def test_dimensions_that_nobody_knows() -> None:
    bundle, asked = sizes()
    graph = bundle.manifest.graphs["position"]
    odd = graph.inputs[0].model_copy(update={"shape": ["x"]})
    manifest = bundle.manifest.model_copy(
        update={"graphs": {**bundle.manifest.graphs, "position": graph.model_copy(update={"inputs": [odd]})}}
    )
    with pytest.raises(BundleError, match="dimension 'x' is not one of B, K, E, U, P, T"):
        graph_profile(manifest, "position", asked)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("64",), "--size '64' is not WIDTHxHEIGHT"),
        (("64x72",), "height 72 is not a multiple of 16 from 16 to 128 pixels: the nearest is 64"),
    ],
)
def test_sizes_that_cannot_be(given: tuple[str, ...], words: str) -> None:
    with pytest.raises(RequestError, match=words.replace("(", r"\(")):
        latents_to_build(open_bundle(BUNDLE), options(sizes=given))


def test_a_model_of_classes_has_one_size(tmp_path: Path) -> None:
    command = ["build", "--engine", BUNDLES / "gray1_cfg", "--target", "tensorrt-rtx", "--size", "64x64"]
    result = CliRunner().invoke(main, list(map(str, command)))
    assert result.exit_code == 2
    assert "takes classes, and its pictures have one size: leave --size out" in result.output or "not installed" in (
        result.output
    )
