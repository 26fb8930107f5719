"""A batch that is more than a processor's caches hold goes through the step graph in pieces, and stays what it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ditedge.runtime import Session, generate, open_bundle
from ditedge.runtime.loop import host_loop
from ditedge.runtime.loop.engine_ort import OrtEngine
from ditedge.runtime.loop.tables import STEP_TABLES, gather, image_tables


def test_tables_of_some_images_are_those_gathered_of_them(golden_bundle: Callable[[str], Path]) -> None:
    """But for the rows of modulation, which stay those of the whole batch."""
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    program, model = bundle.program("ddim-25"), bundle.manifest.model
    images = [image_tables(program, model, label, 1.0 if label == 1 else 3.0) for label in (0, 1, 2, 1)]
    whole = gather(images)
    for piece in (slice(0, 1), slice(1, 3), slice(0, 4)):
        some, alone = whole.of_images(piece), gather(images[piece])
        assert some.batch == alone.batch and some.rows == whole.rows
        for step in (0, 12, whole.steps - 1):
            got, expected = some.inputs(step), alone.inputs(step)
            for name in ("sample", "combine", *STEP_TABLES):
                assert np.array_equal(got[name], expected[name]) and got[name].flags.c_contiguous, name
            labels = [
                tables.conditions["label"][step][inputs["condition"]]
                for tables, inputs in ((some, got), (alone, expected))
            ]
            assert np.array_equal(*labels)


def calls_of(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, cached: int, guidance: float
) -> tuple[list[int], np.ndarray]:
    """(images of each call of the step graph, latents of five images)"""
    calls: list[int] = []
    run = OrtEngine.run

    def counted(self, inputs, outputs, cancel=None) -> None:
        if "next_state" in outputs:
            calls.append(len(outputs["next_state"]))
        run(self, inputs, outputs, cancel)

    opened = open_bundle(bundle)
    program = opened.program(sampler="ddpm", steps=2)
    with monkeypatch.context() as patched, Session(opened) as session:
        patched.setattr(OrtEngine, "run", counted)
        patched.setattr(host_loop, "CACHED_BYTES", cached)
        latents = generate(
            opened,
            [0, 1, 2, 0, 1],
            [5, 6, 7, 8, 9],
            program=program,
            guidance=guidance,
            output="latents",
            session=session,
        )
    return calls, latents


def test_a_large_batch_goes_in_pieces_and_no_number_changes(
    golden_bundle: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = golden_bundle("gray1_cfg")
    model = open_bundle(bundle).manifest.model
    tokens = (model.input_size // model.patch_size) ** 2
    image = int(4 * tokens * model.hidden_size * model.mlp_ratio)  # of one evaluation
    calls, whole = calls_of(bundle, monkeypatch, 1 << 30, 3.0)
    assert calls == [5, 5]
    for cached, guidance, expected in (
        (4 * image, 3.0, [2, 2, 1] * 2),  # guided: two evaluations each
        (4 * image, 1.0, [4, 1] * 2),
        (1, 3.0, [1] * 10),
    ):
        calls, latents = calls_of(bundle, monkeypatch, cached, guidance)
        assert calls == expected
        assert guidance == 1.0 or np.array_equal(latents, whole)
