"""ditedge-words, the example that tokenises: by sentencepiece where it is there, and by token ids without it."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ditedge.runtime import generate, open_bundle
from ditedge.runtime.loop.prompts import prompt_of_ids
from ditedge.runtime.loop.tokenizing import Tokenizer
from tests.conftest import BUNDLES, PIXART

FOLDER = BUNDLES / PIXART


def number(value: int) -> bytes:
    """A protobuf varint; negative ones have 64 bits."""
    value, raw = value & (2**64 - 1), bytearray()
    while value > 127:
        raw.append(value & 127 | 128)
        value >>= 7
    return bytes([*raw, value])


def field(key: int, value: bytes | int) -> bytes:
    """A field of a protobuf message: bytes, or a whole number."""
    if isinstance(value, int):
        return number(key << 3) + number(value)
    return number(key << 3 | 2) + number(len(value)) + value


def sentencepiece_model() -> bytes:
    """The bundle's unigram vocabulary as T5's spiece.model (sentencepiece_model.proto): pieces, ids of special ones, normalizer."""
    vocab = json.loads((FOLDER / "text" / "tokenizer.json").read_text())["model"]["vocab"]
    kinds = {"<pad>": 3, "</s>": 3, "<unk>": 2}  # control, unknown; others are normal
    raw = b""
    for piece, score in vocab:
        of_score = number(2 << 3 | 5) + struct.pack("<f", score)
        raw += field(1, field(1, piece.encode()) + of_score + field(3, kinds.get(piece, 1)))
    unigram, unknown, begin, end, pad = field(3, 1), field(40, 2), field(41, -1), field(42, 1), field(43, 0)
    return raw + field(2, unigram + unknown + begin + end + pad) + field(3, field(1, b"identity"))


def test_words_are_pythons_tokens_and_picture(built: Path, onnxruntime_library: Path, tmp_path: Path) -> None:
    environment = os.environ | {"DITEDGE_ONNXRUNTIME": str(onnxruntime_library)}

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [built / "ditedge-words", "--bundle", FOLDER, *arguments]
        return subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True)

    bundle = open_bundle(FOLDER)
    expected = generate(bundle, seeds=[7], prompts=[prompt_of_ids([4, 5, 6, 1])])[0]
    done = run("--ids", "4,5,6,1", "--seed", 7, "-o", tmp_path / "ids.ppm")
    assert done.returncode == 0 and done.stdout == "4,5,6,1\n", done.stderr
    assert np.mean(np.array(Image.open(tmp_path / "ids.ppm")) == expected) >= 0.999
    for arguments, words in (
        (["--ids", "4;5"], "--ids 4;5 is not token ids with commas between"),
        (["--words", "a"], "either --ids or --spiece with --words"),
        (["--ids", "1", "-o", "/nowhere/a.ppm"], "cannot write /nowhere/a.ppm"),
        (["--ids", "4," * 121], "a prompt has 121 tokens, the model reads 120"),
    ):
        done = run(*arguments)
        assert done.returncode == 2 and words in done.stderr, done.stderr
    (tmp_path / "spiece.model").write_bytes(sentencepiece_model())
    if not re.search(r"SENTENCEPIECE_LIBRARY:FILEPATH=/", (built / "CMakeCache.txt").read_text()):
        done = run("--words", "a red fox", "--spiece", tmp_path / "spiece.model")
        assert done.returncode == 2 and "compiled without sentencepiece" in done.stderr
        pytest.skip("words are not tokenised: sentencepiece's library is not installed")
    tokenizer = Tokenizer(bundle)
    for text in (" A red FOX ", "snow on the ankle", "in the  dark", "xyz"):
        done = run("--words", text, "--spiece", tmp_path / "spiece.model", "-o", tmp_path / "a.ppm")
        prompt, _ = tokenizer.prompt(text)
        assert done.returncode == 0, done.stderr
        assert [[int(token) for token in done.stdout.split(",")]] == [[*own] for own in prompt.ids or ()], text
    done = run("--words", "fox " * 130, "--spiece", tmp_path / "spiece.model", "-o", tmp_path / "a.ppm")
    assert "the prompt has 131 tokens and the model reads 120" in done.stderr and done.stdout.count(",") == 119
    done = run("--words", "a", "--spiece", "/nowhere")
    assert done.returncode == 2 and "cannot read /nowhere" in done.stderr
