"""The command line: what works, and how everything a user can get wrong is answered in one line with exit code 2."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from safetensors.numpy import load_file, save_file

from ditedge.cli import main
from tests.conftest import GOLDEN, ROOT

GRAY = GOLDEN / "gray1_cfg" / "model.safetensors"


def ditedge(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def edit_manifest(bundle: Path, edit: Callable[[dict], None]) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))


def test_checkpoint_to_picture(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"thing {i}" for i in range(10)))
    bundle = tmp_path / "gray"
    result = ditedge("export", "--ckpt", GRAY, "--heads", 2, "--classes", names, "--out", bundle)
    assert result.exit_code == 0 and f"wrote {bundle}" in result.output
    result = ditedge(
        "run", "--engine", bundle, "--class", "thing 7", "--seed", 5, "--steps", 4, "-o", tmp_path / "a.png"
    )
    assert result.exit_code == 0 and f"wrote {tmp_path / 'a.png'}" in result.output
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (8, 8) and image.mode == "L"
        metadata = json.loads(image.info["ditedge"])
    assert metadata["classes"] == ["thing 7"] and metadata["seeds"] == [5] and metadata["program"] == "dpm++-4"


def test_run_writes_what_it_is_asked_for(gray_bundle: Path, tmp_path: Path) -> None:
    result = ditedge(
        "run", "--engine", gray_bundle, "--count", 5, "--batch", 2, "--sampler", "ddim", "--respacing", "ddim5",
        "--save-latents", tmp_path / "l.safetensors", "--save-trajectory", tmp_path / "t.safetensors",
        "-o", tmp_path / "out", "--json",
    )  # fmt: skip
    summary = json.loads(result.stdout)
    assert result.exit_code == 0 and summary["images"] == 5 and summary["seconds_per_image"] > 0
    assert len(summary["written"]) == 7 and all(Path(path).is_file() for path in summary["written"])
    latents, x = load_file(tmp_path / "l.safetensors")["latents"], load_file(tmp_path / "t.safetensors")["x"]
    assert x.shape == (5, 5, 1, 8, 8) and np.array_equal(x[-1], latents)


def test_recorded_noise_gives_the_recorded_trajectory(gray_bundle: Path, tmp_path: Path) -> None:
    recorded = GOLDEN / "gray1_cfg" / "ddpm10.safetensors"
    truth = load_file(recorded)
    classes = [argument for label in truth["y"] for argument in ("--class", label)]
    out = tmp_path / "t.safetensors"
    result = ditedge(
        "run", "--engine", gray_bundle, "--noise", recorded, *classes, "--sampler", "ddpm", "--steps", 10,
        "--guidance", 4, "--batch", 2, "--save-trajectory", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    error = np.abs(load_file(out)["x"] - truth["x"]).max() / np.abs(truth["x"]).max()
    assert error < 1e-5


@pytest.mark.parametrize("out", ["grid.png", "folder"])
def test_a_picture_is_made_again_from_its_own_file(gray_bundle: Path, tmp_path: Path, out: str) -> None:
    made = ditedge(
        "run", "--engine", gray_bundle, "--count", 3, "--seed", 9, "--steps", 6, "--guidance", 2.5, "--variance",
        "fixed-small", "--clip-x0", "-o", tmp_path / out,
    )  # fmt: skip
    assert made.exit_code == 0
    first = tmp_path / out if out.endswith("png") else sorted((tmp_path / out).iterdir())[0]
    again = ditedge("run", "--engine", gray_bundle, "--like", first, "-o", tmp_path / "again.png")
    assert again.exit_code == 0, again.output
    assert (tmp_path / "again.png").read_bytes() == first.read_bytes()


def test_verify_passes_and_fails(gray_bundle: Path) -> None:
    result = ditedge("verify", "--engine", gray_bundle)
    assert result.exit_code == 0 and result.output.count("passed") == 2 and "FAILED" not in result.output
    golden = gray_bundle / "golden" / "ddpm-10.safetensors"
    tensors = load_file(golden)
    tensors["x"][4] += 0.01
    save_file(tensors, golden)
    rehash(gray_bundle, "golden/ddpm-10.safetensors")
    result = ditedge("verify", "--engine", gray_bundle)
    assert result.exit_code == 1 and "FAILED" in result.output


def test_commands_report_in_json_by_the_names_of_run(gray_bundle: Path, tmp_path: Path) -> None:
    """export, convert and quantize what they wrote, verify what it measured; the same fields as `run --json`."""

    def summary(*arguments: object, code: int = 0) -> dict:
        result = ditedge(*arguments, "--json")
        assert result.exit_code == code, result.output
        return json.loads(result.stdout)

    made = tmp_path / "made"
    run = summary("run", "--engine", gray_bundle, "--steps", 1, "--count", 1, "-o", tmp_path / "a.png")
    for fields, out, precision in (
        (summary("export", "--ckpt", GRAY, "--heads", 2, "--out", made / "e"), made / "e", "float32"),
        (
            summary("convert", "--engine", gray_bundle, "--precision", "bf16", "--out", made / "c"),
            made / "c",
            "bfloat16",
        ),
    ):
        described = summary("inspect", out)
        assert out.name != "e" or fields["notes"][0] == "weights: the file's own keys, the only ones in the file"
        assert fields["bundle"] == str(out) and fields["written"] == [str(out)] and fields["precision"] == precision
        assert fields["bundle_sha256"] == described["sha256"] and fields["bytes"] == described["bytes"]
        assert {"bundle", "bundle_sha256", "written"} <= set(fields) & set(run)
    verified = summary("verify", "--engine", gray_bundle)
    assert verified["passed"] and verified["bundle_sha256"] == run["bundle_sha256"]
    assert [len(golden["error"]) for golden in verified["golden"]] == [10, 10]
    golden = gray_bundle / "golden" / "ddpm-10.safetensors"
    tensors = load_file(golden)
    tensors["x"][4] += 0.01
    save_file(tensors, golden)
    rehash(gray_bundle, "golden/ddpm-10.safetensors")
    failed = summary("verify", "--engine", gray_bundle, code=1)
    assert not failed["passed"] and sorted(entry["passed"] for entry in failed["golden"]) == [False, True]


def rehash(bundle: Path, name: str) -> None:
    from ditedge.runtime.files import sha256_of_file

    entry = {"sha256": sha256_of_file(bundle / name), "bytes": (bundle / name).stat().st_size}
    edit_manifest(bundle, lambda manifest: manifest["files"].update({name: entry}))


@pytest.mark.parametrize("path", [GRAY, GOLDEN / "latent4_learned_sigma" / "train_checkpoint.pt", None])
def test_inspect(gray_bundle: Path, path: Path | None) -> None:
    result = ditedge("inspect", path or gray_bundle, "--heads", 2, "--json")
    description = json.loads(result.stdout)
    assert result.exit_code == 0 and description["kind"] == ("checkpoint" if path else "bundle")
    assert ditedge("inspect", path or gray_bundle, "--heads", 2).exit_code == 0


def test_doctor_names_what_is_installed() -> None:
    import onnxruntime

    findings = {finding["name"]: finding for finding in json.loads(ditedge("doctor", "--json").stdout)}
    assert findings["provider cpu"]["found"] == "yes"
    assert findings["tensorrt"]["found"] or "TensorRT" in findings["tensorrt"]["purpose"]
    assert onnxruntime.__version__ in (findings["onnxruntime"]["found"], findings["onnxruntime-gpu"]["found"])
    assert ditedge("doctor").exit_code == 0


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_has_help_with_two_examples(command: str) -> None:
    result = ditedge(command, "--help")
    assert result.exit_code == 0
    assert result.output.count(f"  ditedge {command}") == 2, "two real examples"


# --- what a user can get wrong ---------------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self):
        return os.system, ("touch it-ran",)


def truncated(name: str, fraction: float = 0.6):
    def make(folder: Path) -> list[object]:
        raw = (GOLDEN / "gray1_cfg" / name).read_bytes()
        (folder / name).write_bytes(raw[: int(len(raw) * fraction)])
        return ["export", "--ckpt", folder / name, "--heads", 2, "--out", folder / "b"]

    return make


def changed(**changes: object):
    """Exports the gray model with some tensors replaced (None: removed)."""

    def make(folder: Path) -> list[object]:
        state = load_file(GRAY) | changes
        save_file({key: value for key, value in state.items() if value is not None}, folder / "m.safetensors")
        return ["export", "--ckpt", folder / "m.safetensors", "--heads", 2, "--out", folder / "b"]

    return make


def code_in_pickle(folder: Path) -> list[object]:
    import torch

    torch.save({"model": Bomb()}, folder / "m.pt")
    return ["export", "--ckpt", folder / "m.pt", "--out", folder / "b"]


def plain_pickle(folder: Path) -> list[object]:
    (folder / "m.pt").write_bytes(pickle.dumps(Bomb()))
    return ["export", "--ckpt", folder / "m.pt", "--out", folder / "b"]


def export(*options: object, ckpt: Path = GRAY):
    return lambda folder: ["export", "--ckpt", ckpt, "--out", folder / "b", *options]


def diffusers_config(**values: object):
    """Exports a transformer folder that holds a config.json only."""
    sizes = {"in_channels": 4, "patch_size": 2, "sample_size": 8, "num_attention_heads": 2, "attention_head_dim": 16}
    config = {"_class_name": "DiTTransformer2DModel", "num_layers": 1, "num_embeds_ada_norm": 10} | sizes | values

    def make(folder: Path) -> list[object]:
        (folder / "t").mkdir()
        (folder / "t" / "config.json").write_text(json.dumps(config))
        return ["export", "--ckpt", folder / "t", "--out", folder / "b"]

    return make


def latent_export(*options: object):
    return export("--heads", 4, *options, ckpt=GOLDEN / "latent4_learned_sigma" / "model.safetensors")


def vae_with_code(folder: Path) -> list[object]:
    import torch

    torch.save({"decoder.conv_in.weight": Bomb()}, folder / "vae.pt")
    return latent_export("--vae", folder / "vae.pt")(folder)


def run(*options: object):
    return lambda folder: ["run", "--engine", folder / "gray", "-o", folder / "out.png", *options]


def both(*options: object):
    return lambda folder: ["compare", "--engine", folder / "gray", "--against", folder / "gray", *options]


def quantised(command: str, *options: object):
    """A command on a bundle whose manifest says that it is int8 for ONNX Runtime."""
    info = {"precision": "int8", "form": "onnxruntime", "weights": "per-channel", "activations": "per-token"}
    info |= {"smoothing": None, "kept": [], "conditioner": "int8", "source_bundle": "0" * 64, "calibration": None}

    def make(folder: Path) -> list[object]:
        edit_manifest(folder / "gray", lambda manifest: manifest.update(quantization=info))
        return [command, "--engine", folder / "gray", *options]

    return make


def damaged(edit: Callable[[Path], object]):
    def make(folder: Path) -> list[object]:
        edit(folder / "gray")
        return ["run", "--engine", folder / "gray", "-o", folder / "out.png"]

    return make


def flip_byte(bundle: Path) -> None:
    raw = bytearray((bundle / "step.onnx").read_bytes())
    raw[1000] ^= 255
    (bundle / "step.onnx").write_bytes(raw)


def noise_file(**tensors: np.ndarray):
    def make(folder: Path) -> list[object]:
        save_file(tensors, folder / "noise.safetensors")
        return ["run", "--engine", folder / "gray", "--noise", folder / "noise.safetensors", "-o", folder / "out.png"]

    return make


def plan(*options: object) -> Callable[[Path], list[object]]:
    """A run of a file that is called a plan."""

    def arguments(folder: Path) -> list[object]:
        (folder / "gray" / "dit.plan").touch()
        return ["run", "--engine", folder / "gray" / "dit.plan", *options]

    return arguments


BAD = {
    "truncated safetensors": (truncated("model.safetensors"), "cut short"),
    "truncated pt": (truncated("model.pt"), "cut short"),
    "pickle with code": (code_in_pickle, "would run code"),
    "bare pickle with code": (plain_pickle, "m.pt"),
    "no such checkpoint": (export(ckpt=Path("nowhere.pt")), "nowhere.pt does not exist"),
    "not a checkpoint": (export(ckpt=Path(__file__)), "test_cli.py"),
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
    "export below a file": (export("--heads", 2, "--out", f"{__file__}/b"), "test_cli.py/b: Not a directory"),
    "export over a file": (export("--heads", 2, "--out", __file__), "test_cli.py exists"),
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
    "int8 of ONNX Runtime given to TensorRT": (quantised("build", "--target", "tensorrt-rtx"), "--runtime tensorrt"),
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


def test_full_disk(gray_bundle: Path, tmp_path: Path) -> None:
    """A tmpfs of 64 KB: exporting and saving both fail in one line, and leave nothing."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk]).returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    try:
        for arguments in (
            ["export", "--ckpt", GRAY, "--heads", 2, "--out", disk / "b"],
            ["run", "--engine", gray_bundle, "--count", 300, "--steps", 2, "--save-trajectory", disk / "t.safetensors"],
        ):
            result = ditedge(*arguments)
            assert result.exit_code == 2 and "No space left on device" in result.stderr, result.output
            assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("command", ["export", "run"])
def test_ctrl_c_leaves_nothing(gray_bundle: Path, tmp_path: Path, command: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    arguments = {
        "export": ["--ckpt", GRAY, "--heads", 2, "--out", out / "b"],
        "run": ["--engine", gray_bundle, "--count", 5000, "--steps", 1000, "-o", out / "x.png"],
    }[command]
    process = subprocess.Popen(
        [sys.executable, ROOT / "cli.py", command, *map(str, arguments)], stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while command == "export" and not list(out.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.5 if command == "export" else 5)  # past the imports, well inside the work
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors.decode()
    assert b"Traceback" not in errors and b"Interrupted" in errors
    assert list(out.iterdir()) == []


def test_runs_from_any_folder(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "cli.py", "--version"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "ditedge" in result.stdout or "version" in result.stdout


@pytest.mark.parametrize(
    "options",
    [
        ["--sampler", "dpm++", "--order", 3, "--steps", 6],
        ["--sampler", "unipc", "--steps", 6, "--guidance-interval", "0.3,5"],
        ["--sampler", "heun", "--steps", 4, "--sigmas", "karras"],
        ["--sampler", "euler-ancestral", "--steps", 6, "--spacing", "trailing", "--guidance-interval", "t100,t600"],
        ["--sampler", "ddim", "--steps", 6, "--eta", 0.5, "--not", 3],
        ["--program", "ddim-25"],
    ],
)
def test_every_kind_of_sampler_runs_and_runs_again(gray_bundle: Path, tmp_path: Path, options: list) -> None:
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    result = ditedge("run", "--engine", gray_bundle, "--count", 2, *options, "-o", first)
    assert result.exit_code == 0, result.output
    result = ditedge("run", "--engine", gray_bundle, "--like", first, "-o", again)
    assert result.exit_code == 0, result.output
    assert again.read_bytes() == first.read_bytes()


def test_a_diffusers_scheduler_becomes_a_program(gray_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    config, program = tmp_path / "scheduler_config.json", tmp_path / "p.json"
    config.write_text(json.dumps({"_class_name": "UniPCMultistepScheduler", "beta_start": 1e-4, "beta_end": 0.02}))
    result = ditedge("schedule", "--from", config, "--steps", 8, "-o", program, "--json")
    fields = json.loads(result.stdout)
    assert (fields["steps"], fields["slots"], fields["written"]) == (8, 3, [str(program)])
    result = ditedge("schedule", "--from", config, "--steps", 8, "-o", program)
    assert result.exit_code == 0 and "8 evaluations, 3 state slot(s), proved" in result.output, result.output
    result = ditedge("run", "--engine", gray_bundle, "--program", program, "-o", tmp_path / "a.png")
    assert result.exit_code == 0, result.output
    for text, complaint in (
        ("{", "not valid JSON"),
        ("{}", "_class_name"),
        ('{"_class_name": "Nope"}', "'Nope' is not"),
    ):
        config.write_text(text)
        result = ditedge("schedule", "--from", config, "--steps", 8, "-o", tmp_path / "q.json")
        assert result.exit_code == 2 and complaint in result.stderr, result.output
        assert not (tmp_path / "q.json").exists()
