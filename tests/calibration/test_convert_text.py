"""Bundles that take prompts in 16 bit, and without their text encoder. No golden trajectory shows the encoder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

from ditedge.calibration.convert import convert_bundle
from ditedge.calibration.graph.surgery import load_graph, save_graph
from ditedge.calibration.options import ConvertOptions
from ditedge.calibration.pool import CAPTIONS, pool_of
from ditedge.calibration.statistics.overflow import overflow_scan, too_large
from ditedge.cli import main
from ditedge.runtime import generate, open_bundle
from ditedge.runtime.errors import BundleError
from ditedge.runtime.files import sha256_of_file
from ditedge.runtime.loop.prompts import read_prompt
from tests.conftest import BUNDLES, PIXART

BUNDLE = BUNDLES / PIXART
HALVES = {"fp16": "float16", "bf16": "bfloat16"}


def ditedge(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code and (code == 0 or "Traceback" not in result.output), result.output
    return result.output


def changed(folder: Path, graph: str, change) -> Path:
    """A copy of the small bundle with another graph, whose hash is right."""
    shutil.copytree(BUNDLE, folder)
    manifest, file = json.loads((folder / "manifest.json").read_text()), folder / f"{graph}.onnx"
    model = load_graph(file)
    change(model)
    file.unlink()
    save_graph(model, file)
    manifest["files"][file.name] = {"sha256": sha256_of_file(file), "bytes": file.stat().st_size}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def scale(value, factor: float) -> None:
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(factor), name=value.name)


def linears(model, shape: tuple[int, int]) -> list:
    """MatMuls whose weight has this shape, in the order of computation."""
    products = [node for node in model.graph if node.op_type == "MatMul" and node.inputs[1].is_initializer()]
    return [node for node in products if tuple(node.inputs[1].shape) == shape]


def hot_feed_forward(model) -> None:
    """The first block's hidden units are 3e6 times as large, and come back to their size behind them."""
    scale(linears(model, (16, 32))[1].inputs[1], 3e6)
    scale(linears(model, (32, 16))[0].inputs[1], 1 / 3e6)


def hot_caption(model) -> None:
    """So is what keys and values are made of."""
    projection, *keys_and_values = linears(model, (24, 24))
    for value in (projection.inputs[1], projection.outputs[0].consumers()[0].inputs[1]):
        scale(value, 3e6)
    for node in keys_and_values:
        scale(node.inputs[1], 1 / 3e6)


@pytest.mark.parametrize("precision", HALVES)
def test_every_graph_but_positions_is_in_16_bit_and_replays(tmp_path: Path, precision: str) -> None:
    said: list[str] = []
    manifest = convert_bundle(
        BUNDLE, tmp_path / "low", ConvertOptions(precision), report=lambda what, done=0, total=0: said.append(what)
    )
    found = {name: graph.precision for name, graph in manifest.graphs.items()}
    low = HALVES[precision]
    assert [found[name] for name in ("conditioner", "context", "step", "text", "position")] == [*[low] * 4, "float32"]
    assert manifest.vae is not None and manifest.vae.precision == "float16"
    assert {golden.tolerance for golden in manifest.golden} == {0.02 if precision == "fp16" else 0.1}
    assert any(line.startswith("text encoder: relative error of 9 encoded prompts") for line in said)
    assert any("no prompts given" in line for line in said)
    bundle = open_bundle(tmp_path / "low")  # every hash is right
    assert {"text/tokenizer.json", "text/empty.safetensors"} <= bundle.manifest.files.keys()
    assert bundle.manifest.text == open_bundle(BUNDLE).manifest.text
    if precision == "fp16":
        settings = {"prompts": ["a red fox", "boots"], "output": "latents"}
        half, full = (generate(open_bundle(path), seeds=[1, 2], **settings) for path in (tmp_path / "low", BUNDLE))
        assert 0 < np.linalg.norm(half - full) <= 2e-2 * np.linalg.norm(full)


def test_the_text_encoder_may_stay_in_float32(tmp_path: Path) -> None:
    out = ditedge("convert", "--engine", BUNDLE, "--precision", "fp16", "--no-text-encoder", "--out", tmp_path / "low")
    assert "fp16, checked" in out
    bundle = open_bundle(tmp_path / "low")
    assert bundle.manifest.graphs["text"].precision == "float32"
    assert bundle.manifest.files["text.onnx"] == open_bundle(BUNDLE).manifest.files["text.onnx"]


@pytest.mark.parametrize(("graph", "change"), [("text", hot_feed_forward), ("context", hot_caption)])
def test_what_overflows_is_found_over_prompts_and_stays_in_float32(tmp_path: Path, graph: str, change) -> None:
    source, prompts = changed(tmp_path / "hot", graph, change), tmp_path / "list.txt"
    prompts.write_text("a red fox\nan ankle boot\n")
    for bundle, expected in ((source, True), (BUNDLE, False)):
        found = overflow_scan(open_bundle(bundle), tmp_path, graphs=("step", graph), prompts=prompts)[graph]
        assert bool(too_large(found)) == expected
    said: list[str] = []
    options = ConvertOptions("fp16", prompts=prompts)
    convert_bundle(source, tmp_path / "low", options, report=lambda what, *_: said.append(what))
    assert any("exceed float16, kept in float32" in line and line.startswith(graph) for line in said)
    # the file's two, the golden trajectories' two, what those are guided away from, and no words
    assert any(line.startswith("scanned trajectories of prompt 1, 2, 4, 6;") for line in said), said
    assert any("all 6 prompts" in line for line in said)
    settings = {"prompts": ["a red fox"], "seeds": [1], "output": "latents"}
    half, full = (generate(open_bundle(path), **settings) for path in (tmp_path / "low", source))
    assert np.isfinite(half).all() and np.linalg.norm(half - full) <= 2e-2 * np.linalg.norm(full)


def test_an_encoder_that_rounds_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ditedge.calibration import convert

    def coarse(model, dtype, keep) -> int:
        for name, value in model.graph.initializers.items():
            if name.endswith("layer_norm.weight"):  # the encoder's alone have such a name
                scale(value, 1.5)
        return 1

    monkeypatch.setattr(convert, "lower", coarse)
    with pytest.raises(BundleError, match=r"relative error on prompt '.*' is .*, allowed 0.02: .*--no-text-encoder"):
        convert_bundle(BUNDLE, tmp_path / "low", ConvertOptions("fp16"))
    assert not list(tmp_path.iterdir())


def test_a_device_gets_everything_but_the_encoder(tmp_path: Path) -> None:
    """From a bundle in any form: what is left is what was there, to the byte, and prompts come recorded."""
    low, device, fox = tmp_path / "low", tmp_path / "device", tmp_path / "fox.safetensors"
    ditedge("convert", "--engine", BUNDLE, "--precision", "fp16", "--out", low)
    out = ditedge("convert", "--engine", low, "--without-text", "--out", device)
    assert "without a text encoder" in out
    bundle, whole = open_bundle(device), open_bundle(low)
    gone = {"text.onnx", "text/tokenizer.json"}
    assert bundle.manifest.files == {k: v for k, v in whole.manifest.files.items() if k not in gone}
    assert bundle.manifest.text is not None and bundle.manifest.text.tokenizer is None
    ditedge("encode", "--engine", BUNDLE, "a red fox", "-o", fox)
    settings = {"seeds": [3], "output": "latents"}
    latents = [generate(b, prompts=[read_prompt(fox, b)], **settings) for b in (bundle, whole)]
    np.testing.assert_array_equal(*latents)
    assert "has no text encoder" in ditedge("run", "--engine", device, "--prompt", "a red fox", code=2)
    both = ditedge("convert", "--engine", BUNDLE, "--precision", "fp16", "--without-text", "--out", tmp_path / "both")
    assert "fp16, checked, without a text encoder" in both
    assert open_bundle(tmp_path / "both").manifest.files["step.onnx"] == whole.manifest.files["step.onnx"]
    key = tmp_path / "release.pem"
    ditedge("sign", "--engine", device, "--new-key", key)
    signed = ("run", "--engine", device, "--prompt-file", fox, "--trusted-key", tmp_path / "release.pub.pem")
    ditedge(*signed, "-o", tmp_path / "fox.png")
    (device / "text" / "empty.safetensors").write_bytes(fox.read_bytes())
    assert "does not match its hash" in ditedge(*signed, "-o", tmp_path / "other.png", code=2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--engine", BUNDLE), "say what the bundle becomes: --precision, --without-text, or both"),
        (("--engine", BUNDLES / "gray1_cfg", "--without-text"), "takes classes: leave --without-text out"),
        (
            ("--engine", BUNDLES / "gray1_cfg", "--precision", "bf16", "--prompts", "x.txt"),
            "takes classes: leave --prom",
        ),
        (("--engine", BUNDLE, "--precision", "fp16", "--prompts", "nowhere.txt"), "cannot read nowhere.txt"),
        (("--engine", BUNDLE, "--without-text", "--max-error", "0.1"), "changes no graph"),
    ],
)
def test_mistakes(tmp_path: Path, arguments: tuple[object, ...], words: str) -> None:
    assert words in ditedge("convert", *arguments, "--out", tmp_path / "out", code=2)
    assert not (tmp_path / "out").exists()


def test_what_stands_in_for_prompts(tmp_path: Path) -> None:
    """Captions and no words where there is a text encoder; without one the rows of the golden trajectories."""
    said: list[str] = []
    pool = pool_of(open_bundle(BUNDLE), report=lambda what, *_: said.append(what))
    assert [prompt.text for prompt in pool.of] == [*CAPTIONS, ""] and pool.size == (64, 64)
    assert all(prompt.recorded for prompt in pool.of) and "captions of ours" in said[0]
    convert_bundle(BUNDLE, tmp_path / "device", ConvertOptions(without_text=True))
    recorded = pool_of(open_bundle(tmp_path / "device"), report=lambda what, *_: said.append(what))
    assert [prompt.tokens for prompt in recorded.of] == [5, 9, 1] and "random rows" in said[1]
    assert recorded.away_from == pool.away_from
