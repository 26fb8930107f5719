"""Runs of a model that takes prompts: a small PixArt with random weights, without PyTorch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save

from cli import main
from ditedge.runtime import open_bundle
from ditedge.runtime.bundle.manifest import FileInfo
from ditedge.runtime.errors import BundleError, RequestError
from ditedge.runtime.files import sha256_of_file
from ditedge.runtime.loop.generate import generate
from ditedge.runtime.loop.prompts import prompt_of_ids
from ditedge.runtime.loop.session import Session
from ditedge.runtime.pictures.images import read_metadata
from tests.conftest import BUNDLES, PIXART
from tests.counting import Counting

BUNDLE = BUNDLES / PIXART
CLASSES = BUNDLES / "gray1_cfg"


def ditedge(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert code == 0 or "Traceback" not in result.output
    return result.output


def edited(folder: Path, **files: bytes) -> Path:
    """A copy of the bundle with other bytes in files of its `text/`, whose hashes are right."""
    shutil.copytree(BUNDLE, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for stem, raw in files.items():
        name = next(name for name in manifest["files"] if name.startswith(f"text/{stem}"))
        (folder / name).write_bytes(raw)
        manifest["files"][name] = FileInfo(sha256=sha256_of_file(folder / name), bytes=len(raw)).model_dump()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_each_distinct_prompt_is_evaluated_once() -> None:
    bundle = open_bundle(BUNDLE)
    with Session(bundle) as plain:
        engines = {name: Counting(plain.engine(name)) for name in ("text", "context", "position")}
        prompts = [["a red fox", "ankle boot", "snow on a handbag"][i % 3] for i in range(8)]
        with Session(bundle, engines=engines) as session:
            latents = generate(
                bundle, seeds=range(8), prompts=prompts, negative="dark", batch=3, output="latents", session=session
            )
            assert {name: engine.runs for name, engine in engines.items()} == {"text": 4, "context": 4, "position": 1}
            again = generate(
                bundle, seeds=[6], prompts=prompts[6:7], negative="dark", output="latents", session=session
            )
            assert engines["text"].runs == engines["context"].runs == 4
    np.testing.assert_array_equal(latents[6:7], again)  # whatever prompts were beside it


def test_words_ids_and_a_recorded_prompt_are_one_picture(tmp_path: Path) -> None:
    fox, run = tmp_path / "fox.safetensors", ("run", "--engine", BUNDLE, "--seed", 7, "-o")
    assert "4 tokens" in ditedge("encode", "--engine", BUNDLE, "a red fox", "-o", fox)
    ditedge("encode", "--engine", BUNDLE, "a red fox", "-o", tmp_path / "again.safetensors")
    assert fox.read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    latents = {}
    for name, given in {"words": ("--prompt", " A red FOX "), "recorded": ("--prompt-file", fox)}.items():
        file = tmp_path / f"{name}.safetensors"
        ditedge(*run, tmp_path / f"{name}.png", *given, "--save-latents", file)
        latents[name] = load_file(file)["latents"]
    ids = prompt_of_ids([4, 5, 6, 1])
    latents["ids"] = generate(open_bundle(BUNDLE), seeds=[7], prompts=[ids], output="latents")
    np.testing.assert_array_equal(latents["words"], latents["recorded"])
    np.testing.assert_array_equal(latents["words"], latents["ids"])


def test_a_picture_is_made_again_from_its_own_file(tmp_path: Path) -> None:
    first, second = tmp_path / "first.png", tmp_path / "second.png"
    (tmp_path / "list.txt").write_text("a red fox\n\nankle boot\n")
    options = ("--count", 4, "--size", "96x48", "--negative", "snow", "--steps", 5, "--guidance", 3)
    ditedge("run", "--engine", BUNDLE, "--prompts", tmp_path / "list.txt", *options, "-o", first)
    ditedge("run", "--engine", BUNDLE, "--like", first, "-o", second)
    made = read_metadata(first)
    assert [prompt["text"] for prompt in made["prompts"]] == ["a red fox", "ankle boot"] * 2
    assert made["size"] == [96, 48] and made["negative"][0]["text"] == "snow" and "labels" not in made
    assert made == read_metadata(second) and first.read_bytes() == second.read_bytes()


def test_sizes(tmp_path: Path) -> None:
    bundle = open_bundle(BUNDLE)
    images = generate(bundle, seeds=[1], prompts=["a red fox"], size=(128, 16))
    assert images.shape == (1, 16, 128, 3)
    with pytest.raises(
        RequestError, match="height 24 is not a multiple of 16 from 16 to 128 pixels: the nearest is 32"
    ):
        generate(bundle, seeds=[1], prompts=["a red fox"], size=(64, 24))
    out = ditedge("run", "--engine", BUNDLE, "--prompt", "a", "--size", "144x64", "-o", tmp_path / "a.png", code=2)
    assert "width 144 is not a multiple of 16 from 16 to 128 pixels: the nearest is 128" in out
    assert "--size '64' is not WIDTHxHEIGHT" in ditedge(
        "run", "--engine", BUNDLE, "--size", 64, "--prompt", "a", code=2
    )
    assert not list(tmp_path.iterdir())


def test_a_long_prompt_is_cut_and_says_where(tmp_path: Path) -> None:
    text = "fox " * 118 + "in the snow"
    out = ditedge("run", "--engine", BUNDLE, "--prompt", text, "--steps", 2, "-o", tmp_path / "a.png")
    assert "warning: the prompt has 122 tokens and the model reads 120" in out
    assert 'fox in", what is left out begins with "the snow"' in out
    out = ditedge("encode", "--engine", BUNDLE, text, "-o", tmp_path / "a.safetensors")
    assert "what is left out begins with" in out and "120 tokens" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--engine", BUNDLE), "takes prompts: say what the picture is of with --prompt"),
        (("--engine", BUNDLE, "--class", "3"), "takes prompts, and no classes: give --prompt instead of --class"),
        (("--engine", BUNDLE, "--not", "3", "--prompt", "a"), "give --prompt instead of --not"),
        (("--engine", CLASSES, "--prompt", "a"), "takes classes, and no prompts or sizes: give --class instead"),
        (("--engine", CLASSES, "--size", "32x32"), "takes classes, and no prompts or sizes"),
        (("--engine", BUNDLE, "--prompts", "nowhere.txt"), "cannot read nowhere.txt"),
        (("--engine", BUNDLE, "--prompt-file", "nowhere.safetensors"), "cannot read nowhere.safetensors"),
    ],
)
def test_what_does_not_fit_the_kind_of_model(arguments: tuple[object, ...], words: str) -> None:
    assert words in ditedge("run", *arguments, code=2)


def test_classes_and_prompts_from_programs() -> None:
    with pytest.raises(RequestError, match="takes prompts, and no classes"):
        generate(open_bundle(BUNDLE), [1], [1])
    with pytest.raises(RequestError, match="takes classes, and no prompts"):
        generate(open_bundle(CLASSES), [1], [1], prompts=["a"])
    with pytest.raises(RequestError, match="1 prompts and 2 seeds"):
        generate(open_bundle(BUNDLE), seeds=[1, 2], prompts=["a"])


def test_a_recorded_prompt_of_another_text_encoder(tmp_path: Path) -> None:
    rows = np.ones((3, 16), np.float32)

    def said(encoder: str | None) -> dict[str, str]:
        return {"ditedge-prompt": json.dumps({"version": "1", "encoder_sha256": encoder})}

    file = tmp_path / "other.safetensors"
    for raw, words in (
        (save({"hidden": rows}, said("0" * 64)), "was recorded with another text encoder (sha256 000000000000...)"),
        (save({"hidden": rows}), "not a recorded prompt of `ditedge encode`"),
        (b"nothing", "not a recorded prompt of `ditedge encode`"),
    ):
        file.write_bytes(raw)
        assert words in ditedge("run", "--engine", BUNDLE, "--prompt-file", file, code=2)
    own = open_bundle(BUNDLE).manifest.text.encoder_sha256  # type: ignore[union-attr]
    for rows, words in (
        (np.ones((3, 15), np.float32), "has rows of 15 numbers, the model reads 16"),
        (np.ones((121, 16), np.float32), "has 121 tokens, the model reads 120"),
        (np.full((2, 16), np.nan, np.float32), "finite float32 numbers"),
        (np.ones((2, 16), np.float64), "finite float32 numbers"),
    ):
        file.write_bytes(save({"hidden": rows}, said(own)))
        assert words in ditedge("run", "--engine", BUNDLE, "--prompt-file", file, code=2)


def test_a_damaged_or_huge_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, raw in {
        "a": b"{",
        "b": b"[]",
        "c": b'{"version": "1.0", "model": {"type": "Unigram", "vocab": 3}}',
    }.items():
        bundle = open_bundle(edited(tmp_path / name, tokenizer=raw))
        with pytest.raises(BundleError, match="tokenizer.json: not a readable tokenizer"):
            generate(bundle, seeds=[1], prompts=["a"], guidance=1.0)
    true = json.loads((BUNDLE / "text" / "tokenizer.json").read_text())
    true["post_processor"]["special_tokens"] = {}  # loads; its Rust code panics at the first text
    bundle = open_bundle(edited(tmp_path / "panic", tokenizer=json.dumps(true).encode()))
    with pytest.raises(BundleError, match="tokenizer.json: not a readable tokenizer"):
        generate(bundle, seeds=[1], prompts=["a"], guidance=1.0)
    monkeypatch.setattr("ditedge.runtime.loop.tokenizing.MAX_TOKENIZER_BYTES", 100)
    with pytest.raises(BundleError, match="larger than .* MB, not a tokenizer"):
        generate(open_bundle(BUNDLE), seeds=[1], prompts=["a"])
    with pytest.raises(BundleError, match="not a recorded prompt"):
        generate(open_bundle(edited(tmp_path / "d", empty=b"no")), seeds=[1], prompts=[prompt_of_ids([4, 1])])


@pytest.mark.parametrize(
    ("kind", "given", "sentence"),
    [
        ("none", {"guidance": 2.0}, "guidance 2: .* has none: leave it out, or give 1"),
        ("none", {"guidance": 1.0, "negative": "snow"}, "has no guidance and evaluates each step once: leave negative"),
        ("embedded", {"negative": "snow"}, "reads its guidance as a number and evaluates each step once"),
        ("embedded", {"guidance": 1e39}, r"guidance 1e\+39 is not a number up to 3e38"),
        ("embedded", {"guidance": float("nan")}, "guidance nan is not a number up to 3e38"),
    ],
)
def test_guidance_that_a_model_does_not_have(tmp_path: Path, kind: str, given: dict[str, Any], sentence: str) -> None:
    shutil.copytree(BUNDLE, tmp_path / "bundle")
    path = tmp_path / "bundle" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["text"]["guidance"] = kind
    path.write_text(json.dumps(manifest))
    with pytest.raises(RequestError, match=sentence):
        generate(open_bundle(tmp_path / "bundle"), seeds=[1], prompts=["a red fox"], **given)
