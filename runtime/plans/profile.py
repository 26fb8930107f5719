"""What sizes a plan is built for, and what it will take: optimisation profiles and the memory forecast.

The manifest gives every input's shape in letters (docs/format.md): B samples, K state slots, E evaluations,
U conditioning rows; of a model that takes prompts P of them, T tokens, H x W the latent, h x w its patches. One profile
per graph covers 1 .. the maximum of each, at one size of latents: there is a further one for each further size. A
second one of the step graph takes the shapes of one image alone, on demand.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..bundle.manifest import Manifest, decoded_at_a_time
from ..bundle.open import Bundle
from ..errors import BundleError
from .record import PLAN_NAMES, ShapeRange

SLOTS = 4  # of state at least: third-order UniPC and fourth-order LMS; second-order samplers and a preview slot
CONDITIONER_ROWS = 64  # at least: the rows of a run are computed in few calls, each of which reads all weights
LETTERS = ("B", "K", "E", "U", "P", "T", "H", "W", "h", "w")
Latent = tuple[int, int]  # H, W


@dataclass(frozen=True)
class Sizes:
    """Largest values of the letters; of a model that takes prompts the latents that profiles are built for, too."""

    batch: int  # B
    slots: int  # K
    rows: int  # U of the step graph
    tokens: int = 1  # T of the context graph: a runtime pads every prompt to it
    context: int = 1  # T of the step: rows of a prompt's context
    latents: tuple[Latent, ...] = ()  # none: the graphs have one size
    patch: int = 1  # H / h
    evaluations: int = 2  # of an image, where it is guided; 1: guidance is no second evaluation

    def range(self, graph: str, letter: str, image_pixels: int, latent: Latent = (0, 0)) -> tuple[int, int, int]:
        """(min, opt, max) of a letter in one graph."""
        if not self.latents and letter in "THWhw":  # no size was asked for
            return 1, self.rows, self.rows
        exact = {"T": self.tokens if graph == "context" else self.context, "H": latent[0], "W": latent[1]}
        exact |= {"h": latent[0] // self.patch, "w": latent[1] // self.patch}
        if letter in exact:
            return exact[letter], exact[letter], exact[letter]
        if letter == "B":
            most = self.batch
            if graph in ("decoder", "preview"):  # images are decoded a few at a time: a VAE takes kilobytes a pixel
                most = min(most, decoded_at_a_time(image_pixels))
            return 1, most, most
        if letter == "E":  # an unguided step evaluates B times, a guided one 2B times
            return 1, self.evaluations * self.batch, 2 * self.batch
        if letter == "K":
            return 1, min(2, self.slots), self.slots
        if letter == "P":  # each image's prompt, and most often one that all are guided away from
            return (1, 1, 1) if graph == "context" else (1, self.batch + self.evaluations - 1, 2 * self.batch)
        most = max(self.rows, CONDITIONER_ROWS) if graph == "conditioner" else self.rows
        return 1, min(self.batch + 1, most) if graph == "step" else most, most


def sizes_of(bundle: Bundle, max_batch: int, max_rows: int | None, latents: Sequence[Latent] = ()) -> Sizes:
    """K has room for the bundle's programs with a preview slot, and for the samplers it has no program of.

    max_rows None: 2B, which is every batch's need (each sample's label, and each sample's to guide away from).
    latents: H, W of a model that takes prompts; none is the size of training.
    """
    slots = max(bundle.program(name).slots for name in bundle.manifest.programs)
    sizes = Sizes(max_batch, max(SLOTS, slots + 1), max_rows or 2 * max_batch)
    text, side = bundle.manifest.text, bundle.manifest.model.input_size
    if text is None:
        return sizes
    rows = (bundle.manifest.output_shape("context", "context") or (None, None))[1]
    latents = tuple(latents) or ((side, side),)
    evaluations = 2 if text.guidance == "true" else 1
    sizes = replace(sizes, tokens=text.tokens, context=rows or text.tokens, evaluations=evaluations)
    return replace(sizes, latents=latents, patch=text.multiple)


def graph_profiles(manifest: Manifest, graph: str, sizes: Sizes) -> list[dict[str, ShapeRange]]:
    """The profiles of a graph: one for each size of latents, where it depends on that, else one."""
    found: list[dict[str, ShapeRange]] = []
    for latent in sizes.latents or ((0, 0),):
        profile = _profile(manifest, graph, sizes, latent)
        found += [profile] if profile not in found else []
    return found


def graph_profile(manifest: Manifest, graph: str, sizes: Sizes) -> dict[str, ShapeRange]:
    """The first of them: the shapes of every input with a variable dimension, {"latent": min, opt, max}."""
    return graph_profiles(manifest, graph, sizes)[0]


def _profile(manifest: Manifest, graph: str, sizes: Sizes, latent: Latent) -> dict[str, ShapeRange]:
    info = manifest.graphs[graph]  # type: ignore[index]
    pixels = _image_pixels(manifest, graph, latent)
    profile = {}
    for tensor in info.inputs:
        if all(isinstance(dimension, int) for dimension in tensor.shape):
            continue
        ranges = [_range(dimension, graph, sizes, pixels, latent) for dimension in tensor.shape]
        least, typical, most = ([r[i] for r in ranges] for i in range(3))
        profile[tensor.name] = ShapeRange(min=least, opt=typical, max=most)
    return profile


def one_image_shapes(bundle: Bundle, sizes: Sizes) -> dict[str, list[int]]:
    """What a run binds to the step graph for one image: the default program, guided where the model can be.

    Of a model that takes prompts at the first of the sizes; both evaluations read one row of modulation unless its
    conditioner reads a vector of each prompt.
    """
    text, model = bundle.manifest.text, bundle.manifest.model
    evaluations = 1 if text is None and model.null_class is None else sizes.evaluations
    of_prompts = bundle.manifest.output_shape("context", "vector") is not None
    rows = evaluations if text is None or of_prompts else 1
    slots, rows = min(bundle.program().slots, sizes.slots), min(rows, sizes.rows)
    of = {"B": 1, "E": evaluations, "K": slots, "U": rows, "P": evaluations}
    latent = sizes.latents[0] if sizes.latents else (0, 0)

    def size(dimension: int | str) -> int:
        times, letter, more = _parts(dimension, "step")
        value = of[letter] if letter in of else sizes.range("step", letter, 1, latent)[0] if letter else 0
        return times * value + more

    return {
        tensor.name: [size(dimension) for dimension in tensor.shape]
        for tensor in bundle.manifest.graphs["step"].inputs
        if any(isinstance(dimension, str) for dimension in tensor.shape)
    }


def _range(dimension: int | str, graph: str, sizes: Sizes, pixels: int, latent: Latent) -> tuple[int, int, int]:
    times, letter, more = _parts(dimension, graph)
    least, typical, most = sizes.range(graph, letter, pixels, latent) if letter else (0, 0, 0)
    return times * least + more, times * typical + more, times * most + more


def _parts(dimension: int | str, graph: str) -> tuple[int, str, int]:
    """ "K + 2" -> (1, "K", 2), "2*h" -> (2, "h", 0); a fixed size has no letter."""
    if isinstance(dimension, int):
        return 1, "", dimension
    found = re.fullmatch(r"(?:(\d{1,4})\*)?([A-Za-z])(?:\+(\d{1,4}))?", dimension.replace(" ", ""))
    if found is None or found[2] not in LETTERS:
        raise BundleError(f"manifest: graph {graph}: dimension '{dimension}' is not one of {', '.join(LETTERS)}")
    return int(found[1] or 1), found[2], int(found[3] or 0)


def _image_pixels(manifest: Manifest, graph: str, latent: Latent) -> int:
    """Of a picture that `graph` makes; 1 where it makes none."""
    if graph not in ("decoder", "preview"):
        return 1
    height, width, _ = manifest.picture_size(graph, latent if any(latent) else None)
    return height * width


@dataclass(frozen=True)
class Forecast:
    """Bytes. host: peak of the building process; weights and activations: of the device that runs the plans."""

    host: int
    weights: int
    activations: int

    @property
    def sentence(self) -> str:
        return (
            f"about {self.host / 1e9:.1f} GB of memory here; on the GPU {self.weights / 1e9:.2f} GB of weights, "
            f"{self.activations / 1e9:.2f} GB more"
        )


def forecast(manifest: Manifest, sizes: Sizes) -> Forecast:
    """Estimates, printed before a build that may not fit.

    host: a library and a builder (HOST_BASE), and the largest graph's weights HOST_COPIES times: parsed, transformed,
    serialised. bench/build_size.py measured with TensorRT-RTX 1.7 for demo, S, XL in float16 and XL: 0.4, 0.8, 3.8 and
    6.8 GB; this says 0.7, 1.0, 4.2 and 7.8. activations: the widest point of a block (float32 residual, the MLP's
    hidden units) and the attention scores of one layer, where they are not fused.
    """
    model = manifest.model
    weights = [manifest.graph_bytes(name) for name in PLAN_NAMES if name in manifest.graphs]
    height, width = max(sizes.latents, key=lambda latent: latent[0] * latent[1], default=(model.input_size,) * 2)
    tokens = (height // model.patch_size) * (width // model.patch_size)
    evaluations = 2 * sizes.batch
    block = evaluations * tokens * model.hidden_size * 4 * (2 + model.mlp_ratio + 3)
    scores = evaluations * model.num_heads * tokens * tokens * 4
    state = sizes.batch * (2 * sizes.slots + 2) * model.in_channels * height * width * 4
    rows = manifest.output_shape("context", "context") or (0,)
    context = 2 * sizes.batch * sizes.context * int(rows[-1] or 0) * 4
    return Forecast(HOST_BASE + HOST_COPIES * max(weights), sum(weights), int(block) + scores + state + context)


HOST_BASE = 600 << 20
HOST_COPIES = 4
