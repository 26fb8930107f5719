"""What every family that takes prompts is read into, whatever its folder says it in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...runtime.bundle.text_info import EncoderInfo
from ...runtime.errors import CheckpointError
from ...runtime.samplers.flow_settings import FlowInfo
from ...runtime.samplers.schedule import ScheduleInfo
from .checkpoint import fitted_tensors
from .diffusers_folder import read_json
from .folder_weights import read_folder_weights, sha256_of_files
from .merging import merged
from .places import diffusers_folder_of, file_of_weights, network_folder
from .shapes import LATENT_FACTOR


@dataclass(frozen=True)
class EncoderUse:
    """How a family's pipeline uses one of its text encoders."""

    folder: str  # of the pipeline: "text_encoder_2"
    tokenizer: str
    info: EncoderInfo  # but for pad and tokenizer, which its folders say
    lower: bool = False  # words are put in lower case, without outer spaces
    instruction: str | None = None  # words before a prompt's, see `InstructionInfo`; `lower` is not said then
    whole: bool = False  # the encoder's rows of an instruction are read, too
    around: tuple[str, str] | None = None  # what stands before and after a prompt: a chat's template
    layer: int | tuple[int, ...] = -1  # of its hidden states: -2 is before the last layer; several: side by side
    padded: bool = False  # rows of padding are read, and the encoder is told where it begins


@dataclass(frozen=True)
class Process:
    """What a family's network predicts, and how its pipeline samples it when it is told nothing else."""

    prediction: str
    timestep_range: tuple[float, float]  # what it is told of pure noise, and of data
    schedule: ScheduleInfo | None = None  # None: a flow
    flow: FlowInfo | None = None  # of a flow: how its steps are spaced
    steps: int | None = None  # of a flow; others: `truth.programs` says it
    guidance: float = 1.0
    kind: str = "true"  # of guidance: `TextInfo.guidance`
    sampling: dict[str, Any] = field(default_factory=dict)  # fields of `SamplerSettings`; empty: what is usual


@dataclass(frozen=True)
class PromptCheckpoint:
    """A network's description and weights, and what its pipeline says beside them."""

    architecture: str  # of the manifest: the family
    network: Callable[[Any], nn.Module]  # a `networks.interface.PromptNetwork` of the config
    config: Any  # as `manifests.Described` wants it, and input_size: H = W of training
    largest: int  # H and W of latents at most
    weights: dict[str, Tensor]  # keys and shapes of network(config), float32
    sha256: str
    folder: Path  # of the pipeline, or of the transformer
    process: Process
    encoders: tuple[EncoderUse, ...]
    notes: tuple[str, ...]
    facts: dict[str, Any] = field(default_factory=dict)  # further fields of ModelInfo
    factor: int = LATENT_FACTOR  # pixels of a picture per pixel of a latent, where no VAE says it

    @property
    def prediction(self) -> str:
        return self.process.prediction

    def model(self) -> Any:
        """The network in eval mode; shares the weights' memory."""
        with torch.device("meta"):
            model = self.network(self.config)
        model.load_state_dict(self.weights, assign=True)
        return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class PromptFolder:
    """A diffusers folder of a family, found: its JSON is read, its weights are not."""

    path: Path  # of the pipeline, or of the transformer
    network: Path
    only: str | None  # the name of a file of weights, where that was given
    values: dict[str, Any]  # of the network's config.json
    index: dict[str, Any]  # of model_index.json; empty: there is no pipeline

    @property
    def pipeline(self) -> str | None:
        return str(self.index["_class_name"]) if "_class_name" in self.index else None

    @property
    def config_file(self) -> Path:
        return self.network / "config.json"

    @property
    def scheduler_file(self) -> Path | None:
        path = self.path / "scheduler" / "scheduler_config.json"
        return path if path.is_file() else None

    def part(self, name: str) -> dict[str, Any] | None:
        """config.json of a part, such as a text encoder; None where the pipeline has none."""
        path = self.path / name / "config.json"
        return read_json(path) if path.is_file() else None

    def trained_side(self, usual: int, multiple: int) -> int:
        """H = W of the latents of training: the VAE's pictures of training by its factor, or `usual`."""
        vae = self.part("vae") or {}
        pixels, stages = vae.get("sample_size"), vae.get("block_out_channels")
        if type(pixels) is not int or not isinstance(stages, list) or not 1 <= len(stages) <= 8:
            return usual
        side = pixels // 2 ** (len(stages) - 1)
        return side if 0 < side <= usual * 8 and side % multiple == 0 else usual


def open_folder(path: Path) -> PromptFolder:
    """Raises CheckpointError."""
    only, path = file_of_weights(path), diffusers_folder_of(path)
    folder, index = network_folder(path), path / "model_index.json"
    values = read_json(folder / "config.json")
    return PromptFolder(path, folder, only, values, read_json(index) if index.is_file() else {})


def config_of(folder: PromptFolder, read: Callable[[PromptFolder], Any]) -> Any:
    """What `read` makes of the folder's JSON; its CheckpointErrors name the network's file."""
    try:
        return read(folder)
    except CheckpointError as error:
        raise CheckpointError(f"{folder.config_file}: {error}") from None


@dataclass(frozen=True)
class PromptWeights:
    tensors: dict[str, Tensor]
    sha256: str  # of config, weights and scheduler
    sentence: str  # which files they are of


def read_weights(
    folder: PromptFolder,
    network: Callable[[], nn.Module],
    what: str,
    fit: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
) -> PromptWeights:
    """Checked against `network()`'s keys and shapes. fit: the file's tensors to those of the network.

    Raises CheckpointError naming file and key.
    """
    found = read_folder_weights(folder.network, folder.only)
    tensors = merged(found.tensors)
    try:
        weights = fitted_network(fit(tensors), network, what)
    except CheckpointError as error:
        raise CheckpointError(f"{found.files[0]}: {error}") from None
    scheduler = [folder.scheduler_file] if folder.scheduler_file is not None else []
    files = [folder.config_file, *found.files, *scheduler]
    return PromptWeights(weights, sha256_of_files(folder.path, files), found.sentence)


def fitted_network(tensors: dict[str, Tensor], network: Callable[[], nn.Module], what: str) -> dict[str, Tensor]:
    """The tensors as float32, checked against `network()`'s keys and shapes. Raises CheckpointError."""
    with torch.device("meta"):
        expected = network().state_dict()
    return fitted_tensors(tensors, expected, what)
