"""`--model package.module:factory`: a network of the user's own in place of `DiT` (docs/custom-models.md)."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...runtime.errors import CheckpointError
from ...runtime.files import sha256_of_file
from ..networks.dit import DiTConfig, Network
from .asked import Asked
from .checkpoint import Checkpoint, load_weights
from .merging import merged

ROWS_ALONE = 1e-4  # relative: a row computed alone against the same row in a batch, float32


def read(path: Path, asked: Asked) -> Checkpoint:
    """Calls the factory `asked.model` on the state dict in `path` and checks what it returns.

    Raises CheckpointError that names the factory and what to change.
    """
    spec = str(asked.model)
    if (asked.heads, asked.null_class, asked.image_size, asked.weights) != (None, None, None, None):
        raise CheckpointError(
            "--model says all about the network: leave --heads, --null-class, --image-size and --weights out"
        )
    weights = load_weights(path)
    try:
        module = _made(_factory(spec), merged(weights.tensors))
        _check_module(module)
    except CheckpointError as error:
        raise CheckpointError(f"--model {spec}: {error}") from None
    notes = (f"weights: {weights.sentence}",)
    state = dict(module.state_dict())
    return Checkpoint(module.config, state, sha256_of_file(path), (path,), module=module, notes=notes)


def _factory(spec: str) -> Callable[[dict[str, Tensor]], Any]:
    name, _, attribute = spec.partition(":")
    if not (name and attribute.isidentifier()):
        raise CheckpointError("write it as package.module:factory")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(name)
    except Exception as error:  # the user's own code: whatever it raises is theirs to mend
        raise CheckpointError(f"cannot import {name} from here or from what is installed: {_place(error)}") from None
    finally:
        sys.path.remove(here)
    if not callable(getattr(module, attribute, None)):
        raise CheckpointError(f"{name} has no function '{attribute}'")
    return getattr(module, attribute)  # type: ignore[no-any-return]


def _made(factory: Callable[[dict[str, Tensor]], Any], state: dict[str, Tensor]) -> Any:
    """The factory's module, float32, in eval mode, without gradients."""
    try:
        module = factory(state)
    except Exception as error:
        raise CheckpointError(f"the factory failed: {_place(error)}") from None
    if not isinstance(module, nn.Module):
        raise CheckpointError(
            f"the factory returned an object of type {type(module).__name__}, expected a torch.nn.Module"
        )
    missing = [name for name in ("config", "conditioner", "trunk") if not hasattr(module, name)]
    if missing:
        raise CheckpointError(f"the module has no attribute '{missing[0]}'; it needs config, conditioner and trunk")
    if not isinstance(module.config, DiTConfig):
        raise CheckpointError(f"config is of type {type(module.config).__name__}, expected ditedge.export.DiTConfig")
    return module.float().eval().requires_grad_(False)


@torch.no_grad()
def _check_module(network: Network) -> None:
    """Shapes, dtypes, finite numbers, the same twice, and rows that do not depend on each other."""
    config, rows = network.config, 3
    generator = torch.Generator().manual_seed(0)
    timestep, label = torch.tensor([0.25, 0.5, 0.75]), torch.arange(rows) % config.num_classes
    x = torch.randn(rows, config.in_channels, config.input_size, config.input_size, generator=generator)
    try:
        modulation = network.conditioner(timestep, label)
        _check_tensor("conditioner(timestep, label)", modulation, (rows, None))
        output = network.trunk(x, modulation)
        _check_tensor("trunk(x, modulation)", output, (rows, config.out_channels, *x.shape[2:]))
        again = network.trunk(x, network.conditioner(timestep, label))
        alone = network.trunk(x[1:2], network.conditioner(timestep[1:2], label[1:2]))
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"the module failed on a batch of {rows}: {_place(error)}") from None
    if not torch.equal(output, again):
        raise CheckpointError("the module gave two outputs for one input: take randomness out of conditioner and trunk")
    if not (alone[0] - output[1]).norm() <= ROWS_ALONE * output[1].norm():
        raise CheckpointError("a row of the output depends on the other rows: an image must not depend on its batch")


def _check_tensor(name: str, value: Any, shape: tuple[int | None, ...]) -> None:
    wanted = f"a float32 tensor of shape [{', '.join('M' if size is None else str(size) for size in shape)}]"
    if not isinstance(value, Tensor):
        raise CheckpointError(f"{name} returned an object of type {type(value).__name__}, expected {wanted}")
    fits = len(value.shape) == len(shape) and all(b in (None, a) for a, b in zip(value.shape, shape, strict=True))
    if not fits or value.dtype != torch.float32:
        raise CheckpointError(f"{name} returned a {value.dtype} tensor of shape {list(value.shape)}, expected {wanted}")
    if not torch.isfinite(value).all():
        raise CheckpointError(f"{name} returned numbers that are not finite")


def _place(error: Exception) -> str:
    """An exception in one line, with the place in the user's file that it came from."""
    trace = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in trace if "torch" not in Path(frame.filename).parts and "<" not in frame.filename]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if len(frames) > 1 else ""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}{place}"
