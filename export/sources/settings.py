"""What a training run wrote down about its network: in the checkpoint, or in a file of its run's folder.

Inside: `args` (train.py of DiT and SiT), `config`, `hyper_parameters` (Lightning) and the like, as Namespace, dict or
OmegaConf. Beside: the checkpoint's folder, the folder above its `checkpoints/`, Hydra's `.hydra/`. Shapes are believed
before settings: a setting that contradicts them belongs to another run, and is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...runtime.errors import CheckpointError
from .pickles import unwrapped
from .places import run_folder

INSIDE = ("args", "config", "cfg", "hparams", "hyper_parameters", "train_config", "model_args", "model_config")
BESIDE = ("args.yaml", "config.yaml", "hparams.yaml", "args.json", ".hydra/config.yaml")
MOST_SAMPLING = 1000  # of steps, guidance and the like: more is not believed
MAX_FILE = 1 << 18  # bytes of a settings file
# Dicts within settings that describe the network; an optimizer's or a VAE's `depth` is not the network's.
GROUPS = {
    "args", "config", "cfg", "model", "params", "network", "network_config", "net", "dit", "sit", "backbone", "hparams",
    "kwargs", "init_args", "model_args", "model_config", "model_kwargs", "transport", "diffusion", "data", "dataset",
}  # fmt: skip
NAMES = {  # as they are written -> as DiT's and SiT's train.py and constructors write them
    "num_attention_heads": "num_heads", "n_heads": "num_heads", "num_layers": "depth", "resolution": "image_size",
    "img_size": "image_size", "latent_size": "input_size", "in_size": "input_size", "in_chans": "in_channels",
    "prediction_type": "prediction", "cfg_prob": "class_dropout_prob",
    "use_qknorm": "qk_norm",
}  # fmt: skip
KINDS: dict[str, type] = {
    "num_classes": int, "num_heads": int, "hidden_size": int, "depth": int, "patch_size": int, "in_channels": int,
    "input_size": int, "image_size": int, "mlp_ratio": float, "class_dropout_prob": float, "learn_sigma": bool,
    "path_type": str, "prediction": str, "encoder_depth": int, "qk_norm": bool, "model_type": str,
    "use_swiglu": bool, "use_rmsnorm": bool, "use_rope": bool, "wo_shift": bool,
    "use_decoder": bool, "decode_layer": int, "precond": str,
}  # fmt: skip
# How a run samples, not what its network is: in a group `sample` of the outermost settings.
SAMPLING: dict[str, type] = {
    "num_sampling_steps": int, "cfg_scale": float, "cfg_interval_start": float, "timestep_shift": float,
    "sampling_method": str,
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """Known settings by train.py's names, with its types; `origin` says where they were read."""

    values: dict[str, Any] = field(default_factory=dict)
    origin: str = ""

    def said(self, name: str) -> str:
        """A setting as a message writes it: where, name and value."""
        return f"{self.origin}: {name} {self.values[name]!r}"


def read_settings(data: Any, path: Path) -> Settings:
    """The settings of the run that wrote the checkpoint `path`, whose content is `data`; empty where nothing is known.

    Raises CheckpointError for a known setting of the wrong type, and for a settings file that cannot be read.
    """
    for key in INSIDE if isinstance(data, dict) else ():
        values = _known(data.get(key))
        if values:
            origin = f"'{key}' of the file"
            return Settings(_checked(values, origin) | _sampling(data.get(key)), origin)
    for file in _files_beside(path):
        content = _read_file(file)
        values = _known(content)
        if values:
            origin = str(file.relative_to(run_folder(path)) if file.is_relative_to(run_folder(path)) else file.name)
            return Settings(_checked(values, str(file)) | _sampling(content), origin)
    return Settings()


def _files_beside(path: Path) -> list[Path]:
    folders = dict.fromkeys([path.absolute().parent, run_folder(path)])
    return [folder / name for folder in folders for name in BESIDE if (folder / name).is_file()]


def _read_file(path: Path) -> Any:
    """A YAML or JSON file (every JSON file is YAML) as plain values; nothing that it names is made or called."""
    try:
        import yaml
    except ModuleNotFoundError:
        raise CheckpointError(f"{path} has the settings, and PyYAML is not installed: pip install pyyaml") from None

    class Loader(yaml.SafeLoader):
        """Objects (`!!python/...` in Lightning's files) are the dicts and lists that they were written as."""

        def flatten_mapping(self, node: Any) -> None:
            """`<<` is not followed: merges of merges grow without bound."""

    def foreign(loader: Any, _: str, node: Any) -> Any:
        if isinstance(node, yaml.MappingNode):
            return loader.construct_mapping(node, deep=True)
        return loader.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else None

    Loader.add_multi_constructor("", foreign)
    try:
        if path.stat().st_size > MAX_FILE:
            raise CheckpointError(f"{path}: larger than {MAX_FILE} bytes, so not the settings of a run: move it away")
        return yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (yaml.YAMLError, OSError, ValueError, RecursionError, TypeError) as error:
        reason = " ".join(str(error).split())[:150]
        raise CheckpointError(f"{path}: not readable as YAML, mend it or move it away ({reason})") from None


def _known(value: Any, levels: int = 3) -> dict[str, Any]:
    """The known settings in a mapping and the groups inside it; the outer one of two with one name."""
    value = unwrapped(value)
    if not isinstance(value, dict) or not levels:
        return {}
    found: dict[str, Any] = {}
    for group in GROUPS:
        for name, item in _known(value.get(group), levels - 1).items():
            found.setdefault(name, item)
    for key in (*NAMES, *KINDS):
        item = _single(unwrapped(value.get(key)))
        if item is not None:
            found[NAMES.get(key, key)] = item
    return found


def _sampling(value: Any) -> dict[str, Any]:
    """Those of SAMPLING, finite and of moderate size."""
    group = unwrapped(value)
    group = unwrapped(group.get("sample")) if isinstance(group, dict) else None
    found = {}
    for name, kind in SAMPLING.items() if isinstance(group, dict) else ():
        item = _single(unwrapped(group.get(name)))  # type: ignore[union-attr]  # of nothing there are no names
        item = float(item) if kind is float and type(item) is int else item
        if type(item) is kind and (kind is str or abs(item) <= MOST_SAMPLING):  # type: ignore[arg-type]
            found[name] = item
    return found


def _single(item: Any) -> Any:
    """The value of a setting; (2, 2) is 2. None: not said, an unresolved "${...}", or something else."""
    if isinstance(item, (list, tuple)) and item and all(_plain(other) and other == item[0] for other in item[:4]):
        item = item[0]
    if isinstance(item, str) and ("${" in item or len(item) > 100):
        return None
    return item if _plain(item) else None


def _plain(item: Any) -> bool:
    return isinstance(item, (bool, int, float, str))


def _checked(values: dict[str, Any], origin: str) -> dict[str, Any]:
    """The values with the types of KINDS."""
    checked = {}
    for name, value in values.items():
        kind = KINDS[name]
        if type(value) in (int, float) and not -(1 << 31) < value < 1 << 31:  # NaN fails, too
            raise CheckpointError(f"{origin}: {name} is out of any range")
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise CheckpointError(f"{origin}: {name} is {value!r}, expected {_KIND_NAMES[kind]}")
        checked[name] = value
    return checked


_KIND_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a name"}
