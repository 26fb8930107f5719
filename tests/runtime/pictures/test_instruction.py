"""An instruction before prompts (Sana's): the small PixArt with one, without PyTorch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from ditedge.calibration.convert import ConvertOptions, convert_bundle
from ditedge.runtime import open_bundle
from ditedge.runtime.bundle.manifest import INSTRUCTION
from ditedge.runtime.errors import BundleError, RequestError
from ditedge.runtime.loop.generate import generate
from ditedge.runtime.loop.prompts import prompt_of_ids, prompt_of_rows
from ditedge.runtime.loop.session import Session
from ditedge.runtime.loop.tokenizing import Tokenizer
from ditedge.runtime.pictures.images import read_metadata
from tests.runtime.pictures.test_prompts import BUNDLE, ditedge

WORDS, TOKENS = "in the snow ", 4  # the tokenizer ends every text with </s>


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return with_instruction(tmp_path / "bundle")


def with_instruction(folder: Path, **changes: object) -> Path:
    shutil.copytree(BUNDLE, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["requires"].append(INSTRUCTION)
    manifest["text"] |= {"instruction": {"text": WORDS, "tokens": TOKENS} | changes}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_the_first_row_is_read_and_those_from_the_instructions_last_token_on(folder: Path) -> None:
    plain = open_bundle(BUNDLE)
    with Session(plain) as session:
        both = session.encode(Tokenizer(plain).prompt("in the snow a red fox")[0])["hidden"]
        alone = session.encode(Tokenizer(plain).prompt("a red fox")[0])["hidden"]
    bundle = open_bundle(folder)
    with Session(bundle) as session:
        prompt, negative = (Tokenizer(bundle).prompt(" A red FOX ", told)[0] for told in (False, True))
        np.testing.assert_array_equal(session.encode(prompt)["hidden"], both[[0, *range(TOKENS - 1, len(both))]])
        np.testing.assert_array_equal(session.encode(negative)["hidden"], alone)
        ids = prompt_of_ids(prompt.ids or ())
        assert ids == prompt and prompt_of_ids(prompt.ids or (), negative=True) != prompt


def test_an_instruction_takes_nothing_of_a_prompts_length(folder: Path) -> None:
    bundle, most = open_bundle(folder), 120
    tokenizer = Tokenizer(bundle)
    longest = " ".join(["fox"] * (most - 2))  # the instruction's last token, and </s>
    prompt, cut = tokenizer.prompt(longest)
    assert cut is None and len((prompt.ids or ())[0]) == most + TOKENS - 2
    _, cut = tokenizer.prompt(longest + " boot")
    assert cut is not None and "has 121 tokens and the model reads 120" in cut and 'left out begins with "boot"' in cut
    assert tokenizer.prompt(longest + " boot", negative=True)[1] is None
    with Session(bundle) as session:
        assert len(session.encode(prompt)["hidden"]) == most
        with pytest.raises(RequestError, match="has 123 tokens, the model reads 122"):
            session.encode(prompt_of_ids([4] * (most + 3)))
        with pytest.raises(RequestError, match="has 121 tokens, the model reads 120"):
            session.encode(prompt_of_ids([4] * (most + 1), negative=True))


def test_words_and_recorded_prompts_are_one_picture_that_is_made_again(folder: Path, tmp_path: Path) -> None:
    for name, text, told in (("fox", "a red fox", ()), ("snow", "snow", ("--negative",))):
        ditedge("encode", "--engine", folder, text, "-o", tmp_path / f"{name}.safetensors", *told)
    options, latents = ("--steps", 3, "--guidance", 3, "--seed", 7), {}
    for name, given in {
        "words": ("--prompt", "a red fox", "--negative", "snow"),
        "recorded": ("--prompt-file", tmp_path / "fox.safetensors", "--negative-file", tmp_path / "snow.safetensors"),
    }.items():
        saved = tmp_path / f"latents-{name}.safetensors"
        out = ("-o", tmp_path / f"{name}.png", "--save-latents", saved)
        ditedge("run", "--engine", folder, *given, *options, *out)
        latents[name] = load_file(saved)["latents"]
    np.testing.assert_array_equal(latents["words"], latents["recorded"])
    ditedge("run", "--engine", folder, "--like", tmp_path / "words.png", "-o", tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "words.png").read_bytes()
    assert read_metadata(tmp_path / "words.png")["negative"][0]["text"] == "snow"


def test_readers_without_it_are_told_and_a_bundle_without_encoder_has_none(folder: Path, tmp_path: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["requires"] = ["text"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="a bundle with an instruction requires 'instruction'"):
        open_bundle(folder)
    whole = with_instruction(tmp_path / "whole")
    convert_bundle(whole, tmp_path / "device", ConvertOptions(without_text=True))
    device = open_bundle(tmp_path / "device").manifest
    assert device.text is not None and device.text.instruction is None and device.requires == ["text"]
    with pytest.raises(BundleError, match="instruction"):
        open_bundle(with_instruction(tmp_path / "short", tokens=1))


def test_the_recorded_prompt_of_no_words_has_no_instruction(folder: Path) -> None:
    plain, bundle = (open_bundle(path) for path in (BUNDLE, folder))
    ids = (Tokenizer(bundle).prompt("a red fox")[0].ids or ())[0]
    with Session(plain) as session:
        rows = session.encode(prompt_of_ids(ids))["hidden"]
    told = {"seeds": [1], "output": "latents", "program": bundle.program(steps=2), "guidance": 3.0}
    kept = prompt_of_rows(np.delete(rows, slice(1, TOKENS - 1), axis=0))
    ours, theirs = generate(bundle, prompts=["a red fox"], **told), generate(plain, prompts=[kept], **told)
    np.testing.assert_array_equal(ours, theirs)
