"""What sizes a plan is built for, and what it will take: optimisation profiles and the memory forecast.

The manifest gives every input's shape in letters (docs/format.md): B samples, K state slots, E evaluations,
U conditioning rows. One profile per graph covers 1 .. the maximum of each; a second one of the step graph takes the
shapes of one image alone, on demand.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..bundle.manifest import Manifest, decoded_at_a_time
from ..bundle.open import Bundle
from ..errors import BundleError
from .record import ShapeRange

SLOTS = 4  # of state at least: third-order UniPC and fourth-order LMS; second-order samplers and a preview slot
CONDITIONER_ROWS = 64  # at least: the rows of a run are computed in few calls, each of which reads all weights


@dataclass(frozen=True)
class Sizes:
    """Largest values of the letters."""

    batch: int  # B
    slots: int  # K
    rows: int  # U of the step graph

    def range(self, graph: str, letter: str, image_pixels: int) -> tuple[int, int, int]:
        """(min, opt, max) of a letter in one graph."""
        if letter == "B":
            most = self.batch
            if graph in ("decoder", "preview"):  # images are decoded a few at a time: a VAE takes kilobytes a pixel
                most = min(most, decoded_at_a_time(image_pixels))
            return 1, most, most
        if letter == "E":  # an unguided step evaluates B times, a guided one 2B times
            return 1, 2 * self.batch, 2 * self.batch
        if letter == "K":
            return 1, min(2, self.slots), self.slots
        most = max(self.rows, CONDITIONER_ROWS) if graph == "conditioner" else self.rows
        return 1, min(self.batch + 1, most) if graph == "step" else most, most


def sizes_of(bundle: Bundle, max_batch: int, max_rows: int | None) -> Sizes:
    """K has room for the bundle's programs with a preview slot, and for the samplers it has no program of.

    max_rows None: 2B, which is every batch's need (each sample's label, and each sample's to guide away from).
    """
    slots = max(bundle.program(name).slots for name in bundle.manifest.programs)
    return Sizes(max_batch, max(SLOTS, slots + 1), max_rows or 2 * max_batch)


def graph_profile(manifest: Manifest, graph: str, sizes: Sizes) -> dict[str, ShapeRange]:
    """The shapes of every input with a variable dimension: {"latent": min, opt, max}."""
    info = manifest.graphs[graph]  # type: ignore[index]
    pixels = _image_pixels(manifest, graph)
    profile = {}
    for tensor in info.inputs:
        if all(isinstance(dimension, int) for dimension in tensor.shape):
            continue
        ranges = [_range(dimension, graph, sizes, pixels) for dimension in tensor.shape]
        least, typical, most = ([r[i] for r in ranges] for i in range(3))
        profile[tensor.name] = ShapeRange(min=least, opt=typical, max=most)
    return profile


def one_image_shapes(bundle: Bundle, sizes: Sizes) -> dict[str, list[int]]:
    """What a run binds to the step graph for one image: the default program, guided where the model can be."""
    evaluations = 1 if bundle.manifest.model.null_class is None else 2
    slots, rows = min(bundle.program().slots, sizes.slots), min(evaluations, sizes.rows)
    of = {"B": 1, "E": evaluations, "K": slots, "U": rows}

    def size(dimension: int | str) -> int:
        letter, more = _letter(dimension, "step")
        return of.get(letter, 0) + more

    return {
        tensor.name: [size(dimension) for dimension in tensor.shape]
        for tensor in bundle.manifest.graphs["step"].inputs
        if any(isinstance(dimension, str) for dimension in tensor.shape)
    }


def _range(dimension: int | str, graph: str, sizes: Sizes, pixels: int) -> tuple[int, int, int]:
    letter, more = _letter(dimension, graph)
    least, typical, most = sizes.range(graph, letter, pixels) if letter else (0, 0, 0)
    return least + more, typical + more, most + more


def _letter(dimension: int | str, graph: str) -> tuple[str, int]:
    """ "K + 2" -> ("K", 2); a fixed size has no letter."""
    if isinstance(dimension, int):
        return "", dimension
    letter, _, offset = dimension.replace(" ", "").partition("+")
    if letter not in ("B", "K", "E", "U") or (offset and not offset.isdigit()):
        raise BundleError(f"manifest: graph {graph}: dimension '{dimension}' is not one of B, K, E, U")
    return letter, int(offset or 0)


def _image_pixels(manifest: Manifest, graph: str) -> int:
    """Of a picture that `graph` makes; 1 where it makes none."""
    if graph not in ("decoder", "preview"):
        return 1
    height, width, _ = manifest.picture_size(graph)
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
    weights = [manifest.graph_bytes(name) for name in manifest.graphs]
    tokens = (model.input_size // model.patch_size) ** 2
    evaluations = 2 * sizes.batch
    block = evaluations * tokens * model.hidden_size * 4 * (2 + model.mlp_ratio + 3)
    scores = evaluations * model.num_heads * tokens * tokens * 4
    state = sizes.batch * (2 * sizes.slots + 2) * model.in_channels * model.input_size**2 * 4
    return Forecast(HOST_BASE + HOST_COPIES * max(weights), sum(weights), int(block) + scores + state)


HOST_BASE = 600 << 20
HOST_COPIES = 4
