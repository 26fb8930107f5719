"""`manifest.json`: what a bundle is. The models below are the format; docs/manifest.schema.json is made from them.

A name that `run` does nothing with (a weight format, a decoder's kind) is a text: a later release's does not stop it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ditedge import __version__

from ..errors import BundleError
from ..fields import LARGEST, MAX_NUMBER, Count, Finite, Sha256, Strict
from ..json_files import parse_json, validated
from ..samplers.flow_settings import FlowInfo
from ..samplers.process import NO_BETAS
from ..samplers.schedule import ScheduleInfo
from .graph_contract import GUIDANCE, INTERVAL, MAX_PIXELS, GraphInfo, check_graphs, graphs_read
from .text_info import MAX_SIDE, TextInfo, unsaid

MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION: Literal[2] = 2
# What this reader understands of a manifest's `requires`; cpp/src/manifest.cpp has the same names. Whoever adds to the
# format what a reader must not ignore (without it the pictures would be wrong) adds a name here and there, and has the
# writer put it into the manifests that need it.
TEXT = "text"  # the model takes prompts, and latents of several sizes
INSTRUCTION = "instruction"  # words stand before those of a prompt, where the bundle has the text encoder
UNDERSTOOD = frozenset({TEXT, INSTRUCTION})
MAX_REQUIRED = 100
MAX_MANIFEST_BYTES = 16 << 20
# The bounds of docs/format.md, "Limits": the same as cpp/src/manifest.cpp's.
MAX_LATENT = 1 << 26  # numbers of one latent: above is no image
MAX_CLASSES = 1_000_000
MAX_FILES, MAX_PROGRAMS, MAX_GOLDEN = 1000, 1000, 100
MAX_KEPT = 100_000
LARGE_MODEL = 200_000_000  # parameters from which on whatever samples on a workstation does less of it
DECODE_PIXELS = 512 * 512  # of pictures decoded at a time: Stable Diffusion's decoder takes 5 kB a pixel

Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]


class FileInfo(Strict):
    sha256: Sha256
    bytes: Annotated[int, Field(ge=0, le=LARGEST)]


class ModelInfo(Strict):
    """The network (hyper-parameters as in the DiT paper) and how its numbers are to be read."""

    architecture: str  # "dit", "pixart"; "custom": a module of the user's with DiT's interface
    input_size: Side  # H = W of the latent; where others are possible (`text`), that of training
    patch_size: Count
    in_channels: Side  # C
    out_channels: Annotated[int, Field(ge=1, le=2 * MAX_SIDE)]  # O
    hidden_size: Count
    depth: Count
    num_heads: Count
    num_classes: Annotated[int, Field(ge=0, le=MAX_CLASSES)]  # 0: the model takes prompts (`text`)
    null_class: (
        Annotated[int, Field(ge=0, le=MAX_CLASSES)] | None
    )  # label of "no class", None when the model was trained without label dropout
    learned_variance: bool
    # flow: noise - x0 (REPA); -to-data: SiT's; mean-flow: its average over a step; edm: inside EDM's preconditioning
    prediction: Literal["epsilon", "x0", "v", "flow", "flow-to-data", "mean-flow", "edm"]
    guided_channels: Count  # guidance applies to the first so many epsilon channels
    parameters: Count
    timestep_range: Annotated[tuple[Finite, Finite], Field(strict=False)] = (
        999.0,
        0.0,
    )  # what the network is told of pure noise, and of data
    frequency_divisor: Count = 128  # of the timestep sinusoid's exponents; 127 in diffusers' DiT
    mlp_norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-6  # of the norm before each MLP; 1e-5 in diffusers' DiT
    mlp_ratio: Annotated[float, Field(gt=0, lt=1024)] = 4.0  # width of a block's MLP over hidden_size

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the network denoises."""
        return self.in_channels, self.input_size, self.input_size

    @property
    def is_large(self) -> bool:
        """Whether a trajectory takes so long on a processor that fewer of them, or shorter ones, have to do."""
        return self.parameters > LARGE_MODEL

    @model_validator(mode="after")
    def _check(self) -> ModelInfo:
        if self.in_channels * self.input_size**2 > MAX_LATENT:
            raise ValueError(f"latents of {self.in_channels} x {self.input_size} x {self.input_size} are too large")
        return self


class VaeInfo(Strict):
    """The VAE inside the decoder graph, and what the graph does to the network's latents before it.

    z / scaling_factor + shift_factor; with latents_mean and latents_std, one number a channel, it is
    z * std / scaling_factor + mean. FLUX.2's z is then unpacked into squares of a quarter of the channels.
    """

    kind: str  # "kl", "tiny", "dc"
    source_sha256: Sha256  # the file of weights it was made from
    precision: str  # "float32", "float16"
    scaling_factor: Annotated[float, Field(gt=0, le=MAX_NUMBER)]
    shift_factor: Finite
    latents_mean: list[Finite] | None = None
    latents_std: list[Annotated[float, Field(gt=0, le=MAX_NUMBER)]] | None = None


class DefaultsInfo(Strict):
    """What `run` does when it is told nothing else."""

    program: str
    guidance: Finite
    # Where steps depend on the picture's size: number of image tokens -> ready program, for runtimes that make none
    by_tokens: Annotated[dict[str, str], Field(max_length=MAX_PROGRAMS)] = {}


class GoldenInfo(Strict):
    """A trajectory recorded from PyTorch: `verify` replays it. tolerance: relative error allowed at any step."""

    file: str
    program: str
    guidance: Finite
    tolerance: Annotated[float, Field(gt=0, lt=1)]


class QuantizationInfo(Strict):
    """How a bundle was quantised. Linears are named as in the checkpoint: blocks.3.mlp.fc2."""

    precision: str  # of the weights of the step graph's linears: "int8", "fp8", "int4"
    form: str  # whose kernels the graph is written for: "onnxruntime", "tensorrt"
    weights: str  # what shares a scale: "per-channel", "per-tensor", "blocks"
    activations: str  # "per-token", "static"; "float32": only the weights are rounded
    smoothing: Annotated[float, Field(ge=0, le=1)] | None  # SmoothQuant's alpha; None: not smoothed
    kept: Annotated[list[str], Field(max_length=MAX_KEPT)]  # linears of the step graph left in float32
    conditioner: str  # its weights at rest, "float32" or "int8"; its arithmetic is float32
    decoder: str | None = (
        None  # "int8-static": arithmetic of convolutions; "int8": their weights at rest; None: as it was
    )
    source_bundle: Sha256  # manifest of the bundle it was made from
    calibration: Sha256 | None  # of the statistics: source bundle, program and set; None: nothing was collected


class Manifest(Strict):
    format: Literal["ditedge-bundle"]
    version: Literal[2]
    requires: Annotated[list[str], Field(max_length=MAX_REQUIRED)] = []  # what a reader must understand to be right
    name: str
    made_by: str
    source_sha256: Sha256  # the checkpoint the bundle was made from
    model: ModelInfo
    schedule: ScheduleInfo | None  # None: a flow model, x_t = t data + (1 - t) noise, has no betas, nor has EDM's
    labels: list[str]  # empty, or one name per class
    text: TextInfo | None = None  # None: the model takes classes
    flow: FlowInfo | None = None  # of a flow model: how its steps are spaced; None: evenly
    graphs: Annotated[dict[str, GraphInfo], BeforeValidator(graphs_read)]  # further step graphs are "step-NAME"
    programs: Annotated[dict[str, str], Field(max_length=MAX_PROGRAMS)]  # name -> file
    golden: Annotated[list[GoldenInfo], Field(max_length=MAX_GOLDEN)]
    defaults: DefaultsInfo
    vae: VaeInfo | None = None  # None: a model of pixels, or latents without decoder
    quantization: QuantizationInfo | None = None  # None: the weights are the checkpoint's
    files: Annotated[
        dict[str, FileInfo], Field(max_length=MAX_FILES)
    ]  # every file of the bundle but this one and engines/

    @model_validator(mode="after")
    def _check(self) -> Manifest:
        if (self.schedule is None) != (self.model.prediction in NO_BETAS):
            raise ValueError("a flow model or EDM's has no schedule, and every other model has one")
        missing = {"conditioner", "step"} - set(self.graphs)
        if missing:
            raise ValueError(f"graph '{sorted(missing)[0]}' is missing")
        self._check_text()
        told = {tensor.name for tensor in self.graphs["conditioner"].inputs}
        if (INTERVAL in told) != (self.model.prediction == "mean-flow"):
            raise ValueError(f"conditioner: '{INTERVAL}' is told where the prediction is mean-flow, and nowhere else")
        if self.labels and len(self.labels) != self.model.num_classes:
            raise ValueError(f"{len(self.labels)} labels for {self.model.num_classes} classes")
        for values in (self.vae.latents_mean, self.vae.latents_std) if self.vae is not None else ():
            if values is not None and len(values) != self.model.in_channels:
                raise ValueError(f"vae: expected {self.model.in_channels} latents_mean and latents_std, one a channel")
        for program in (self.defaults.program, *self.defaults.by_tokens.values()):
            if program not in self.programs:
                raise ValueError(f"default program '{program}' is not in programs")
        named = [graph.file for graph in self.graphs.values()] + list(self.programs.values())
        named += self.text.files if self.text is not None else []
        for file in named + [golden.file for golden in self.golden]:
            if file not in self.files:
                raise ValueError(f"'{file}' is used but not listed in files, so its hash is unknown")
        for golden in self.golden:
            if golden.program not in self.programs:
                raise ValueError(f"golden program '{golden.program}' is not in programs")
        graphs = {str(name): graph for name, graph in self.graphs.items()}
        check_graphs(self.model.latent_shape, self.model.out_channels, graphs, self.text)
        return self

    def _check_text(self) -> None:
        if (self.text is None) != (self.model.num_classes > 0):
            raise ValueError(
                "a model has classes, or takes prompts: num_classes is 0 where there is a text, and nowhere else"
            )
        if self.text is None:
            return
        if "context" not in self.graphs:
            raise ValueError("graph 'context' is missing")
        if TEXT not in self.requires:
            raise ValueError(f"text: a bundle that takes prompts requires '{TEXT}'")
        if any(info.instruction for info in self.text.encoders.values()) and INSTRUCTION not in self.requires:
            raise ValueError(f"text: a bundle with an instruction requires '{INSTRUCTION}'")
        if self.model.input_size % self.text.multiple or self.model.input_size > self.text.largest:
            raise ValueError("text: input_size is not one of the sizes that latents can have")
        largest = self.text.largest
        if self.model.in_channels * largest**2 > MAX_LATENT or (largest * self.text.factor) ** 2 > MAX_PIXELS:
            raise ValueError(f"text: latents of {largest} x {largest} are too large")

    @property
    def tells_guidance(self) -> bool:
        """Whether a model of classes is told its guidance as a number; of prompts `text.guidance` says it."""
        return any(tensor.name == GUIDANCE for tensor in self.graphs["conditioner"].inputs)

    @property
    def modulation_width(self) -> int:
        """M: numbers in a row of adaLN modulation, which the conditioner makes."""
        return int(self.graphs["conditioner"].outputs[0].shape[1])

    def output_shape(self, graph: str, output: str) -> tuple[int | None, ...] | None:
        """Of an output of a graph, None where there is none; sizes that are dynamic are None."""
        info = self.graphs.get(graph)  # type: ignore[call-overload]
        for tensor in info.outputs if info is not None else ():
            if tensor.name == output:
                return tuple(size if isinstance(size, int) else None for size in tensor.shape)
        return None

    def picture_size(self, graph: str, latent: tuple[int, int] | None = None) -> tuple[int, int, int]:
        """(h, w, 1 or 3) of what "decoder" or "preview" makes. latent: H, W where they are not input_size."""
        height, width, channels = self.graphs[graph].outputs[0].shape[1:]
        if self.text is not None:
            height, width = (side * self.text.factor for side in latent or (self.model.input_size,) * 2)
        return int(height), int(width), int(channels)

    def json_text(self) -> str:
        """The file. What a model of classes has nothing to say about is left out."""
        exclude: dict[str, Any] = {name: True for name in ("text", "flow") if getattr(self, name) is None}
        exclude |= {"flow": {"by_size": {"few"}}} if self.flow is not None and self.flow.few is None else {}
        if self.text is not None:
            exclude["text"] = unsaid(self.text)
        if not self.defaults.by_tokens:
            exclude["defaults"] = {"by_tokens": True}
        return self.model_dump_json(indent=1, exclude=exclude) + "\n"

    def graph_files(self, graph: str) -> list[str]:
        """The file of a graph, and that of its weights where they are beside it."""
        file = self.graphs[graph].file  # type: ignore[index]
        return [name for name in (file, weights_file(file)) if name in self.files]

    def graph_bytes(self, graph: str) -> int:
        """Of a graph on disk, with its weights."""
        return sum(self.files[name].bytes for name in self.graph_files(graph))


def weights_file(graph: str) -> str:
    """Where the weights of the graph file `graph` are when they are too large for one protobuf."""
    return f"{graph}.data"


def manifest_from_json(raw: bytes, path: Path) -> Manifest:
    """Parses and validates. Raises BundleError with one sentence; `path` is only for the message."""
    data = parse_json(raw, path, BundleError)
    if not isinstance(data, dict) or data.get("format") != "ditedge-bundle":
        raise BundleError(f"{path}: not the manifest of a ditedge bundle")
    version = data.get("version")
    if type(version) is not int or version != MANIFEST_VERSION:  # true and 2.0 are no versions
        newer = type(version) is int and version > MANIFEST_VERSION
        raise BundleError(
            f"{path}: bundle version {version!r}, this ditedge reads version {MANIFEST_VERSION}: "
            + ("update ditedge" if newer else "export the checkpoint again")
        )
    check_requires(data.get("requires"), path)
    return validated(Manifest, data, path, BundleError)


def check_requires(names: Any, path: Path) -> None:
    """Before anything else is looked at: its sentence says more than one about a field. Raises BundleError.

    names: whatever stands there; what is no list of texts is refused later, with the other fields.
    """
    listed = names if isinstance(names, list) else []
    unknown = [name for name in listed if isinstance(name, str) and name not in UNDERSTOOD]
    if unknown:
        wanted = ", ".join(map(repr, unknown[:5]))
        raise BundleError(
            f"{path}: the bundle requires {wanted}, which ditedge {__version__} does not know: update ditedge"
        )


def decoded_at_a_time(pixels: int) -> int:
    """How many pictures of so many pixels a decoder makes at once; plans are built for as many."""
    return max(1, DECODE_PIXELS // pixels)
