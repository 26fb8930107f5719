"""The command line: what works, and what an end in the middle of it leaves."""

from __future__ import annotations

import json
import os
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
    libraries = Path(f"/proc/{process.pid}/maps")

    def begun() -> bool:
        return bool(list(out.iterdir())) if command == "export" else "onnxruntime" in libraries.read_text()

    deadline = time.monotonic() + 60
    while (command == "export" or libraries.exists()) and not begun() and time.monotonic() < deadline:
        time.sleep(0.05)
    # Past the imports, well inside the work: an export may take a second.
    time.sleep(0.2 if command == "export" else 1 if libraries.exists() else 5)
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
