"""Reading a LoRA: diffusers' layouts, PEFT's adapters, kohya-ss' files; no code in it is run.

How much of a product is added is alpha / r. Alpha is a tensor beside the layer (`.alpha`), or stands in
adapter_config.json, or in the file's own metadata as diffusers writes it; other files without one mean alpha = r.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from ...runtime.errors import CheckpointError, RequestError
from ...runtime.files import sha256_of_file
from ...runtime.json_files import MAX_CONFIG_BYTES, parse_json, read_json
from .checkpoint import Checkpoint, load_tensors
from .config_values import check_none
from .merging import Layer, Lora, merging, sha256_with
from .prompt_checkpoint import PromptCheckpoint
from .tensor_tree import listed

MAX_WEIGHT, MAX_ALPHA = 100, 1e6
STEMS = ("adapter_model", "pytorch_lora_weights")  # PEFT's and diffusers'
NAMES = tuple(f"{stem}{suffix}" for suffix in (".safetensors", ".bin") for stem in STEMS)
# Behind the name of a module: PEFT's, diffusers' and kohya-ss' words for the halves; diffusers' oldest say to_q_lora.
HALVES = {
    "lora_A": "down", "lora_B": "up", "lora_down": "down", "lora_up": "up", "lora.down": "down", "lora.up": "up",
}  # fmt: skip
HALF = re.compile(rf"(?P<module>.+)\.(?P<half>{'|'.join(map(re.escape, HALVES))})(?:\.default)?\.weight")
OLDEST = re.compile(r"(?P<block>.+)\.processor\.to_(?P<what>q|k|v|out)_lora\.(?P<half>down|up)\.weight")
KOHYA = re.compile(r"lora_(?:unet|transformer)_")  # before names whose dots are underscores
CHANGES_THE_MODEL = ("pissa", "olora", "corda", "loftq")  # ways to begin that leave the model's own weights changed
_Checkpoint = TypeVar("_Checkpoint", Checkpoint, PromptCheckpoint)


@dataclass(frozen=True)
class _Rule:
    """What is said of all layers. alpha None: r."""

    alpha: float | None = None
    by_name: tuple[tuple[str, float], ...] = ()  # alpha of modules of that name, or whose name ends with it
    root: bool = False  # divided by the root of r

    def scale(self, module: str, rank: int) -> float:
        own = [value for name, value in self.by_name if f".{module}".endswith(f".{name}")]
        alpha = own[0] if own else self.alpha
        return (float(rank) if alpha is None else alpha) / (math.sqrt(rank) if self.root else rank)


def read_lora(asked: str) -> Lora:
    """asked: FILE or FILE:WEIGHT; a folder means the file of weights in it. Raises CheckpointError, RequestError."""
    path, weight = _path_and_weight(asked)
    file = _file(path)
    config = file.with_name("adapter_config.json") if file.name.startswith("adapter_model.") else None
    tensors = load_tensors(file)
    rule = _adapter_rule(config) if config is not None else _told_rule(file)
    try:
        layers = _layers(tensors, rule)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None
    parts = [file, *([config] if config is not None else [])]
    return Lora(path, weight, hashlib.sha256("".join(map(sha256_of_file, parts)).encode()).hexdigest(), layers)


def read_with(loras: Sequence[Lora], read: Callable[[], _Checkpoint]) -> _Checkpoint:
    """The checkpoint that `read()` reads with the LoRAs in its weights, its hash and its notes. Raises as that does."""
    with merging(loras):
        checkpoint: _Checkpoint = read()
    if not loras:
        return checkpoint
    notes = (*checkpoint.notes, *(lora.sentence for lora in loras))
    return replace(checkpoint, sha256=sha256_with(checkpoint.sha256, loras), notes=notes)


def _path_and_weight(asked: str) -> tuple[Path, float]:
    path, colon, number = asked.rpartition(":")
    try:
        weight = float(number) if colon else math.nan
    except ValueError:  # a colon of the path, as behind a drive
        return Path(asked), 1.0
    if not colon:
        return Path(asked), 1.0
    if not path or not abs(weight) <= MAX_WEIGHT:  # NaN is not, either
        raise RequestError(f"--lora {asked}: the weight is not a number within +-{MAX_WEIGHT}")
    return Path(path), weight


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = [path / name for name in NAMES if (path / name).is_file()]
    if not found:
        raise CheckpointError(f"{path}: no LoRA, expected one of {', '.join(NAMES)}")
    return found[0]


def _layers(tensors: Mapping[str, Tensor], rule: _Rule) -> dict[str, Layer]:
    """By the module's name in the file. Raises CheckpointError naming the key."""
    halves: dict[str, dict[str, tuple[str, Tensor]]] = {}
    alphas: dict[str, float] = {}
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"key '{key}' has numbers that are not finite")
        if key.endswith(".alpha") and tensor.numel() == 1:
            alphas[KOHYA.sub("", key.removesuffix(".alpha"), count=1)] = float(tensor)
            continue
        module, half = _half(key)
        halves.setdefault(module, {})[half] = (key, tensor)
    if not halves:
        raise CheckpointError("not a LoRA: it has no lora_A, lora_B, lora_down or lora_up")
    alone = [module for module in alphas if module not in halves]
    if alone:
        raise CheckpointError(f"an alpha without a layer: {listed(alone)}")
    return {module: _layer(module, pair, alphas, rule) for module, pair in halves.items()}


def _half(key: str) -> tuple[str, str]:
    """ "blocks.0.attn.proj.lora_A.weight" -> ("blocks.0.attn.proj", "down")"""
    if old := OLDEST.fullmatch(key):
        return f"{old['block']}.to_{old['what']}{'.0' if old['what'] == 'out' else ''}", old["half"]
    found = HALF.fullmatch(key)
    if found is None:
        raise CheckpointError(f"key '{key[:120]}' is no part of a LoRA that can be merged")
    return KOHYA.sub("", found["module"], count=1), HALVES[found["half"]]


def _layer(module: str, pair: Mapping[str, tuple[str, Tensor]], alphas: Mapping[str, float], rule: _Rule) -> Layer:
    if len(pair) < 2:
        raise CheckpointError(f"key '{next(iter(pair.values()))[0]}' is there without its other half")
    (key, down), (_, up) = pair["down"], pair["up"]
    if down.ndim not in (2, 4) or up.ndim not in (2, 4) or not len(down):
        raise CheckpointError(f"key '{key}' has shape {list(down.shape)}, and its other half {list(up.shape)}")
    own = alphas.get(module)
    return Layer(key, down, up, own / len(down) if own is not None else rule.scale(module, len(down)))


def _adapter_rule(path: Path) -> _Rule:
    """Of PEFT's adapter_config.json, without which nobody knows alpha."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: it says how much of the LoRA is added (lora_alpha)")
    return _rule(read_json(path, MAX_CONFIG_BYTES, CheckpointError), path)


def _told_rule(file: Path) -> _Rule:
    """Of the metadata of diffusers' .safetensors; most have none."""
    if file.suffix != ".safetensors":
        return _Rule()
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:  # type: ignore[no-untyped-call]
        told = (opened.metadata() or {}).get("lora_adapter_metadata")
    if told is None:
        return _Rule()
    values, start = parse_json(told.encode(), file, CheckpointError), "transformer."
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: its lora_adapter_metadata is not a JSON object")
    return _rule({key.removeprefix(start): value for key, value in values.items() if key.startswith(start)}, file)


def _rule(values: Any, place: Path) -> _Rule:
    if not isinstance(values, dict):
        raise CheckpointError(f"{place}: not a JSON object")
    begin = values.get("init_lora_weights", True)
    refused = {
        f"'peft_type' is {values.get('peft_type')!r:.40}, not LORA": values.get("peft_type", "LORA") != "LORA",
        "'use_dora' is true: DoRA is not read": values.get("use_dora"),
        "'lora_bias' is true: biases are not read": values.get("lora_bias"),
        "'bias' is not none: biases are not read": values.get("bias", "none") != "none",
        "'fan_in_fan_out' is true: no layer here is so": values.get("fan_in_fan_out"),
        f"'init_lora_weights' is {begin!r:.40}, which changes the model's own weights": isinstance(begin, str)
        and begin.lower().startswith(CHANGES_THE_MODEL),
    }
    check_none({f"{place}: {problem}": found for problem, found in refused.items()})
    patterns = values.get("alpha_pattern") or {}
    by_name = patterns if isinstance(patterns, dict) else {"?": 1}
    names = [str(name).removeprefix("^").removesuffix("$").replace("\\.", ".") for name in by_name]
    if not all(re.fullmatch(r"[\w.]+", name) for name in names):
        raise CheckpointError(f"{place}: 'alpha_pattern' has something else than names of modules")
    alphas = [_number(value, "alpha_pattern", place) for value in by_name.values()]
    alpha = values.get("lora_alpha")
    return _Rule(
        None if alpha is None else _number(alpha, "lora_alpha", place),
        tuple(zip(names, alphas, strict=True)),
        bool(values.get("use_rslora")),
    )


def _number(value: Any, key: str, place: Path) -> float:
    if type(value) not in (int, float) or not 0 < value <= MAX_ALPHA:
        raise CheckpointError(f"{place}: '{key}' is {str(value)[:40]!r}, not a number above 0 and up to {MAX_ALPHA:g}")
    return float(value)
