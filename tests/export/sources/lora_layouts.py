"""LoRAs as every program writes them, and what PEFT's layers compute with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

RANK, ALPHA = 3, 6.0
Halves = dict[str, tuple[Tensor, Tensor]]  # module -> down, up


def halves(model: nn.Module, names: tuple[str, ...], seed: int = 3) -> Halves:
    """Random ones; of a convolution the first half is a convolution, too."""
    random, found = torch.Generator().manual_seed(seed), {}
    for name in names:
        out, *inner = model.get_submodule(name).weight.shape
        down, up = torch.randn(RANK, *inner, generator=random), torch.randn(out, RANK, generator=random)
        found[name] = (0.2 * down, 0.2 * up.reshape(out, RANK, *[1] * (len(inner) - 1)))
    return found


def with_lora(model: nn.Module, lora: Halves, scale: float) -> nn.Module:
    """PEFT's layer: y = W x + b + scale * up(down(x)), beside the weights and not in them."""
    for name, (down, up) in lora.items():
        module = model.get_submodule(name)
        if isinstance(module, nn.Conv2d):
            add = lambda x, m=module, d=down, u=up: nn.functional.conv2d(  # noqa: E731
                nn.functional.conv2d(x, d, stride=m.stride, padding=m.padding), u
            )
        else:
            add = lambda x, d=down, u=up: x @ d.T @ u.T  # noqa: E731
        module.register_forward_hook(lambda m, given, y, add=add: y + scale * add(given[0]))
    return model


def plain_keys(
    lora: Halves, words: tuple[str, str], prefix: str = "transformer.", alpha: str = ""
) -> dict[str, Tensor]:
    keys = {
        f"{prefix}{name}.{word}.weight": t for name, pair in lora.items() for word, t in zip(words, pair, strict=True)
    }
    alphas = {f"{prefix}{name}.alpha": torch.tensor(ALPHA) for name in lora} if alpha else {}
    return keys | alphas


def diffusers_layout(folder: Path, lora: Halves) -> float:
    save_file(plain_keys(lora, ("lora_A", "lora_B")), folder / "pytorch_lora_weights.safetensors")
    return 1.0


def diffusers_with_metadata(folder: Path, lora: Halves) -> float:
    told = {"transformer.lora_alpha": ALPHA, "transformer.r": RANK, "text_encoder.lora_alpha": 1}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(told)}
    save_file(plain_keys(lora, ("lora_A", "lora_B")), folder / "pytorch_lora_weights.safetensors", metadata)
    return ALPHA / RANK


def old_diffusers(folder: Path, lora: Halves) -> float:
    save_file(plain_keys(lora, ("lora.down", "lora.up"), "unet."), folder / "pytorch_lora_weights.safetensors")
    return 1.0


def oldest_diffusers(folder: Path, lora: Halves) -> float:
    tensors = {}
    for name, pair in lora.items():
        block, _, what = name.removesuffix(".0").rpartition(".")
        where = f"{block}.processor.{what}_lora" if what.startswith("to_") else f"{name}.lora"
        tensors |= {f"{where}.{half}.weight": t for half, t in zip(("down", "up"), pair, strict=True)}
    torch.save(tensors, folder / "pytorch_lora_weights.bin")
    return 1.0


def kohya(folder: Path, lora: Halves) -> float:
    joined = {name.replace(".", "_"): pair for name, pair in lora.items()}
    tensors = plain_keys(joined, ("lora_down", "lora_up"), "lora_unet_", alpha="yes")
    save_file(tensors, folder / "adapter_model_of_kohya.safetensors")
    return ALPHA / RANK


def adapter(folder: Path, lora: Halves, **told: Any) -> float:
    tensors = plain_keys(lora, ("lora_A", "lora_B"), "base_model.model.")
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", "target_modules": ["to_q"]} | told
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return ALPHA / (RANK**0.5 if told.get("use_rslora") else RANK)


def adapter_by_root(folder: Path, lora: Halves) -> float:
    return adapter(folder, lora, use_rslora=True)


LAYOUTS: tuple[Callable[[Path, Halves], float], ...] = (
    diffusers_layout, diffusers_with_metadata, old_diffusers, oldest_diffusers, kohya, adapter, adapter_by_root,
)  # fmt: skip


def written(folder: Path, layout: Callable[..., float], lora: Halves) -> tuple[Path, float]:
    """The file of weights, and how much of the product it means."""
    scale = layout(folder, lora)
    (file,) = (path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
    return file, scale
