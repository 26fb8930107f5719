"""Which of the tensors in a file are the network's weights: the layouts that training scripts save, averages first.

A state dict begins at a *root*: the way to its dict and what its keys begin with, such as `ema`, `state_dict.model` or
`module`. DistributedDataParallel, torch.compile and Lightning only make longer roots.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...runtime.errors import CheckpointError
from .shadow_params import named_list, undotted
from .tensor_tree import Place, check_plain, is_average, keys_found, listed, tensors_by_place, without_wrappers

# Any of these marks a DiT: a state dict that lacks one is still found, and the missing key named.
DIT_KEYS = ("x_embedder.proj.weight", "final_layer.linear.weight", "blocks.0.attn.qkv.weight")
MAX_ROOTS = 32
NOT_WEIGHTS = re.compile(r"opt|optim\w*|\w*optimizer\w*|callbacks|loops|lr_schedulers?|scaler|rng\w*")


@dataclass(frozen=True)
class Weights:
    """A state dict, and the sentence that says where in the file it was and why it was taken."""

    tensors: dict[str, Tensor]
    sentence: str


@dataclass(frozen=True)
class _Found:
    tensors: dict[str, Tensor]
    average: bool


def dit_weights(data: Any, file_bytes: int, wanted: str | None = None) -> Weights:
    """The weights of the DiT in what a file holds: the average (EMA) over training where there is one.

    wanted: the root to take instead. Tensors keep their dtype and are checked to be plain. Raises CheckpointError.
    """
    places = tensors_by_place(data)
    found = _named_states(places, isinstance(data, dict) and "averaging_state" in data)
    found |= _nameless_averages(places, found)
    if not found:
        raise CheckpointError(f"holds no state dict of a DiT; {keys_found(data)}")
    name = _chosen(found, wanted)
    if wanted is None and not found[name].average:
        _check_no_unknown_average(places, data)
    tensors = found[name].tensors
    if "pos_embed" not in tensors:  # averages of what is trained lack the fixed positions
        tensors |= next(({"pos_embed": f.tensors["pos_embed"]} for f in found.values() if "pos_embed" in f.tensors), {})
    check_plain(tensors, file_bytes)
    return Weights(tensors, _sentence(name, {name: state.average for name, state in found.items()}, wanted))


def any_weights(data: Any, file_bytes: int) -> Weights:
    """The state dict of any network, wrappers of its keys removed: an average, else the first of the usual places."""
    places = {
        place: tensors
        for place, tensors in tensors_by_place(data).items()
        if any(tensor.ndim for tensor in tensors.values()) and not any(map(NOT_WEIGHTS.fullmatch, place))
    }
    if not places:
        raise CheckpointError(f"holds no state dict of tensors; {keys_found(data)}")
    usual: list[Place] = [(), ("model",), ("state_dict",)]
    averages = [place for place in places if is_average(place)]
    place = min(averages or places, key=lambda place: usual.index(place) if place in usual else len(usual) + len(place))
    tensors = {without_wrappers(key): tensor for key, tensor in places[place].items()}
    check_plain(tensors, file_bytes)
    return Weights(tensors, _sentence(".".join(place), {".".join(p): p in averages for p in places}, None))


def _named_states(places: dict[Place, dict[str, Tensor]], lightning_average: bool) -> dict[str, _Found]:
    """The state dicts of a DiT by the names of their roots.

    lightning_average: Lightning's WeightAveraging callback keeps the average in "state_dict".
    """
    roots = list(
        dict.fromkeys(
            (place, key.removesuffix(mark))
            for place, tensors in places.items()
            for key in tensors
            for mark in DIT_KEYS
            if key == mark or key.endswith("." + mark)
        )
    )
    if len(roots) > MAX_ROOTS:
        raise CheckpointError(f"holds {len(roots)} state dicts of a DiT: save the one that is meant alone")
    found = {}
    for place, prefix in roots:
        deeper = tuple(other for p, other in roots if p == place and len(other) > len(prefix))
        tensors = {
            key.removeprefix(prefix): tensor
            for key, tensor in places[place].items()
            if key.startswith(prefix) and not (deeper and key.startswith(deeper))
        }
        average = (
            is_average((*place, prefix))
            or ("n_averaged" in places[place] and prefix.startswith("module."))  # torch's AveragedModel
            or (lightning_average and place[:1] == ("state_dict",))
        )
        found[".".join([*place, *prefix.split(".")[:-1]])] = _Found(tensors, average)
    return found


def _nameless_averages(places: dict[Place, dict[str, Tensor]], found: dict[str, _Found]) -> dict[str, _Found]:
    raw = [state.tensors for state in found.values() if not state.average]
    averages: dict[str, dict[str, Tensor]] = {}
    for place, tensors in places.items():
        if place[-1:] == ("shadow_params",):
            named = named_list(list(tensors.values()), raw[0] if len(raw) == 1 else None)
            averages |= {".".join(place): named} if named else {}
    for place, tensors in places.items():
        for name, state in found.items():
            start = ".".join(place)
            if state.average or not name.startswith(start):
                continue
            prefix = name[len(start) :].lstrip(".")
            buffers = undotted(tensors, prefix + "." if prefix else "", state.tensors)
            averages |= {".".join([*place, buffers[0]]): buffers[1]} if buffers else {}
    return {name: _Found(tensors, True) for name, tensors in averages.items()}


def _chosen(found: dict[str, _Found], wanted: str | None) -> str:
    if wanted is not None:
        if wanted not in found:
            raise CheckpointError(f"--weights '{wanted}' is not one of {listed(found)}")
        return wanted
    candidates = [name for name, state in found.items() if state.average] or list(found)
    if len(candidates) > 1:
        raise CheckpointError(
            f"holds {len(candidates)} state dicts of a DiT, {listed(candidates)}: say which with --weights NAME"
        )
    return candidates[0]


def _check_no_unknown_average(places: dict[Place, dict[str, Tensor]], data: Any) -> None:
    """Raises CheckpointError where something is called an average and could not be read: raw weights are not those."""
    for place, tensors in places.items():
        for key, tensor in tensors.items():
            if tensor.ndim > 1 and is_average((*place, key)):
                where = ".".join([*place, key])
                raise CheckpointError(
                    f"holds averaged (EMA) weights in a layout that is not known, {listed([where])}: save them as a "
                    f"state dict, or take the raw ones with --weights NAME; {keys_found(data)}"
                )


def _sentence(name: str, found: dict[str, bool], wanted: str | None) -> str:
    """found: the names of all state dicts, and whether they are averages."""
    place = listed([name]) if name else "the file's own keys"
    others = [other for other in found if other != name]
    if wanted is not None:
        return f"{place}, as --weights says" + (f", not {listed(others)}" if others else "")
    if found[name]:
        return f"{place}, averaged over training (EMA)" + (f", not {listed(others)}" if others else "")
    return f"{place}, the only ones in the file" if not others else f"{place}, not {listed(others)}"
