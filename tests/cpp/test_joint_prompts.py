"""libditedge with the families beside PixArt: several text encoders, vectors, an instruction, guidance of another kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from capi_ctypes import DitedgeError

from ditedge.runtime import generate, open_bundle
from ditedge.runtime.bundle.open import Bundle
from ditedge.runtime.loop.prompts import prompt_of_ids, read_prompt, write_prompt
from ditedge.runtime.loop.session import Session
from ditedge.runtime.loop.verify import relative_error
from tests.cpp.support import REQUEST, TOLERANCE

# Token ids of each text encoder.
WORDS = {
    "sd3.5": [([0, 5, 6, 1], [0, 5, 6, 7, 1], [4, 5, 1]), ([0, 9, 1], [0, 9, 1], [6, 7, 8, 9, 1])],
    "flux-dev": [([0, 5, 6, 1], [4, 5, 1]), ([0, 9, 1], [6, 7, 8, 9, 1])],
    "flux-schnell": [([0, 5, 6, 1], [4, 5, 1]), ([0, 9, 1], [6, 7, 8, 9, 1])],
    "flux2-klein": [([1, 5, 6, 2],), ([1, 6, 7, 8, 9, *range(20, 60), 2],)],
    "hunyuan-dit": [([2, 5, 6, 3], [4, 5, 1]), ([2, 9, 3], [6, 7, 8, 9, 1])],
    "aura-flow": [([4, 5, 1],), ([6, 7, 8, 9, 1],)],
    "z-image": [([1, 5, 6, 2],), ([1, 6, 7, 8, 9, *range(20, 60), 2],)],
    "sana": [([41, 7, 300],), ([9, 12, 31, 55, 8],)],  # after those of its instruction
    "lumina2": [([41, 7, 300],), ([9, 12, 31, 55, 8],)],  # likewise
}
WIDE = {"sana": (64, 40), "flux2-klein": (192, 64)}  # Sana was trained for 32 x 32; FLUX.2's tokens are of 16 x 16

pytestmark = pytest.mark.slow  # each bundle is exported


@pytest.fixture(scope="module", params=WORDS)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    from tests.export.flux2_pipelines import klein_pipeline, shallow
    from tests.export.hunyuan_dit_pipelines import hunyuan_dit_pipeline
    from tests.export.joint_pipelines import (
        aura_flow_pipeline,
        export_joint,
        flux_pipeline,
        sd3_pipeline,
        z_image_pipeline,
    )
    from tests.export.lumina2_pipelines import lumina2_pipeline
    from tests.export.sana_pipelines import small_pipeline

    make = {"sd3.5": sd3_pipeline, "flux-dev": flux_pipeline, "aura-flow": aura_flow_pipeline, "sana": small_pipeline}
    make |= {"z-image": z_image_pipeline, "lumina2": lumina2_pipeline}
    make["flux-schnell"] = lambda: flux_pipeline(told=False)
    make["flux2-klein"] = lambda: klein_pipeline(distilled=False, layers=4)
    folder = tmp_path_factory.mktemp("joint")
    make["hunyuan-dit"] = lambda: hunyuan_dit_pipeline(folder / "bert")
    with shallow():
        return request.param, export_joint(make[request.param](), folder / "pipeline", folder / "bundle")


def ids_of(name: str, bundle: Bundle) -> list[tuple[list[int], ...]]:
    """Of both prompts, for each text encoder."""
    text = bundle.manifest.text
    assert text is not None
    before = [2, *range(60, 59 + text.instruction.tokens)] if text.instruction is not None else []
    return [tuple(before + own for own in prompt) for prompt in WORDS[name]]


@pytest.mark.parametrize("wide", [False, True])
def test_latents_equal_pythons(opened, family: tuple[str, Path], wide: bool, tmp_path: Path) -> None:
    """By ids and recorded, with the default guidance; and step by step beside the other image."""
    name, folder = family
    size = WIDE.get(name, (96, 48)) if wide else (0, 0)
    bundle, handle = open_bundle(folder), opened(folder)
    ids = ids_of(name, bundle)
    assert handle.info.text_encoders == len(ids[0])
    of = [prompt_of_ids(own) for own in ids]
    file = tmp_path / "second.safetensors"
    with Session(bundle) as session:
        write_prompt(file, None, session.encode(of[1]), bundle.manifest.text.encoder_sha256)  # type: ignore[union-attr]
    given = [handle.prompt(*ids[0]), handle.prompt(file)]
    program = bundle.program("ddim-10" if name == "hunyuan-dit" else "flow-euler-10")
    fields: dict[str, Any] = {"program": program.name.encode(), "pixels": size}
    mine = handle.generate(None, [7, 8], images=False, prompts=given, **fields)
    options: dict[str, Any] = {"program": program, "output": "latents", "size": size if any(size) else None}
    theirs = generate(bundle, seeds=[7, 8], prompts=[of[0], read_prompt(file, bundle)], **options)
    assert relative_error(mine, theirs) < TOLERANCE
    if name in ("sana", "lumina2"):  # ids of what is guided away from have no instruction before them
        away = [9, 12, 31]
        mine = handle.generate(None, [7, 8], images=False, prompts=given, negatives=[handle.prompt(away)] * 2, **fields)
        options["negative"] = prompt_of_ids(away, negative=True)
        theirs = generate(bundle, seeds=[7, 8], prompts=[of[0], read_prompt(file, bundle)], **options)
        assert relative_error(mine, theirs) < TOLERANCE
    runs = [handle.start(0, 7 + i, prompt=prompt, program=fields["program"]) for i, prompt in enumerate(given)]
    whole = handle.generate(None, [7, 8], images=False, prompts=given, program=fields["program"])
    handle.advance(runs[:1])
    while not all(done == steps for done, steps in map(handle.steps, runs)):
        handle.advance(runs)
    for run, latent in zip(runs, whole, strict=True):
        np.testing.assert_allclose(handle.latent(run), latent, atol=1e-5)
        handle.close_run(run)


def test_what_does_not_fit_is_refused(opened, family: tuple[str, Path]) -> None:
    name, folder = family
    handle, encoders = opened(folder), len(WORDS[name][0])
    if name == "sana":
        most = open_bundle(folder).manifest.text.most(negative=False)  # type: ignore[union-attr]
        with pytest.raises(DitedgeError, match=f"a prompt has {most + 1} tokens, the model reads {most}"):
            handle.prompt([7] * (most + 1))
        long = handle.prompt([7] * most)
        with pytest.raises(DitedgeError, match=f"a prompt has {most} tokens, the model reads 300"):
            handle.generate(None, [1], images=False, prompts=[long], negatives=[long])
    words = rf"token ids are {encoders + 1} list\(s\), the model has {encoders} text encoder\(s\): give a list for each"
    with pytest.raises(DitedgeError, match=words) as caught:
        handle.prompt(*[[1, 2]] * (encoders + 1))
    assert caught.value.status == REQUEST
    if name == "flux-dev":
        prompt = handle.prompt(*WORDS[name][0])
        nearest = handle.generate(None, [1], images=False, prompts=[prompt], pixels=(96, 64))  # 24 tokens: that of 25
        same = {"prompts": [prompt], "pixels": (96, 64), "program": b"flow-euler-28-25"}
        np.testing.assert_array_equal(nearest, handle.generate(None, [1], images=False, **same))
        with pytest.raises(
            DitedgeError, match="reads its guidance as a number and evaluates each step once: leave neg"
        ):
            handle.generate(None, [1], prompts=[prompt], negatives=[prompt])
        for guidance in (float("inf"), 1e300):
            with pytest.raises(DitedgeError, match="is not a number up to 3e38"):
                handle.generate(None, [1], prompts=[prompt], guidance=guidance)
