"""A VAE's decoder in int8 arithmetic: ONNX Runtime's own quantiser, then what it leaves in float32 in parts.

Convolutions get uint8 activations and int8 weights with a scale per output channel, and become QLinearConv in NHWC.
The first and the last ones, which read latents and make colours, stay float32: a thousandth of the work, and 14 dB of
the picture (measured). So do attention and the norms' arithmetic. An upsampling repeats rounded numbers.

Weights are -64 to 64, half of int8's steps: sums of two products then end before 16 bits do, so the quick kernels of
AVX2 are exact (`engine_ort.EXACT_SUMS` finds nothing to widen), 1.9 times as quick as those for all of int8. It costs
the picture 0.04 dB of 46.0 (measured on a trained decoder): the loss is the activations'.

Scales are constants, so they have to suit every latent. Tiny decoders have no norms, and their ranges are those of the
pictures' colours: white noise alone has no flat areas and clips them (28 dB), two pictures do as well (29 dB).
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..graph.parts import attention_in_rows, norms_in_parts
from ..graph.residuals import last_convolution_in_parts, residuals_in_parts
from ..graph.surgery import load_graph, require_opset, save_graph

LARGE_DECODER = 50_000_000  # bytes: Stable Diffusion's has 198 MB and norms, which need few latents; a tiny one 5 MB
SPLIT_OPSET = 18  # Split by a number of outputs


def calibration_latents(own: np.ndarray, decoder_bytes: int) -> np.ndarray:
    """[S, C, H, W] float32: the model's `own`, and normal ones with areas of every size, flat to noisy."""
    count = 8 if decoder_bytes > LARGE_DECODER else 32
    rng = np.random.default_rng(0)
    return np.concatenate([own, [_latent_of_areas(rng, own.shape[1:]) for _ in range(count)]]).astype(np.float32)


def _latent_of_areas(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """[C, H, W] of variance 1: noise of squares of 1, 2, 4, ... pixels, mixed in random shares."""
    channels, height, width = shape
    sides = [1 << i for i in range(max(height, width).bit_length() + 1)]
    latent = np.zeros(shape)
    for side, share in zip(sides, rng.dirichlet(np.ones(len(sides))), strict=True):
        small = rng.standard_normal((channels, -(-height // side), -(-width // side)))
        latent += np.sqrt(share) * small.repeat(side, 1).repeat(side, 2)[:, :height, :width]
    return latent


def static_int8(source: Path, path: Path, latents: np.ndarray) -> None:
    """Writes the float32 decoder `source` in int8 to `path`. latents [S, C, H, W]."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    exact = load_graph(source)
    resizes = [node.name for node in exact.graph if node.op_type == "Resize"]
    with _quiet():
        quantize_static(
            source,
            path,
            _Latents(latents),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            calibrate_method=CalibrationMethod.MinMax,
            op_types_to_quantize=["Conv", "Resize"],
            nodes_to_quantize=[*inner_convolutions(exact), *resizes],
            extra_options={"ForceQuantizeNoInputCheck": True},  # a Resize behind floats, too
        )
    model = load_graph(path)
    norms_in_parts(model)
    residuals_in_parts(model)
    last_convolution_in_parts(model)
    if attention_in_rows(model):
        require_opset(model, SPLIT_OPSET)
    save_graph(model, path)


def inner_convolutions(model: Any) -> list[str]:
    """Names of those that neither read as many channels as a latent has nor make a picture's one or three."""
    latent = int(model.graph.inputs[0].shape[1])
    picture = int(model.graph.outputs[0].shape[3])
    return [
        str(node.name)
        for node in model.graph
        if node.op_type == "Conv" and node.inputs[1].shape[1] != latent and node.inputs[1].shape[0] != picture
    ]


class _Latents:
    """What the quantiser reads, one latent at a time (a CalibrationDataReader by its method)."""

    def __init__(self, latents: np.ndarray) -> None:
        self._left = iter(latents)

    def get_next(self) -> dict[str, np.ndarray] | None:
        latent = next(self._left, None)
        return None if latent is None else {"latent": latent[None]}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser advises a pass over the graph, in the log, whatever the graph is."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)
