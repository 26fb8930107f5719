"""libditedge with models of several text encoders, vectors and guidance of another kind: Stable Diffusion 3 and FLUX.1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from capi_ctypes import DitedgeError

from ditedge.runtime import generate, open_bundle
from ditedge.runtime.loop.prompts import prompt_of_ids, read_prompt, write_prompt
from ditedge.runtime.loop.session import Session
from ditedge.runtime.loop.verify import relative_error
from tests.cpp.support import REQUEST, TOLERANCE

# Token ids of each text encoder.
WORDS = {
    "sd3.5": [([0, 5, 6, 1], [0, 5, 6, 7, 1], [4, 5, 1]), ([0, 9, 1], [0, 9, 1], [6, 7, 8, 9, 1])],
    "flux-dev": [([0, 5, 6, 1], [4, 5, 1]), ([0, 9, 1], [6, 7, 8, 9, 1])],
}


pytestmark = pytest.mark.slow  # each bundle is exported


@pytest.fixture(scope="module", params=["sd3.5", "flux-dev"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    from tests.export.joint_pipelines import export_joint, flux_pipeline, sd3_pipeline

    folder, make = tmp_path_factory.mktemp("joint"), sd3_pipeline if request.param == "sd3.5" else flux_pipeline
    return request.param, export_joint(make(), folder / "pipeline", folder / "bundle")


@pytest.mark.parametrize("size", [(0, 0), (96, 48)])
def test_latents_equal_pythons(opened, family: tuple[str, Path], size: tuple[int, int], tmp_path: Path) -> None:
    """By ids and recorded, with the default guidance; and step by step beside the other image."""
    name, folder = family
    bundle, handle = open_bundle(folder), opened(folder)
    assert handle.info.text_encoders == len(WORDS[name][0])
    of = [prompt_of_ids(ids) for ids in WORDS[name]]
    file = tmp_path / "second.safetensors"
    with Session(bundle) as session:
        write_prompt(file, None, session.encode(of[1]), bundle.manifest.text.encoder_sha256)  # type: ignore[union-attr]
    given = [handle.prompt(*WORDS[name][0]), handle.prompt(file)]
    program = bundle.program("flow-euler-10")
    fields: dict[str, Any] = {"program": program.name.encode(), "pixels": size}
    mine = handle.generate(None, [7, 8], images=False, prompts=given, **fields)
    options: dict[str, Any] = {"program": program, "output": "latents", "size": size if any(size) else None}
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
    words = rf"token ids are 1 list\(s\), the model has {encoders} text encoder\(s\): give a list for each"
    with pytest.raises(DitedgeError, match=words) as caught:
        handle.prompt([1, 2])
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
            with pytest.raises(DitedgeError, match="is not a finite number in float32"):
                handle.generate(None, [1], prompts=[prompt], guidance=guidance)
