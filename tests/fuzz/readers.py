"""Everything of ours that reads a file of somebody else's: a hostile document for each, and the reading of it.

A target's folder holds what is around the document (a bundle, a checkpoint's folder). `make` gives the files of one case,
`read` does with them what a command would do before it computes anything.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import diffusers
import numpy as np
import torch
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ditedge.calibration.quality import read_quality
from ditedge.calibration.reference import reference_features
from ditedge.class_names import read_class_names
from ditedge.export import DiT, DiTConfig, read_source
from ditedge.export.betas import read_betas
from ditedge.export.describe import describe_checkpoint
from ditedge.export.probe import read_scheduler_program
from ditedge.export.settings import read_settings
from ditedge.export.vae_checkpoint import read_vae
from ditedge.runtime import Sampler, open_bundle
from ditedge.runtime.build_record import read_build_record
from ditedge.runtime.describe import describe_bundle
from ditedge.runtime.generate import read_noise
from ditedge.runtime.images import METADATA_KEY, picture_bytes
from ditedge.runtime.layers import read_layers
from ditedge.runtime.process import check_process
from ditedge.runtime.programs import with_x0_slot
from ditedge.runtime.recipe import recipe_of_picture
from ditedge.runtime.verify import replay
from tests.export.test_sources import diffusers_model
from tests.export.test_vae import make_vae
from tests.fuzz.mutations import hostile, mutate, mutated_bytes, mutated_json, mutated_safetensors, mutated_zip
from tests.fuzz.verdicts import manifests, programs, records

Files = dict[str, bytes]
TESTS = Path(__file__).parents[1]
SCHEDULERS = (
    *("DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "PNDMScheduler"),
    *("EulerDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"),
)
YAML = [  # in place of a value
    *(
        "!!python/object/apply:os.system [x]",
        "&a [*a]",
        "[&b [1, 1], *b, *b]",
        "{<<: {a: 1}}",
        "!!binary x",
        "!!set {a, b}",
    ),
    *(
        "2001-13-99",
        "!!timestamp 2001-01-01",
        "1_000",
        "0x1f",
        "190:20:30",
        ".inf",
        ".nan",
        "? [a]\n: b",
        "*nobody",
        "|\n  x",
    ),
    *(
        "!!int x",
        "!!float [1]",
        "!!omap [a]",
        "{{a: 1}: 2}",
        "[" * 2000,
        "!!merge x",
        "%TAG",
        '"\\ud800"',
        "0o9",
        "1e999",
    ),
]


@dataclass(frozen=True)
class Target:
    name: str
    make: Callable[[Random], Files]
    read: Callable[[Path], Any]


def targets(folder: Path) -> dict[str, Target]:
    """By name; what is around their documents is made below `folder`, which takes some seconds."""
    from ditedge.export import ExportOptions, bundle_from_checkpoint

    bundle = folder / "bundle"
    if not bundle.exists():
        bundle_from_checkpoint(TESTS / "golden" / "gray1_cfg" / "model.pt", bundle, ExportOptions(heads=2))
    found = [*_bundles(folder, bundle), *_pictures(folder, bundle), *_checkpoints(folder), *_texts()]
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
            check_process(program.name, program.process, opened.manifest, "")
            with_x0_slot(program).draws_noise(program.steps - 1)
        with Sampler(opened) as sampler:
            sampler.load("decoder")

    def replay_all(path: Path) -> None:
        with Sampler(open_bundle(path)) as sampler:
            replay(sampler, sampler.bundle.manifest.golden[0])

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


def _checkpoints(folder: Path) -> list[Target]:
    torch.manual_seed(0)
    config = DiTConfig(input_size=4, patch_size=2, in_channels=1, hidden_size=8, depth=1, num_heads=2, num_classes=3)
    state = {key: value.detach().clone() for key, value in DiT(config).state_dict().items()}
    args = {"model": "DiT", "num_classes": 3, "num_heads": 2, "image_size": 4, "class_dropout_prob": 0.1, "epochs": 5}
    whole = {"model": state, "ema": state, "opt": {"state": {}, "lr": 0.1}, "args": args, "epoch": 3}

    def pickle(random: Random) -> Files:
        root: list[Any] = [{key: copy.copy(value) for key, value in random.choice([state, whole]).items()}]
        for _ in range(random.choice((0, 1, 1, 2))):
            _odd_tensor(random, root[0])
        if random.random() < 0.5:
            mutate(random, root)
        if isinstance(root[0], dict) and isinstance(root[0].get("args"), dict) and random.random() < 0.5:
            root[0]["args"] = argparse.Namespace(**{str(key): value for key, value in root[0]["args"].items()})
        stream = io.BytesIO()
        torch.save(root[0], stream, _use_new_zipfile_serialization=random.random() < 0.8)
        raw = stream.getvalue()
        kind = random.randrange(4)
        return {"x.pt": mutated_zip(random, raw) if kind == 0 else mutated_bytes(random, raw) if kind == 1 else raw}

    from safetensors.torch import save

    saved = save(state)

    def read(path: Path, heads: int | None = None) -> None:
        describe_checkpoint(path, heads=heads)
        read_source(path, heads=heads).model()

    plain, vae, single = folder / "plain", folder / "plain vae", "diffusion_pytorch_model.safetensors"
    if not vae.exists():
        small = {"num_layers": 1, "sample_size": 4, "num_embeds_ada_norm": 3, "attention_head_dim": 8, "in_channels": 1}
        diffusers_model(**small | {"out_channels": None}).save_pretrained(plain / "transformer")
        make_vae(vae)
    configs = {"transformer/config.json": json.loads((plain / "transformer" / "config.json").read_text())}
    configs["scheduler/scheduler_config.json"] = dict(diffusers.DDIMScheduler().config) | {
        "_class_name": "DDIMScheduler"
    }
    configs["model_index.json"] = {"_class_name": "DiTPipeline", "id2label": {str(i): f"class {i}" for i in range(3)}}
    tensors = (plain / "transformer" / single).read_bytes()
    vae_config, vae_tensors = json.loads((vae / "config.json").read_text()), (vae / single).read_bytes()

    def pipeline(random: Random) -> Files:
        files = {name: json.dumps(config).encode() for name, config in configs.items()}
        files[f"transformer/{single}"] = tensors
        name = random.choice([*files])
        is_json = name in configs
        return files | {name: mutated_json(random, configs[name]) if is_json else mutated_safetensors(random, tensors)}

    def vaes(random: Random) -> Files:
        if random.random() < 0.6:
            return {"config.json": mutated_json(random, vae_config), single: vae_tensors}
        return {"config.json": json.dumps(vae_config).encode(), single: mutated_safetensors(random, vae_tensors)}

    schedulers = [dict(getattr(diffusers, name)().config) | {"_class_name": name} for name in SCHEDULERS]

    def scheduler(random: Random) -> Files:
        return {"scheduler_config.json": mutated_json(random, random.choice(schedulers))}

    def settings(random: Random) -> Files:
        if random.random() < 0.4:
            return {random.choice(("args.yaml", "args.json")): mutated_json(random, {"model": args, **args})}
        text = yaml.safe_dump(args | {random.choice([*args]): "HERE"}).replace("HERE", random.choice(YAML))
        return {"config.yaml": text.encode() if random.random() < 0.5 else mutated_bytes(random, text.encode())}

    return [
        Target("pickle", pickle, lambda path: read(path / "x.pt")),
        Target("safetensors", lambda random: {"x.safetensors": mutated_safetensors(random, saved)},
               lambda path: read(path / "x.safetensors", heads=2)),
        Target("pipeline", pipeline, read),
        Target("vae", vaes, read_vae),
        Target("scheduler", scheduler, lambda path: read_scheduler_program(path, 4, {})),
        Target("settings", settings, lambda path: read_settings({}, path / "x.pt")),
    ]  # fmt: skip


def _odd_tensor(random: Random, state: Any) -> None:
    """Puts a tensor that is not what it seems into a state dict, or into one of those in a checkpoint."""
    states = [value for value in (state, *state.values()) if isinstance(value, dict) and value]
    at = random.choice(states)
    key = random.choice([*at])
    one, old = torch.ones(1), at[key] if isinstance(at[key], torch.Tensor) else torch.ones(2, 2)
    odd: list[Callable[[], Any]] = [
        *(
            lambda: one.expand(1 << 31),
            lambda: one.as_strided((1 << 20, 1 << 20), (0, 0)),
            lambda: one.expand(old.shape),
        ),
        *(
            lambda: old.to_sparse(),
            lambda: old.to("meta"),
            lambda: old.to(torch.float8_e4m3fn),
            lambda: old.to(torch.complex64),
        ),
        *(
            lambda: old.half(),
            lambda: old.bool(),
            lambda: old.long(),
            lambda: old * float("nan"),
            lambda: old[:0],
            lambda: old.sum(),
        ),
        *(
            lambda: old.T.contiguous() if old.ndim == 2 else old[None],
            lambda: torch.nn.Parameter(old),
            lambda: [old],
            lambda: hostile(random),
        ),
        *(
            lambda: torch.quantize_per_tensor(old.float(), 0.1, 0, torch.qint8),
            lambda: torch.nested.nested_tensor([one, one]),
        ),
        *(
            lambda: {name: old for name in ("ema", "x.blocks.0.attn.qkv.weight")},
            lambda: torch.cat([old, old]) if old.ndim else one,
        ),
    ]
    name = random.choice([key, f"blocks.{random.choice((1, 7, 3_000_000))}.mlp.fc1.bias", "ema.x", 7])
    with suppress(RuntimeError):  # not every odd tensor can become another odd one
        at[name] = random.choice(odd)()


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
