"""Everything of ours that reads a file of somebody else's: a hostile document for each, and the reading of it.

A target's folder holds what is around the document (a bundle, a checkpoint's folder). `make` gives the files of one case,
`read` does with them what a command would do before it computes anything.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ditedge.calibration.quality.real_pictures import reference_features
from ditedge.calibration.quality.record import read_quality
from ditedge.class_names import read_class_names
from ditedge.export.sources.betas import read_betas
from ditedge.runtime import Session, open_bundle
from ditedge.runtime.bundle.signatures import describe_signature, read_public_key
from ditedge.runtime.describe import describe_bundle
from ditedge.runtime.errors import RequestError
from ditedge.runtime.loop.generate import read_noise
from ditedge.runtime.loop.verify import replay
from ditedge.runtime.pictures.images import METADATA_KEY, picture_bytes
from ditedge.runtime.pictures.recipe import recipe_of_picture
from ditedge.runtime.plans.layers import read_layers
from ditedge.runtime.plans.record import read_build_record
from ditedge.runtime.samplers.process import check_process
from ditedge.runtime.samplers.program import with_x0_slot
from ditedge.runtime.samplers.settings import SamplerSettings
from ditedge.runtime.sets.finished import finished_set
from ditedge.runtime.sets.request import SampleSetRequest
from ditedge.runtime.sets.sample import sample_set
from ditedge.runtime.signing import new_key_pair, read_private_key, signature_of
from tests.conftest import ROOT
from tests.fuzz.checkpoints import checkpoint_targets
from tests.fuzz.mutations import mutated_bytes, mutated_json, mutated_safetensors, mutated_zip
from tests.fuzz.prompts import prompt_targets
from tests.fuzz.target import Files, Target
from tests.fuzz.verdicts import manifests, programs, records

TESTS = ROOT / "tests"


def targets(folder: Path) -> dict[str, Target]:
    """By name; what is around their documents is made below `folder`, which takes some seconds."""
    from ditedge.export import ExportOptions, bundle_from_checkpoint

    bundle = folder / "bundle"
    if not bundle.exists():
        bundle_from_checkpoint(TESTS / "golden" / "gray1_cfg" / "model.pt", bundle, ExportOptions(heads=2))
    found = [
        *_bundles(folder, bundle),
        *_pictures(folder, bundle),
        *_sets(folder, bundle),
        *checkpoint_targets(folder),
        *_texts(),
        *_signatures(folder),
        *prompt_targets(folder),
    ]
    return {target.name: target for target in found}


def _bundles(folder: Path, bundle: Path) -> list[Target]:
    """Copies of a bundle of which one file is another: the manifest says so, so that it is not refused for its hash."""
    true = json.loads((bundle / "manifest.json").read_text())
    default, golden = true["programs"][true["defaults"]["program"]], true["golden"][0]["file"]
    raw = {name: (bundle / name).read_bytes() for name in (golden, "decoder.onnx")}
    for name in ("manifest", "program", "golden", "graph"):
        if not (folder / name).exists():
            shutil.copytree(bundle, folder / name)

    def with_file(name: str, data: bytes) -> Files:
        files = true["files"] | {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}}
        return {"manifest.json": json.dumps(true | {"files": files}).encode(), name: data}

    def open_all(path: Path) -> None:
        opened = open_bundle(path)
        describe_bundle(opened)
        _ = opened.schedule
        for settings in ({}, {"steps": 7}, {"eta": 0.5, "steps": 3}):
            program = opened.program(**settings)
            check_process(program.name, program.process, opened.process, "")
            with_x0_slot(program).draws_noise(program.steps - 1)
        with Session(opened) as session:
            session.load("decoder")

    def replay_all(path: Path) -> None:
        with Session(open_bundle(path)) as session:
            replay(session, session.bundle.manifest.golden[0])

    return [
        Target("manifest", lambda random: {"manifest.json": mutated_json(random, random.choice(manifests(bundle)))}, open_all),
        Target("program", lambda random: with_file(default, mutated_json(random, random.choice(programs(bundle)))), open_all),
        Target("graph", lambda random: with_file("decoder.onnx", mutated_bytes(random, raw["decoder.onnx"])), open_all),
        Target("golden", lambda random: with_file(golden, mutated_safetensors(random, raw[golden])), replay_all),
        Target("noise", lambda random: {"x.safetensors": mutated_safetensors(random, raw[golden])},
               lambda path: read_noise(path / "x.safetensors")),
    ]  # fmt: skip


def _pictures(folder: Path, bundle: Path) -> list[Target]:
    pixels = np.arange(8 * 8, dtype=np.uint8).reshape(8, 8, 1)
    opened = open_bundle(bundle)
    told = {"bundle_sha256": opened.sha256, "labels": [1], "seeds": [7], "away_from": None, "guidance": 4.0}
    told |= {
        "made": {"sampler": "ddim", "steps": 10, "eta": 0.5, "guidance_interval": [0.1, 2.0]},
        "program_file": None,
    }

    def picture(random: Random) -> Files:
        kind = random.choice(("PNG", "PNG", "PNG", "JPEG", "WEBP"))
        if kind != "PNG" or random.random() < 0.2:
            return {"x.png": mutated_bytes(random, picture_bytes(kind, pixels, told))}
        info, stream = PngInfo(), io.BytesIO()
        text = mutated_json(random, told).decode(errors="replace").replace("\0", " ")
        add = random.choice((info.add_text, info.add_itxt))
        add(METADATA_KEY, text, zip=random.random() < 0.5)
        Image.fromarray(pixels[..., 0]).save(stream, "PNG", pnginfo=info)
        return {"x.png": stream.getvalue()}

    arrays = np.zeros((3, 8, 8, 1), np.uint8)
    npy, npz = io.BytesIO(), io.BytesIO()
    np.save(npy, arrays)
    np.savez_compressed(npz, images=arrays)

    def reference(random: Random) -> Files:
        if random.random() < 0.5:
            return {"x.npz": mutated_zip(random, npz.getvalue())}
        head = npy.getvalue()[:128]
        return {"x.npz": mutated_bytes(random, head) + npy.getvalue()[128:]}

    def read_reference(path: Path) -> None:
        reference_features(path / "x.npz", lambda images: (images, images), (8, 8, 1))  # type: ignore[arg-type, return-value]

    def read_folder(path: Path) -> None:
        (path / "y.png").write_bytes(picture_bytes("PNG", pixels, {}))
        reference_features(path, lambda images: (images, images), (8, 8, 1))  # type: ignore[arg-type, return-value]

    return [
        Target("picture", picture, lambda path: recipe_of_picture(path / "x.png", opened, None)),
        Target("reference", reference, read_reference),
        Target("reference pictures", picture, read_folder),
    ]


def _sets(folder: Path, bundle: Path) -> list[Target]:
    sets = folder / "samples"
    if not sets.exists():
        sample_set(SampleSetRequest(bundle, count=3, out=sets, format="npz", settings=SamplerSettings(steps=1)))
    told_set, stored = json.loads((sets / "set.json").read_text()), (sets / "samples.npz").read_bytes()

    def a_set(random: Random) -> Files:
        if random.random() < 0.5:
            return {"set.json": mutated_json(random, told_set), "samples.npz": stored}
        return {"set.json": json.dumps(told_set).encode(), "samples.npz": mutated_zip(random, stored)}

    return [Target("set", a_set, lambda path: finished_set(path).read(range(3)))]


def _texts() -> list[Target]:
    record, quality = TESTS / "cpp" / "build.json", TESTS / "fuzz" / "quality.json"
    assert record.is_file()
    layer = {
        "name": "a",
        "kind": "Gemm",
        "tactic": "",
        "inputs": ["float32"],
        "constants": [],
        "outputs": [],
        "onnx": ["b"],
    }
    layers = {"step": {"layers": [layer] * 2, "activation_bytes": 9, "weight_bytes": 0}}
    names: list[Any] = [["cat", "dog"], {"0": "cat", "1": "dog"}, {"0": ["n01", "cat"]}, {"id2label": {"0": "cat"}}]
    report = json.loads(quality.read_text())

    def classes(random: Random) -> Files:
        data = mutated_json(random, random.choice(names))
        return {"x.json": data, "x.txt": mutated_bytes(random, b"cat\ndog\n\xc3\xa9\n")}

    def read_classes(path: Path) -> None:
        read_class_names(path / "x.txt")
        read_class_names(path / "x.json")

    return [
        Target("record", lambda random: {"build.json": mutated_json(random, random.choice(records()))},
               lambda path: read_build_record(path / "build.json")),
        Target("layers", lambda random: {"layers.json": mutated_json(random, layers)},
               lambda path: read_layers(path / "layers.json", "step")),
        Target("quality", lambda random: {"quality.json": mutated_json(random, report)},
               lambda path: read_quality(path / "quality.json")),
        Target("betas", lambda random: {"betas.json": mutated_json(random, [0.1] * 60)},
               lambda path: read_betas(str(path / "betas.json"))),
        Target("classes", classes, read_classes),
    ]  # fmt: skip


def _signatures(folder: Path) -> list[Target]:
    key = folder / "key.pem"
    public = key.with_suffix(".pub.pem") if key.exists() else new_key_pair(key)
    signature = signature_of(read_private_key(key), b"what was signed").model_dump()

    def read_signed(path: Path) -> None:
        describe_signature(path / "signed", b"what was signed")
        with suppress(RequestError):
            read_public_key(path / "public.pem")
        read_private_key(path / "private.pem")

    def signed(random: Random) -> Files:
        files = {
            "signed.sig": mutated_json(random, signature),
            "public.pem": mutated_bytes(random, public.read_bytes()),
        }
        return files | {"private.pem": mutated_bytes(random, key.read_bytes())}

    return [Target("signature", signed, read_signed)]
