"""libditedge with a model that takes prompts: Python's latents and pictures, its refusals, each prompt evaluated once."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from capi_ctypes import DitedgeError
from safetensors.numpy import load_file

from ditedge.runtime import generate
from ditedge.runtime.bundle.open import Bundle
from ditedge.runtime.errors import DitedgeError as PythonError
from ditedge.runtime.loop.prompts import prompt_of_ids, read_prompt, write_prompt
from ditedge.runtime.loop.verify import relative_error
from tests.conftest import BUNDLES, PIXART
from tests.cpp.support import ARGUMENT, BOOT, FOX, REQUEST, SNOW, TOLERANCE, edit

FOLDER = BUNDLES / PIXART


@pytest.mark.parametrize("index", [0, 1])
def test_recorded_trajectories(opened, bundle: Bundle, tmp_path: Path, index: int) -> None:
    """The bundle's golden records, from PyTorch: prompts of different length, guided away from another."""
    golden = bundle.manifest.golden[index]
    said = load_file(FOLDER / golden.file)
    handle, noise = opened(FOLDER), (said["z"], said["noise"])
    prompts = []
    for i, (rows, length) in enumerate(zip(said["hidden"], said["lengths"].tolist(), strict=True)):
        file = tmp_path / f"{i}.safetensors"
        write_prompt(file, None, {"hidden": rows[:length]}, bundle.manifest.text.encoder_sha256)  # type: ignore[union-attr]
        prompts.append(handle.prompt(file))
    *of, away = prompts
    size = tuple(bundle.manifest.text.factor * side for side in said["z"].shape[:1:-1])  # type: ignore[union-attr]
    fields = {"program": golden.program.encode(), "guidance": golden.guidance, "noise": noise, "pixels": size}
    mine = handle.generate(None, [0] * len(of), images=False, prompts=of, negatives=[away] * len(of), **fields)
    assert relative_error(mine, said["x"][-1]) < golden.tolerance == 1e-4
    for prompt in prompts:
        handle.close_prompt(prompt)


@pytest.mark.parametrize("size", [(0, 0), (96, 48)])
def test_seeded_pictures_equal_pythons(opened, bundle: Bundle, recorded: Path, size: tuple[int, int]) -> None:
    """By ids and recorded, guided away from the prompt of no words and from another, in batches that share prompts."""
    handle, seeds = opened(FOLDER), [7, 8, 9, 2**63 + 5]
    fox, boot, snow = handle.prompt(FOX), handle.prompt(recorded), handle.prompt(SNOW)
    given = {"prompts": [fox, boot, fox, snow], "negatives": [None, snow, snow, None], "batch": 3, "guidance": 3.0}
    fields: dict[str, Any] = given | {"program": b"ddpm-10", "pixels": size}
    of = [prompt_of_ids(FOX), read_prompt(recorded, bundle), prompt_of_ids(FOX), prompt_of_ids(SNOW)]
    away = [None, prompt_of_ids(SNOW), prompt_of_ids(SNOW), None]
    settings: dict[str, Any] = {"prompts": of, "negative": away, "guidance": 3.0, "program": bundle.program("ddpm-10")}
    settings |= {"size": size if any(size) else None}
    latents = handle.generate(None, seeds, images=False, **fields)
    assert relative_error(latents, generate(bundle, seeds=seeds, output="latents", **settings)) < TOLERANCE
    images = handle.generate(None, seeds, **fields)
    assert np.mean(images == generate(bundle, seeds=seeds, **settings)) >= 0.999
    alone = fields | {"prompts": [snow], "negatives": None}
    np.testing.assert_allclose(handle.generate(None, seeds[3:], images=False, **alone)[0], latents[3], atol=1e-6)
    decoded = np.empty_like(images)
    decode = handle.c.ditedge_decode_size
    arguments = (ctypes.c_void_p(latents.ctypes.data), ctypes.c_int64(4), *map(ctypes.c_int64, size))
    assert (
        decode(handle.session, *arguments, ctypes.c_void_p(decoded.ctypes.data), ctypes.c_size_t(decoded.nbytes)) == 0
    )
    assert np.array_equal(decoded, images)


def test_progress_and_previews_are_of_the_size(opened, bundle: Bundle) -> None:
    shown: list[tuple[int, ...]] = []
    handle = opened(FOLDER)
    options: dict[str, Any] = {"prompts": [handle.prompt(FOX)], "pixels": (32, 64), "program": b"ddim-10"}
    handle.generate(
        None, [1], on_preview=lambda step, pictures: shown.append((step, *pictures.shape)), preview_every=5, **options
    )
    assert shown == [(5, 1, 64, 32, 3), (10, 1, 64, 32, 3)]


def test_a_mixed_batch_is_its_images_alone(opened, bundle: Bundle, recorded: Path) -> None:
    """Other steps, programs, guidance, prompts and sizes side by side."""
    handle = opened(FOLDER)
    fox, boot, snow = handle.prompt(FOX), handle.prompt(recorded), handle.prompt(SNOW)
    wanted = [
        {"program": b"ddpm-10", "prompt": fox, "guidance": 4.0},
        {"program": b"ddim-10", "prompt": boot, "guidance": 1.0},
        {"program": b"ddim-10", "prompt": snow, "negative": fox, "guidance": 2.5},
        {"program": b"ddim-10", "prompt": boot, "negative": snow, "guidance": 3.0, "width": 96, "height": 48},
    ]
    expected, runs = [], []
    for seed, fields in enumerate(wanted):
        size = (fields.get("width", 0), fields.get("height", 0))
        plain = {name: value for name, value in fields.items() if name in ("program", "guidance")}
        negatives = [fields["negative"]] if "negative" in fields else None
        given = {"prompts": [fields["prompt"]], "negatives": negatives, "pixels": size, **plain}
        expected.append((size, handle.generate(None, [seed], images=False, **given)[0]))
        runs.append(handle.start(0, seed, **fields))
        for _ in range(2):
            handle.advance(runs)
    for prompt in (fox, boot, snow):  # runs keep what they need
        handle.close_prompt(prompt)
    while not all(done == steps for done, steps in map(handle.steps, runs)):
        handle.advance(runs)
    for run, (size, latent) in zip(runs, expected, strict=True):
        assert np.abs(handle.latent(run, size) - latent).max() < 1e-6
        handle.close_run(run)


def test_each_distinct_prompt_is_evaluated_once(built: Path, onnxruntime_library: Path) -> None:
    """Three prompts and a negative one over eight images, in batches of three."""
    command = [built / "ditedge-prompt-counts", FOLDER, onnxruntime_library]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"text": 4, "context": 4, "position": 1}


def test_what_does_not_fit_is_refused_with_pythons_sentence(opened, bundle: Bundle, golden_bundle) -> None:
    handle = opened(FOLDER)
    fox = handle.prompt(FOX)
    for width, height in ((144, 64), (64, 24), (8, 64), (-16, 64), (40, 64), (2**62, 64)):
        with pytest.raises(DitedgeError) as ours:
            handle.generate(None, [1], prompts=[fox], pixels=(width, height), out=np.empty(0, np.uint8))
        with pytest.raises(PythonError) as theirs:
            generate(bundle, seeds=[1], prompts=[prompt_of_ids(FOX)], size=(width, height))
        assert str(ours.value) == str(theirs.value) and ours.value.status == REQUEST
    for ids in ([], [-1], [2**31], [1] * 121):
        with pytest.raises(DitedgeError) as ours:
            handle.prompt(ids)
        with pytest.raises(PythonError) as theirs:
            generate(bundle, seeds=[1], prompts=[prompt_of_ids(ids)])
        assert str(ours.value) == str(theirs.value) and ours.value.status == REQUEST
    with pytest.raises(DitedgeError, match="takes prompts, and no classes: give prompts"):
        handle.generate([1], [1], prompts=[fox])
    with pytest.raises(DitedgeError, match="takes prompts: give one for each image"):
        handle.generate(None, [1])
    with pytest.raises(DitedgeError, match="takes prompts: give one for each image"):
        handle.start(0, 1)
    classes = opened(golden_bundle("gray1_cfg"))
    for given in ({"prompts": [fox]}, {"pixels": (8, 8), "out": np.empty(0, np.uint8)}):
        with pytest.raises(DitedgeError, match="takes classes, and no prompts: leave prompts and sizes out") as ours:
            classes.generate([1], [1], **given)
        assert ours.value.status == REQUEST
    with pytest.raises(DitedgeError, match="takes classes, and no prompts"):
        classes.prompt(FOX)
    with pytest.raises(DitedgeError, match="takes classes, and no prompts"):
        classes.start(1, 1, width=8)
    with pytest.raises(DitedgeError, match="for another bundle than the session's") as ours:
        opened(FOLDER).generate(None, [1], prompts=[fox])
    assert ours.value.status == ARGUMENT


def without_words(folder: Path, tmp_path: Path) -> Path:
    """A bundle whose text encoder and empty prompt are not there."""
    import shutil

    shutil.copytree(folder, tmp_path / "bundle")
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["graphs"]["text"]
    manifest["text"]["empty"] = None
    edit(tmp_path / "bundle", **manifest)
    return tmp_path / "bundle"


def test_a_bundle_without_text_encoder_takes_recorded_prompts(opened, bundle, recorded: Path, tmp_path: Path) -> None:
    handle = opened(without_words(FOLDER, tmp_path))
    with pytest.raises(DitedgeError, match="has no text encoder: give prompts that `ditedge encode` recorded"):
        handle.prompt(FOX)
    boot = handle.prompt(recorded)
    with pytest.raises(DitedgeError, match="no recorded prompt of no words to guide away from: give a negative prompt"):
        handle.generate(None, [1], prompts=[boot])
    program = {"guidance": 1.0, "program": b"ddim-10"}
    mine = handle.generate(None, [1], prompts=[boot], images=False, **program)
    options: dict[str, Any] = {"guidance": 1.0, "program": bundle.program("ddim-10"), "output": "latents"}
    assert relative_error(mine, generate(bundle, seeds=[1], prompts=[prompt_of_ids(BOOT)], **options)) < TOLERANCE


def test_the_command_takes_ids_and_recorded_prompts(
    built: Path, bundle: Bundle, recorded: Path, onnxruntime_library: Path, tmp_path: Path
) -> None:
    environment = os.environ | {"DITEDGE_ONNXRUNTIME": str(onnxruntime_library)}

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [built / "ditedge-run", "--bundle", FOLDER, "--program", "ddim-10", *arguments]
        return subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True)

    target = tmp_path / "l"
    done = run("--prompt-ids", "4,5,6,1", "--prompt-file", recorded, "--negative-ids", "8,1", "--size", "96x48",
               "--seed", 7, "--latents", target)  # fmt: skip
    assert done.returncode == 0, done.stderr
    options: dict[str, Any] = {"program": bundle.program("ddim-10"), "size": (96, 48), "output": "latents"}
    of = [prompt_of_ids(FOX), read_prompt(recorded, bundle)]
    expected = generate(bundle, seeds=[7, 8], prompts=of, negative=prompt_of_ids(SNOW), **options)
    assert relative_error(np.fromfile(target, np.float32).reshape(expected.shape), expected) < TOLERANCE
    png = run("--prompt-ids", "4,5,6,1", "--size", "32x64", "-o", tmp_path / "a.png")
    assert png.returncode == 0, png.stderr
    for arguments, words in (
        (["--class", "1"], "takes prompts, and no classes: give prompts"),
        (["--prompt-ids", "4,x"], "--prompt-ids 4,x is not token ids with commas between"),
        (["--prompt-ids", "1", "--size", "64"], "--size 64 is not WIDTHxHEIGHT"),
        (["--prompt-file", "/nowhere"], "cannot read /nowhere"),
        ([], "--bundle and --class are needed"),
    ):
        done = run(*arguments)
        assert done.returncode == 2 and words in done.stderr, done.stderr
