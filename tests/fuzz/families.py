"""Folders of families that take prompts, hostile ones: JSON of every part, and weights (see readers.py)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import diffusers

from ditedge.export.sources.families import family_of
from tests.export.flux2_pipelines import flux2_transformer
from tests.export.hunyuan_dit_pipelines import hunyuan_dit_transformer
from tests.export.joint_pipelines import (
    aura_flow_transformer,
    flux_transformer,
    sd3_transformer,
    z_image_transformer,
)
from tests.export.lumina2_pipelines import lumina2_transformer
from tests.fuzz.mutations import mutated_json, mutated_safetensors
from tests.fuzz.target import Files, Target

NETWORKS: dict[str, Callable[[], Any]] = {
    "sd3": lambda: sd3_transformer(True, pooled_projection_dim=2048, joint_attention_dim=4096),
    "flux": lambda: flux_transformer(True),
    "flux2": flux2_transformer,
    "hunyuan_dit": hunyuan_dit_transformer,
    "aura_flow": aura_flow_transformer,
    "z_image": z_image_transformer,
    "lumina2": lumina2_transformer,
}
PIPELINES = {
    "z_image": "ZImagePipeline",
    "flux2": "Flux2KleinPipeline",
    "hunyuan_dit": "HunyuanDiTPipeline",
}  # of families that look at it
FLOW = "FlowMatchEulerDiscreteScheduler"
CLIP = {"model_type": "clip_text_model", "max_position_embeddings": 77}


def family_targets(folder: Path) -> list[Target]:
    return [Target(f"family {name}", _files(folder / name, make), _read) for name, make in NETWORKS.items()]


def _files(folder: Path, make: Callable[[], Any]) -> Callable[[Random], Files]:
    if not folder.exists():
        make().save_pretrained(folder)
    config, weights = (folder / name for name in ("config.json", "diffusion_pytorch_model.safetensors"))
    scheduler = dict(getattr(diffusers, FLOW)(use_dynamic_shifting=True).config) | {"_class_name": FLOW}
    parts: dict[str, Any] = {
        "transformer/config.json": json.loads(config.read_text()),
        "scheduler/scheduler_config.json": scheduler,
        "text_encoder/config.json": CLIP | {"hidden_size": 768, "projection_dim": 768},
        "text_encoder_2/config.json": CLIP | {"hidden_size": 1280, "projection_dim": 1280},
        "vae/config.json": {"sample_size": 64, "block_out_channels": [4, 4, 8, 8]},
        "model_index.json": {"_class_name": PIPELINES.get(folder.name, "StableDiffusion3Pipeline")},
    }
    tensors = weights.read_bytes()

    def files(random: Random) -> Files:
        name = random.choice([*parts, "transformer/diffusion_pytorch_model.safetensors"])
        made = {part: json.dumps(values).encode() for part, values in parts.items()}
        made["transformer/diffusion_pytorch_model.safetensors"] = tensors
        hostile = mutated_json(random, parts[name]) if name in parts else mutated_safetensors(random, tensors)
        return made | {name: hostile}

    return files


def _read(folder: Path) -> None:
    read = family_of(folder)
    if read is not None:
        read(folder).model()
