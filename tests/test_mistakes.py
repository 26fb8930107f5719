"""Everything a user can get wrong is answered in one line with exit code 2, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import GOLDEN
from tests.mistakes import (
    both,
    changed,
    code_in_pickle,
    damaged,
    diffusers_config,
    export,
    flip_byte,
    latent_export,
    noise_file,
    plain_pickle,
    plan,
    quantised,
    run,
    truncated,
    vae_with_code,
)
from tests.test_cli import GRAY, ditedge, edit_manifest

BAD = {
    "truncated safetensors": (truncated("model.safetensors"), "cut short"),
    "truncated pt": (truncated("model.pt"), "cut short"),
    "pickle with code": (code_in_pickle, "would run code"),
    "bare pickle with code": (plain_pickle, "m.pt"),
    "no such checkpoint": (export(ckpt=Path("nowhere.pt")), "nowhere.pt does not exist"),
    "not a checkpoint": (export(ckpt=Path(__file__)), "test_mistakes.py is not a checkpoint"),
    "wrong shape": (changed(**{"blocks.0.attn.qkv.bias": np.ones(5, np.float32)}), "blocks.0.attn.qkv.bias"),
    "missing key": (changed(**{"blocks.0.attn.qkv.bias": None}), "blocks.0.attn.qkv.bias"),
    "unknown key": (changed(**{"lora.weight": np.ones(5, np.float32)}), "lora.weight"),
    "weights that are not finite": (changed(**{"x_embedder.proj.bias": np.full(32, np.inf, np.float32)}), "finite"),
    "heads not given": (export(), "--heads"),
    "heads that do not divide": (export("--heads", 7), "--heads 7"),
    "wrong image size": (export("--heads", 2, "--image-size", 512), "--image-size 512"),
    "unknown betas": (export("--heads", 2, "--betas", "quadratic"), "--betas 'quadratic'"),
    "too many guided channels": (export("--heads", 2, "--guided-channels", 9), "--guided-channels 9"),
    "wrong class list": (export("--heads", 2, "--classes", __file__), "class names for 10 classes"),
    "missing class list": (export("--heads", 2, "--classes", "nope.txt"), "nope.txt"),
    "export below a file": (export("--heads", 2, "--out", f"{__file__}/b"), "test_mistakes.py/b: Not a directory"),
    "export over a file": (export("--heads", 2, "--out", __file__), "test_mistakes.py exists"),
    "a folder that is no model": (
        lambda f: ["export", "--ckpt", f, "--out", f / "b"],
        "is not a checkpoint; what is read",
    ),
    "a diffusers model of another class": (diffusers_config(_class_name="UNet2DModel"), "'UNet2DModel', not a DiT"),
    "a diffusers folder without weights": (diffusers_config(), "no weights, expected"),
    "custom model misspelt": (export("--model", "my_dit"), "--model my_dit: write it as package.module:factory"),
    "custom model nowhere": (export("--model", "no_such:build"), "No module named 'no_such'"),
    "custom model and heads": (export("--model", "json:loads", "--heads", 2), "leave --heads"),
    "custom model that is none": (export("--model", "json:dumps"), "the factory failed"),
    "a vae for a model of pixels": (export("--heads", 2, "--pixels", "--vae", GOLDEN), "a model of pixels has no VAE"),
    "no such vae": (latent_export("--vae", "nowhere"), "nowhere does not exist"),
    "a vae folder without config": (latent_export("--vae", GOLDEN), "has no config.json"),
    "a vae that is a DiT": (latent_export("--vae", GRAY), "not the decoder of an AutoencoderKL"),
    "a vae with code": (vae_with_code, "would run code"),
    "unknown vae precision": (latent_export("--vae", GRAY, "--vae-precision", "float8"), "float8"),
    "opset out of range": (export("--heads", 2, "--opset", 7), "--opset"),
    "no such bundle": (lambda f: ["run", "--engine", f / "nope"], "nope does not exist"),
    "not a bundle": (lambda f: ["run", "--engine", f], "is not a bundle"),
    "a tensorrt plan": (plan(), "/gray"),  # for want of a library, a GPU or its record; see test_plan_refusals
    "a tensorrt plan on a provider": (
        plan("--provider", "cuda"),
        "does not run on provider 'cuda'",
    ),
    "tampered graph": (damaged(flip_byte), "does not match its hash"),
    "missing graph": (damaged(lambda b: (b / "step.onnx").unlink()), "step.onnx is missing"),
    "future manifest": (damaged(lambda b: edit_manifest(b, lambda m: m.update(version=99))), "version 99"),
    "path out of the bundle": (
        damaged(lambda b: edit_manifest(b, lambda m: m["files"].update({"../x": m["files"]["step.onnx"]}))),
        "leaves the bundle",
    ),
    "manifest cut short": (damaged(lambda b: (b / "manifest.json").write_text('{"format": "dite')), "manifest.json"),
    "unknown class name": (run("--class", "dragon"), "class 'dragon'"),
    "class out of range": (run("--class", 10), "class 10"),
    "steps 0": (run("--steps", 0), "steps 0"),
    "steps 1001": (run("--steps", 1001), "steps 1001"),
    "steps and respacing": (run("--steps", 5, "--respacing", "5"), "give one of them"),
    "a flow sampler for a diffusion model": (run("--sampler", "flow-euler"), "which fit this model"),
    "bad respacing": (run("--respacing", "ddim7x"), "ddim7x"),
    "unknown sampler": (run("--sampler", "magic", "--steps", 5), "sampler 'magic'"),
    "order of a sampler that has none": (run("--sampler", "euler", "--order", 2), "order is a setting of"),
    "empty guidance interval": (run("--guidance-interval", "1e5,1e6"), "holds none of this program's sigmas"),
    "bad guidance interval": (run("--guidance-interval", "low,high"), "guidance interval 'low,high'"),
    "unknown program": (run("--program", "nope"), "program 'nope'"),
    "program and settings": (run("--program", "ddpm-50", "--steps", 5), "program 'ddpm-50' is ready-made"),
    "class to avoid is unknown": (run("--not", "dragon"), "class 'dragon'"),
    "guidance nan": (run("--guidance", "nan"), "'--guidance': nan is not a finite number"),
    "guidance inf": (run("--guidance", "inf"), "'--guidance': inf is not a finite number"),
    "guidance is no number": (run("--guidance", "much"), "much"),
    "eta nan": (run("--sampler", "ddim", "--eta", "nan"), "'--eta': nan is not a finite number"),
    "learned variance that was not": (run("--variance", "learned"), "did not learn"),
    "negative seed": (run("--seed", -1), "seed -1"),
    "seed too large": (run("--seed", 2**64), "seed"),
    "previews of no step": (run("--preview-every", 0), "preview-every"),
    "previews after the last step": (run("--steps", 4, "--preview-every", 5), "--preview-every 5"),
    "no such provider": (run("--provider", "abacus"), "abacus"),
    "unwritable picture": (lambda f: ["run", "--engine", f / "gray", "-o", f"{__file__}/x.png"], "Not a directory"),
    "unwritable latents": (run("--save-latents", f"{__file__}/x"), "Not a directory"),
    "unwritable program": (run("--save-program", f"{__file__}/x.json"), "Not a directory"),
    "latents of another format": (run("--save-latents", "l.pt"), "tensors are .safetensors or .npz"),
    "latents to the standard output": (run("--save-latents", "-"), "ends in .safetensors"),
    "a picture of another format": (lambda f: ["run", "--engine", f / "gray", "-o", f / "x.gif"], "ends in .png, .jpg"),
    "a picture and JSON on one output": (lambda f: ["run", "--engine", f / "gray", "-o", "-", "--json"], "redirect it"),
    "previews on the standard output": (
        lambda f: ["run", "--engine", f / "gray", "-o", "-", "--preview-every", 5],
        "give -o a name",
    ),
    "more pictures than memory": (
        run("--count", 10**6, "--steps", 1000, "--save-trajectory", "t.npz"),
        "give a smaller --count",
    ),
    "a class of 5,000 digits": (run("--class", "9" * 5000), "characters) the model has classes 0 to 9"),
    "a respacing of 5,000 digits": (run("--sampler", "ddim", "--respacing", "ddim" + "9" * 5000), "is not 'N'"),
    "a name of 300 letters": (lambda f: ["run", "--engine", f / "gray", "-o", "n" * 300 + ".png"], "name too long"),
    "noise of the wrong shape": (
        noise_file(z=np.zeros((1, 1, 4, 4), np.float32), noise=np.zeros((50, 1, 1, 4, 4), np.float32)),
        "this run needs",
    ),
    "noise without z": (noise_file(y=np.zeros(1)), "'z'"),
    "noise that is not finite": (
        noise_file(z=np.full((1, 1, 8, 8), np.nan, np.float32), noise=np.zeros((50, 1, 1, 8, 8), np.float32)),
        "not finite",
    ),
    "a picture without metadata": (
        lambda f: [Image.new("L", (8, 8)).save(f / "p.png"), "run", "--engine", f / "gray", "--like", f / "p.png"][1:],
        "no ditedge metadata",
    ),
    "a batch of 20,000": (run("--batch", 20_000), "not in the range 1<=x<=1024"),
    "10^12 images": (run("--count", 10**12), "not in the range 1<=x<=1000000"),
    "10^12 threads": (run("--threads", 10**12), "not in the range"),
    "a seed of 77 bits": (run("--seed", 2**77), "is not between 0 and 2**64 - 1"),
    "a seed of 5,000 digits": (run("--seed", "9" * 5000), "not a valid integer"),
    "shift nan": (run("--shift", "nan"), "nan is not a finite number"),
    "compare with seed -1": (both("--seed", -1), "not in the range"),
    "compare with a seed of 77 bits": (both("--seed", 2**77), "not in the range"),
    "compare beyond the last seed": (both("--seed", 2**64 - 3, "--count", 2), "end at 2**64"),
    "a gate of nan": (both("--max-drift", "nan"), "nan is not a finite number"),
    "a gate of inf": (both("--min-psnr", "inf"), "inf is not a finite number"),
    "10^9 calibration images": (
        lambda f: ["quantize", "--engine", f / "gray", "--out", f / "q", "--samples", 10**9],
        "not in the range 1<=x<=100000",
    ),
    "smoothing nan": (
        lambda f: ["quantize", "--engine", f / "gray", "--out", f / "q", "--smoothing", "nan"],
        "nan is not a finite number",
    ),
    "heads 0": (export("--heads", 0), "not in the range"),
    "int8 of ONNX Runtime given to TensorRT": (quantised("build", "--target", "tensorrt-rtx"), "--form tensorrt"),
    "... and printed for its tool": (
        quantised("build", "--target", "tensorrt", "--print-trtexec"),
        "int8 in the form of ONNX Runtime (per-token activations)",
    ),
    "inspecting nothing": (lambda f: ["inspect", f / "nope"], "does not exist"),
    "verifying nothing": (lambda f: ["verify", "--engine", f / "nope"], "does not exist"),
}


@pytest.mark.parametrize("mistake", BAD)
def test_mistakes_get_one_line_and_exit_code_2(
    gray_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make, complaint = BAD[mistake]
    arguments = make(tmp_path)
    before = {path for path in tmp_path.rglob("*")}
    result = ditedge(*arguments)
    assert result.exit_code == 2, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and complaint in errors[0], result.stderr
    assert "Traceback" not in result.output
    assert {path for path in tmp_path.rglob("*")} == before, "something was left behind"
