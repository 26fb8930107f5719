"""Reading a diffusers DiT: a pipeline folder (model_index.json, transformer/, ...) or a transformer folder alone.

diffusers' DiT is not facebookresearch/DiT's function: its timestep frequencies divide by 127 and the norm before each
MLP has eps 1e-5. Both stay fields of the model. JSON and safetensors are read here, without importing diffusers; a
`.bin` goes the way of every pickle, `weights_only`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..runtime.errors import CheckpointError
from ..runtime.files import sha256_of_file
from .checkpoint import (
    USUAL_FACTORS,
    Checkpoint,
    checked_heads,
    checked_image_size,
    fitted_weights,
    load_tensors,
    misfit,
    raise_misfits,
)
from .network import DiT, DiTConfig
from .scheduler_config import read_scheduler

CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")  # the latter is what older releases wrote
WEIGHTS = "diffusion_pytorch_model.safetensors"
PICKLED = "diffusion_pytorch_model.bin"
FREQUENCY_DIVISOR = 127
# What the architecture of DiT leaves open in diffusers' class, and the only value that is a DiT. The defaults are those
# of DiTTransformer2DModel 0.42.
FIXED = {
    "norm_type": "ada_norm_zero",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_elementwise_affine": False,
}
EMBEDDERS = {  # copies in every block, under `transformer_blocks.{i}.norm1.emb.`
    "t_embedder.mlp.0.weight": "timestep_embedder.linear_1.weight",
    "t_embedder.mlp.0.bias": "timestep_embedder.linear_1.bias",
    "t_embedder.mlp.2.weight": "timestep_embedder.linear_2.weight",
    "t_embedder.mlp.2.bias": "timestep_embedder.linear_2.bias",
    "y_embedder.embedding_table.weight": "class_embedder.embedding_table.weight",
}
BLOCK = {  # ours -> theirs, under `blocks.{i}.` and `transformer_blocks.{i}.`; several are concatenated
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.proj": ("attn1.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
    "adaLN_modulation.1": ("norm1.linear",),
}
ENDS = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}


def is_diffusers_folder(path: Path) -> bool:
    return (path / "model_index.json").is_file() or (path / "config.json").is_file()


def vae_folder(path: Path) -> Path | None:
    """The autoencoder's folder of a pipeline folder, None where there is none."""
    folder = path / "vae"
    return folder if (folder / "config.json").is_file() else None


def read_diffusers_folder(
    path: Path,
    *,
    heads: int | None = None,
    null_class: bool | None = None,
    image_size: int | None = None,
    factor: int | None = None,
) -> Checkpoint:
    """Reads and checks a diffusers DiT; options as in `read_checkpoint`. Raises CheckpointError naming file and key."""
    index = path / "model_index.json"
    folder = path / "transformer" if index.is_file() else path
    config_file = folder / "config.json"
    values = read_json(config_file)
    try:
        config = _config(values, heads, null_class, image_size, factor)
    except CheckpointError as error:
        raise CheckpointError(f"{config_file}: {error}") from None
    state, weight_files = _state(folder)
    try:
        weights = fitted_weights(_with_our_names(state, config), config)
    except CheckpointError as error:
        raise CheckpointError(f"{weight_files[0]}: {error}") from None
    files = [config_file, *weight_files]
    checkpoint = Checkpoint(config, weights, "", guided_channels=config.in_channels)
    if index.is_file():
        files.append(index)
        checkpoint = replace(checkpoint, labels=_labels(index, config.num_classes))
        scheduler_file = path / "scheduler" / "scheduler_config.json"
        if scheduler_file.is_file():
            files.append(scheduler_file)
            facts = read_scheduler(scheduler_file, read_json(scheduler_file))
            checkpoint = replace(
                checkpoint, schedule=facts.schedule, prediction=facts.prediction, sampling=facts.sampling
            )
    return replace(checkpoint, sha256=_sha256(path, files), files=tuple(files))


def read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist: not a complete diffusers folder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable JSON ({error})") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return values


def _config(
    values: dict[str, Any], heads: int | None, null_class: bool | None, image_size: int | None, factor: int | None
) -> DiTConfig:
    if values.get("_class_name") not in CLASSES:
        raise CheckpointError(f"'_class_name' is {values.get('_class_name')!r}, not a DiT ({' or '.join(CLASSES)})")
    for key, value in FIXED.items():
        if values.get(key, value) != value:
            raise CheckpointError(f"'{key}' is {values[key]!r}: a DiT has {value!r}")
    channels, patch = _count(values, "in_channels"), _count(values, "patch_size")
    size, given_heads = _count(values, "sample_size"), _count(values, "num_attention_heads")
    outputs = channels if values.get("out_channels") is None else _count(values, "out_channels")
    if outputs not in (channels, 2 * channels):
        raise CheckpointError(f"'out_channels' is {outputs}: expected {channels} or {2 * channels}")
    if size % patch:
        raise CheckpointError(f"'sample_size' {size} is not a multiple of 'patch_size' {patch}")
    hidden, depth = given_heads * _count(values, "attention_head_dim"), _count(values, "num_layers")
    if hidden % 4:
        raise CheckpointError(f"the width {hidden} is not a multiple of 4, which the position embedding needs")
    if heads is not None and heads != given_heads:
        raise CheckpointError(f"'num_attention_heads' is {given_heads}: leave --heads {heads} out")
    eps = values.get("norm_eps", 1e-5)
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise CheckpointError(f"'norm_eps' is {eps!r}, not a number between 0 and 1")
    null_class = True if null_class is None else null_class
    return DiTConfig(
        input_size=checked_image_size(size, image_size, factor or USUAL_FACTORS.get(channels)),
        patch_size=patch,
        in_channels=channels,
        hidden_size=hidden,
        depth=depth,
        num_heads=checked_heads(given_heads, hidden, depth),
        num_classes=_count(values, "num_embeds_ada_norm") + int(not null_class),  # the table has one row more
        learn_sigma=outputs == 2 * channels,
        null_class=null_class,
        frequency_divisor=FREQUENCY_DIVISOR,
        mlp_norm_eps=eps,
    )


def _count(values: dict[str, Any], key: str) -> int:
    value = values.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1 << 20:
        raise CheckpointError(f"'{key}' is {value!r}, not a number of at least 1")
    return value


def _state(folder: Path) -> tuple[dict[str, Tensor], list[Path]]:
    """The tensors of one weight file or of all shards, and the files that were read."""
    index = folder / f"{WEIGHTS}.index.json"
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise CheckpointError(f"{index}: key 'weight_map' is missing")
        names = sorted({str(name) for name in shards.values()})
        outside = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
        if outside:
            raise CheckpointError(f"{index}: {outside[0]!r} is not the name of a .safetensors file in this folder")
        files = [folder / name for name in names]
        state = {key: tensor for file in files for key, tensor in load_tensors(file).items()}
        return state, [index, *files]
    for name in (WEIGHTS, PICKLED):
        if (folder / name).is_file():
            return load_tensors(folder / name), [folder / name]
    found = ", ".join(sorted(file.name for file in folder.iterdir())[:5])
    raise CheckpointError(f"{folder}: no weights, expected {WEIGHTS} (or its .index.json and shards); it has {found}")


def _with_our_names(state: dict[str, Tensor], config: DiTConfig) -> dict[str, Tensor]:
    """diffusers' state dict -> facebookresearch/DiT's. Every tensor is used, and checked under its own name."""
    with torch.device("meta"):
        shapes = {key: tuple(tensor.shape) for key, tensor in DiT(config).state_dict().items() if key != "pos_embed"}
    rest, ours, problems = dict(state), {}, []
    for key, sources in _sources(config.depth).items():
        rows, *others = shapes[key]
        wrong = [misfit(rest, source, (rows // len(sources), *others)) for source in sources]
        problems += [problem for problem in wrong if problem]
        parts = [rest.pop(source) for source in sources if source in rest]
        if not any(wrong):
            ours[key] = torch.cat(parts) if len(parts) > 1 else parts[0]
    for i in range(1, config.depth):
        for key, name in EMBEDDERS.items():
            copy = f"transformer_blocks.{i}.norm1.emb.{name}"
            problem = misfit(rest, copy, shapes[key])
            if not problem and key in ours and not torch.equal(rest[copy], ours[key]):
                problem = f"key '{copy}' is not equal to block 0's: a DiT has one embedder for all blocks"
            problems += [problem] if problem else []
            rest.pop(copy, None)
    raise_misfits(problems + [f"key '{key}' is not part of a diffusers DiT" for key in rest])
    return ours


def _sources(depth: int) -> dict[str, tuple[str, ...]]:
    """Our key -> the keys of diffusers that it is made of."""
    sources: dict[str, tuple[str, ...]]
    sources = {key: (f"transformer_blocks.0.norm1.emb.{name}",) for key, name in EMBEDDERS.items()}
    for kind in ("weight", "bias"):
        sources |= {f"{key}.{kind}": (f"{name}.{kind}",) for key, name in ENDS.items()}
        for i in range(depth):
            for key, names in BLOCK.items():
                sources[f"blocks.{i}.{key}.{kind}"] = tuple(f"transformer_blocks.{i}.{n}.{kind}" for n in names)
    return sources


def _labels(index: Path, classes: int) -> tuple[str, ...]:
    """Class names from the pipeline's id2label; empty where it has none."""
    labels = read_json(index).get("id2label")
    if not labels:
        return ()
    numbers = [str(i) for i in range(classes)]
    if not isinstance(labels, dict) or set(labels) != set(numbers):
        raise CheckpointError(
            f"{index}: 'id2label' does not name exactly the classes 0 to {classes - 1}: mend it, or take it out"
        )
    return tuple(str(labels[number]) for number in numbers)


def _sha256(path: Path, files: list[Path]) -> str:
    """One hash for a folder: of the lines "sha256  name" of every file that was read."""
    lines = sorted(f"{sha256_of_file(file)}  {file.relative_to(path).as_posix()}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
