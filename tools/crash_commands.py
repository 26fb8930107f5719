"""The commands that `crash.py` kills, on models of kilobytes, and how to tell their results apart."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ditedge.runtime import Session, open_bundle
from ditedge.runtime.errors import DitedgeError, EngineError
from ditedge.runtime.loop.verify import replay
from ditedge.runtime.pictures.images import open_picture, read_metadata
from ditedge.runtime.samplers.program import read_program
from ditedge.runtime.signing import new_key_pair

TESTS = Path(__file__).resolve().parents[1] / "tests"
CHECKPOINT = TESTS / "golden" / "gray1_cfg" / "model.pt"
BUNDLE, LATENT = TESTS / "bundles" / "gray1_cfg", TESTS / "bundles" / "latent4_learned_sigma"
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "clip_sample": False,
}
VAE = "import diffusers; diffusers.AutoencoderKL(block_out_channels=(32,), latent_channels=4).save_pretrained('{}')"


@dataclass(frozen=True)
class Command:
    """A command that writes `target`, in two variants, so that an older result is told from a newer one.

    arguments: as typed; {place} is the folder that the target lies in. identify(path): what tells the variants apart;
    raises when the result is not whole. share: of the kills; the slow have few. place: what the folder starts as.
    """

    name: str
    arguments: str
    older: str
    newer: str
    target: str
    identify: Callable[[Path], object]
    share: int = 3
    place: Path | None = None


def bundle_identity(folder: Path) -> object:
    """As `verify`: every hash, every golden trajectory."""
    with Session(open_bundle(folder)) as session:
        manifest = session.bundle.manifest
        assert manifest.golden, "no golden trajectories"
        try:
            passed = [replay(session, golden).passed for golden in manifest.golden]
        except EngineError as error:
            passed = ["bfloat16" in str(error)]  # which no CPU runs: the hashes alone
        assert all(passed), "a golden trajectory is off"
    graphs = [manifest.files[graph.file].sha256 for graph in manifest.graphs.values()]
    return manifest.model.prediction, *sorted(graphs)


def plans_identity(folder: Path) -> object:
    record = json.loads((folder / "build.json").read_text())
    for plan in record["plans"].values():
        assert (folder / plan["file"]).stat().st_size == plan["plan"]["bytes"], plan["file"]
    json.loads((folder / "layers.json").read_text())
    return record["max_batch"]


def report_identity(folder: Path) -> object:
    count = json.loads((folder / "quality.json").read_text())["settings"]["count"]
    page = (folder / "report.html").read_text()
    assert f"{count} images from" in page and page.rstrip().endswith("</html>"), "the page is half, or another run's"
    return count


def signer_identity(path: Path, keys: Sequence[Path]) -> object:
    """Also that it signs the bundle that it lies in."""
    open_bundle(path.parent, trusted_keys=keys)
    return json.loads(path.read_text())["public_key"]


def picture_identity(path: Path) -> object:
    with open_picture(path) as picture:
        picture.load()
    return str(read_metadata(path)["seeds"])


def commands(folder: Path, cli: Sequence[str], only: str) -> tuple[list[Command], list[str]]:
    """(those to kill, sentences on those that cannot run here). Makes what they read in `folder`."""
    vae, scheduler, planned = folder / "vae", folder / "scheduler.json", folder / "planned"
    engine, out = f"--engine {BUNDLE}", "--out {place}/out --force"
    keys = [folder / f"{name}.pub.pem" for name in "ab"]
    scheduler.write_text(json.dumps(SCHEDULER))
    found = [
        Command("export", f"export --ckpt {CHECKPOINT} --heads 2 {out}", "--prediction x0", "--prediction epsilon",
                "out", bundle_identity, 1),
        Command("add-decoder", f"add-decoder --engine {LATENT} --vae {vae} {out}", "--vae-precision fp32",
                "--vae-precision fp16", "out", bundle_identity, 1),
        Command("convert", f"convert {engine} {out}", "--precision bf16", "--precision fp16", "out",
                bundle_identity, 2),
        Command("quantize", f"quantize {engine} --samples 2 --form tensorrt --count 1 {out}", "--keep-layer fc1",
                "--keep-layer fc2", "out", bundle_identity),
        Command("build", "build --engine {place}/bundle --target tensorrt-rtx --force", "--max-batch 1",
                "--max-batch 2", "bundle/engines/tensorrt-rtx", plans_identity, 3, planned),
        Command("compare", f"compare {engine} --against {BUNDLE} --speed-rounds 1 --out {{place}}/out", "--count 1",
                "--count 2", "out", report_identity),
        Command("run", f"run {engine} --steps 20 -o {{place}}/out.png --save-latents {{place}}/latents.npz",
                "--seed 1", "--seed 2", "out.png", picture_identity),
        Command("schedule", f"schedule --from {scheduler} -o {{place}}/out.json", "--steps 10", "--steps 12",
                "out.json", lambda path: read_program(path).steps, 2),
        Command("sign", "sign --engine {place}/bundle", f"--key {folder / 'a.pem'}", f"--key {folder / 'b.pem'}",
                "bundle/manifest.json.sig", lambda path: signer_identity(path, keys), 1, planned),
    ]  # fmt: skip
    found = [command for command in found if only in ("", command.name)]
    skipped = []
    if any(command.name == "add-decoder" for command in found):
        subprocess.run([cli[0], "-c", VAE.format(vae)], check=True, capture_output=True)
    shutil.copytree(BUNDLE, planned / "bundle")
    if any(command.name == "sign" for command in found):
        try:
            for name in "ab":
                new_key_pair(folder / f"{name}.pem")
        except DitedgeError as error:
            skipped.append(f"sign ({error})")
            found = [command for command in found if command.name != "sign"]
    if any(command.name == "build" for command in found):
        shutil.copytree(BUNDLE, folder / "tried")
        build = [*cli, *f"build --target tensorrt-rtx --engine {folder / 'tried'}".split()]
        tried = subprocess.run(build, capture_output=True, text=True)
        if tried.returncode != 0:
            skipped.append(f"build ({tried.stderr.strip().splitlines()[-1]})")
            found = [command for command in found if command.name != "build"]
    return found, skipped
