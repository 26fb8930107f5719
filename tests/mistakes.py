"""What a user can get wrong: functions that make the files of a mistake in a folder and return the command."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.conftest import GOLDEN
from tests.test_cli import GRAY, edit_manifest


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
