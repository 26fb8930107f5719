"""The loop: what it binds, and that an image depends on nothing but its label, seed and settings."""

from __future__ import annotations

import threading
from dataclasses import fields, replace

import numpy as np
import pytest

from ditedge.runtime import Cancelled, Session, generate, open_bundle
from ditedge.runtime.errors import RequestError
from ditedge.runtime.loop import host_loop
from ditedge.runtime.loop.generate import Sampling, Settings
from ditedge.runtime.loop.noise import GivenNoise, SeededNoise
from ditedge.runtime.loop.tables import gather, image_tables, step_tables

LABELS, SEEDS = [3, 1, 3, 9, 0], [11, 12, 13, 14, 15]


class Spy:
    """An engine that counts network evaluations and passes everything on."""

    def __init__(self, engine) -> None:
        self.engine, self.inputs, self.evaluations, self.rows = engine, engine.inputs, [], []

    def run(self, inputs, outputs, cancel=None) -> None:
        self.evaluations.append(len(inputs.get("sample", ())))
        self.rows.append(len(inputs.get("label", ())))
        self.engine.run(inputs, outputs, cancel)

    def close(self) -> None:
        self.engine.close()


def spied(bundle) -> tuple[Session, Spy, Spy]:
    session = Session(bundle)
    spies = {graph: Spy(session.engine(graph)) for graph in ("step", "conditioner")}
    session.loop.engines.update(spies)
    return session, spies["step"], spies["conditioner"]


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_same_seed_same_image_alone_and_in_any_batch(golden_bundle, guidance: float) -> None:
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    together = generate(bundle, LABELS, SEEDS, guidance=guidance, batch=8)
    assert together.shape == (5, 8, 8, 1) and together.dtype == np.uint8
    for batch in (1, 2):
        assert np.array_equal(generate(bundle, LABELS, SEEDS, guidance=guidance, batch=batch), together)
    assert not np.array_equal(together[0], together[2])  # same label, another seed


def test_guidance_one_runs_one_evaluation_per_step(golden_bundle) -> None:
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    for guidance, per_image in ((1.0, 1), (2.0, 2)):
        session, step, _ = spied(bundle)
        generate(bundle, LABELS, SEEDS, guidance=guidance, program=bundle.program(steps=4), session=session)
        assert step.evaluations == [per_image * len(LABELS)] * 4


def test_unguided_steps_run_one_evaluation(golden_bundle) -> None:
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    program = replace(bundle.program(steps=4), guidance=np.array([0.0, 1, 1, 0]))
    session, step, _ = spied(bundle)
    generate(bundle, [1], [0], guidance=3.0, program=program, session=session)
    assert step.evaluations == [1, 2, 2, 1]


def test_model_without_null_class_refuses_guidance(golden_bundle) -> None:
    bundle = open_bundle(golden_bundle("pixel3_no_null_class"))
    with pytest.raises(RequestError, match="trained without label dropout"):
        generate(bundle, [0], [0], guidance=2.0)
    assert generate(bundle, [0], [0], guidance=1.0, program=bundle.program(steps=3)).shape == (1, 16, 16, 3)


def test_modulation_rows_come_in_bounded_blocks(golden_bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    expected = generate(bundle, LABELS, SEEDS, guidance=2.0, output="latents")
    row_bytes = 4 * (6 * 2 + 2) * 32
    monkeypatch.setattr(host_loop, "MODULATION_BYTES", 3 * 5 * row_bytes)  # 3 steps of 4 labels and the null class
    session, _, conditioner = spied(bundle)
    actual = generate(bundle, LABELS, SEEDS, guidance=2.0, output="latents", session=session)
    assert max(conditioner.rows) == 15 and sum(conditioner.rows) == bundle.program().steps * 5
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)  # other GEMM shapes, other rounding


def test_progress_and_cancel(golden_bundle) -> None:
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    seen, stop = [], threading.Event()

    def on_step(progress) -> None:
        seen.append((progress.done, progress.total, progress.first))
        if progress.done == 7:
            stop.set()

    with pytest.raises(Cancelled):
        generate(bundle, LABELS, SEEDS, program=bundle.program(steps=5), batch=3, on_step=on_step, cancel=stop)
    assert seen == [(i + 1, 10, 0 if i < 5 else 3) for i in range(7)]


@pytest.mark.parametrize(
    ("labels", "seeds", "options", "complaint"),
    [
        ([], [], {}, "0 labels"),
        ([1], [1, 2], {}, "1 labels and 2 seeds"),
        ([11], [0], {}, "class 11"),
        ([-1], [0], {}, "class -1"),
        ([1], [-1], {}, "seed -1"),
        ([1], [2**64], {}, "seed 18446744073709551616"),
        ([1], [0], {"batch": 0}, "batch 0"),
        ([1], [0], {"output": "gif"}, "output 'gif'"),
        ([1], [0], {"guidance": float("nan")}, "guidance nan"),
        ([1], [0], {"guidance": float("inf")}, "guidance inf"),
        ([1], [0], {"noise": GivenNoise(np.zeros((1, 1, 8, 8)), np.zeros((3, 1, 1, 8, 8)))}, "this run needs"),
    ],
)
def test_bad_requests_name_the_value(golden_bundle, labels, seeds, options, complaint: str) -> None:
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    with pytest.raises(RequestError, match=complaint):
        generate(bundle, labels, seeds, **options)


def test_latent_model_without_decoder_gives_latents_only(golden_bundle) -> None:
    bundle = open_bundle(golden_bundle("latent4_learned_sigma"))
    with pytest.raises(RequestError, match="no decoder"):
        generate(bundle, [0], [0], program=bundle.program(steps=2))
    assert generate(bundle, [0], [0], program=bundle.program(steps=2), output="latents").shape == (1, 4, 8, 8)


def test_guidance_table_is_the_reference_formula(golden_bundle) -> None:
    """Channels below guided_channels get u + g (c - u), every other one c."""
    model = open_bundle(golden_bundle("latent4_learned_sigma")).manifest.model
    program = open_bundle(golden_bundle("latent4_learned_sigma")).program(steps=3)
    tables = step_tables(program, model, [4, 2], guidance=4.0)
    output = np.random.default_rng(0).standard_normal((4, model.out_channels))
    combined = np.einsum("beo,eo->bo", tables.evaluations[0].combine, output)
    conditional, unconditional = output[:2], output[2:]
    expected = conditional.copy()
    expected[:, :3] = unconditional[:, :3] + 4.0 * (conditional[:, :3] - unconditional[:, :3])
    np.testing.assert_allclose(combined, expected, rtol=1e-6)
    assert tables.conditions["label"].tolist() == 3 * [[2, 4, 10]]
    assert tables.evaluations[0].condition.tolist() == [1, 0, 2, 2]


def test_guidance_of_a_step_is_a_factor(golden_bundle) -> None:
    """Weights 1 + f (g - 1) and -f (g - 1): 0 is one evaluation, 1 the guidance asked for to the last bit."""
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    program = replace(bundle.program(steps=5), guidance=np.array([0, 1, 0.25, 2, 1]))
    tables = image_tables(program, bundle.manifest.model, 3, guidance=2.7)
    expected = np.array([[1, 0], [2.7, 1 - 2.7], [1.425, -0.425], [4.4, -3.4], [2.7, 1 - 2.7]]).astype(np.float32)
    assert np.array_equal(tables.weights[:, :, 0], expected)
    assert tables.guided.tolist() == [False, True, True, True, True]
    batch = gather([tables, tables])
    assert [len(batch.inputs(i)["sample"]) for i in range(5)] == [2, 4, 4, 4, 4]
    assert batch.evaluations_of == (0, 1, 2, 3, 1)
    plain = image_tables(program, bundle.manifest.model, 3, guidance=1.0)
    assert not plain.guided.any() and plain.conditions["label"].tolist() == 5 * [[3]]


def test_half_the_guidance_is_guidance_of_half_the_strength(golden_bundle) -> None:
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    program = bundle.program(steps=4)
    half = replace(program, guidance=np.full(4, 0.5))
    first, second = (
        generate(bundle, [1, 2], [3, 4], program=table, guidance=guidance, output="latents")
        for table, guidance in ((half, 4.0), (program, 2.5))
    )
    assert np.array_equal(first, second)


def test_seeded_noise_is_per_image() -> None:
    both, one = SeededNoise([5, 6], (1, 4, 4)), SeededNoise([6], (1, 4, 4))
    for step in (0, 3):
        assert np.array_equal(both.step(step)[1], one.step(step)[0])
    assert not np.array_equal(both.initial(), both.step(0))


def test_guiding_away_from_a_class(golden_bundle) -> None:
    """c + (g - 1) (c - n): with the null class as n it is plain guidance, and one bad class changes only its image."""
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    options = {"guidance": 3.0, "program": bundle.program(steps=4), "output": "latents"}
    plain = generate(bundle, [1, 2], [0, 1], **options)
    assert np.array_equal(generate(bundle, [1, 2], [0, 1], away_from=[10, None], **options), plain)
    away = generate(bundle, [1, 2], [0, 1], away_from=[None, 5], **options)
    np.testing.assert_allclose(away[0], plain[0], rtol=1e-5, atol=1e-6)
    assert np.abs(away[1] - plain[1]).max() > 1e-3
    with pytest.raises(RequestError, match="class 11"):
        generate(bundle, [1], [0], away_from=[11], **options)
    with pytest.raises(RequestError, match="guide away from"):
        generate(bundle, [1], [0], away_from=[1, 2], **options)


def test_guiding_away_needs_no_null_class(golden_bundle) -> None:
    bundle = open_bundle(golden_bundle("pixel3_no_null_class"))
    images = generate(bundle, [0], [0], guidance=2.0, away_from=[3], program=bundle.program(steps=3))
    assert images.shape == (1, 16, 16, 3)


def test_generates_keywords_are_the_fields_of_sampling(golden_bundle) -> None:
    assert [*Settings.__annotations__] == [field.name for field in fields(Sampling)]
    with pytest.raises(TypeError, match="guidence"):
        generate(open_bundle(golden_bundle("gray1_cfg")), [0], [0], guidence=1.0)  # type: ignore[call-arg]
