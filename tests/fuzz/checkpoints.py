"""Checkpoints, folders of diffusers and what a run wrote beside them: hostile ones (see readers.py)."""

from __future__ import annotations

import argparse
import copy
import io
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import diffusers
import torch
import yaml
from safetensors.torch import save

from ditedge.export import DiT, DiTConfig, read_source
from ditedge.export.schedulers.probe import read_scheduler_program
from ditedge.export.sources.describe import describe_checkpoint
from ditedge.export.sources.lora import read_lora, read_with
from ditedge.export.sources.settings import read_settings
from ditedge.export.sources.vae_checkpoint import read_vae
from tests.export.networks.vaes import make_vae
from tests.export.sources.diffusers_models import diffusers_model
from tests.fuzz.families import family_targets
from tests.fuzz.mutations import hostile, mutate, mutated_bytes, mutated_json, mutated_safetensors, mutated_zip
from tests.fuzz.target import Files, Target

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


ARGS = {"model": "DiT", "num_classes": 3, "num_heads": 2, "image_size": 4, "class_dropout_prob": 0.1, "epochs": 5}


def checkpoint_targets(folder: Path) -> list[Target]:
    return [*_files(), *_folders(folder), *_settings(), *family_targets(folder)]


def _files() -> list[Target]:
    """Pickles and safetensors of a tiny network."""
    torch.manual_seed(0)
    config = DiTConfig(input_size=4, patch_size=2, in_channels=1, hidden_size=8, depth=1, num_heads=2, num_classes=3)
    state = {key: value.detach().clone() for key, value in DiT(config).state_dict().items()}
    whole = {"model": state, "ema": state, "opt": {"lr": 0.1}, "args": ARGS, "epoch": 3}
    saved = save(state)

    def pickle(random: Random) -> Files:
        root: list[Any] = [{key: copy.copy(value) for key, value in random.choice([state, whole]).items()}]
        for _ in range(random.choice((0, 1, 1, 2))):
            _odd_tensor(random, root[0])
        if random.random() < 0.5:
            with suppress(RuntimeError):  # odd tensors that cannot be copied
                mutate(random, root)
        if isinstance(root[0], dict) and isinstance(root[0].get("args"), dict) and random.random() < 0.5:
            root[0]["args"] = argparse.Namespace(**{str(key): value for key, value in root[0]["args"].items()})
        stream = io.BytesIO()
        torch.save(root[0], stream, _use_new_zipfile_serialization=random.random() < 0.8)
        raw = stream.getvalue()
        kind = random.randrange(4)
        return {"x.pt": mutated_zip(random, raw) if kind == 0 else mutated_bytes(random, raw) if kind == 1 else raw}

    return [
        Target("pickle", pickle, lambda path: _read(path / "x.pt")),
        Target("safetensors", lambda random: {"x.safetensors": mutated_safetensors(random, saved)},
               lambda path: _read(path / "x.safetensors", heads=2)),
        Target("lora", lambda random: _adapter(random) | {"x.safetensors": saved}, _read_with_lora),
    ]  # fmt: skip


ADAPTER = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "alpha_pattern": {"attn.qkv": 3},
    "use_rslora": True,
    "bias": "none",
}


def _adapter(random: Random) -> Files:
    """PEFT's two files; sometimes the weights alone, as diffusers leaves them."""
    halves = {"lora_A": torch.zeros(2, 8), "lora_B": torch.zeros(24, 2)}
    tensors = {f"base_model.model.blocks.0.attn.qkv.{half}.weight": value for half, value in halves.items()}
    told = {"lora_adapter_metadata": mutated_json(random, {"transformer.lora_alpha": 4}).decode(errors="replace")}
    raw = save(tensors, told if random.random() < 0.5 else None)
    raw = mutated_safetensors(random, raw) if random.random() < 0.5 else raw
    if random.random() < 0.3:
        return {"pytorch_lora_weights.safetensors": raw}
    return {"adapter_model.safetensors": raw, "adapter_config.json": mutated_json(random, ADAPTER)}


def _read_with_lora(path: Path) -> None:
    read_with([read_lora(f"{path}:0.5")], lambda: read_source(path / "x.safetensors", heads=2)).model()


def _read(path: Path, heads: int | None = None) -> None:
    describe_checkpoint(path, heads=heads)
    read_source(path, heads=heads).model()


def _folders(folder: Path) -> list[Target]:
    """A diffusers pipeline, and a VAE."""
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

    return [Target("pipeline", pipeline, _read), Target("vae", vaes, read_vae)]


def _settings() -> list[Target]:
    """A scheduler's configuration, and a training run's settings."""
    schedulers = [dict(getattr(diffusers, name)().config) | {"_class_name": name} for name in SCHEDULERS]

    def scheduler(random: Random) -> Files:
        return {"scheduler_config.json": mutated_json(random, random.choice(schedulers))}

    def settings(random: Random) -> Files:
        if random.random() < 0.4:
            return {random.choice(("args.yaml", "args.json")): mutated_json(random, {"model": ARGS, **ARGS})}
        text = yaml.safe_dump(ARGS | {random.choice([*ARGS]): "HERE"}).replace("HERE", random.choice(YAML))
        return {"config.yaml": text.encode() if random.random() < 0.5 else mutated_bytes(random, text.encode())}

    return [
        Target("scheduler", scheduler, lambda path: read_scheduler_program(path, 4, {})),
        Target("settings", settings, lambda path: read_settings({}, path / "x.pt")),
    ]


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
    with suppress(RuntimeError, IndexError):  # not every odd tensor can become another odd one
        at[name] = random.choice(odd)()
