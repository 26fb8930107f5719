"""A VAE's decoder, mostly convolutions, in int8: arithmetic for ONNX Runtime, weights alone elsewhere.

Weights alone, "int8" in the manifest: a quarter of the file, turned back into floats when it runs. Every output channel
has its own scale. Linears (attention's four) stay as they are: ONNX Runtime would make integer products of them
(MatMulNBits), and they are a fiftieth of Stable Diffusion's decoder. Arithmetic, "int8-static": static_decoder.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ...runtime.bundle.open import Bundle
from ...runtime.errors import BundleError
from ...runtime.loop.decoded import decoder_psnr, latents_to_decode
from ...runtime.report import Report, silent
from ..graph.qdq import SMALLEST_SCALE, zero_points
from ..graph.surgery import constant, insert, load_graph, save_graph
from .static_decoder import calibration_latents, static_int8

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
SMALLEST_HALF = 6e-8  # the smallest float16 above 0
DECODER_PSNR = 32.0  # dB
STATIC_PSNR = 35.0  # dB: below, the activations stay float32
OTHERWISE = "leave the decoder alone (--no-decoder)"


def quantise_decoder(bundle: Bundle, path: Path, form: str, report: Report = silent) -> str:
    """Writes the bundle's decoder in int8 to `path` -> what the manifest calls it.

    Raises BundleError when not even int8 weights alone paint the same pictures.
    """
    report("quantising decoder.onnx")
    latents = latents_to_decode(bundle)
    if form == "onnxruntime" and bundle.manifest.vae is not None and bundle.manifest.vae.precision == "float32":
        own, size = latents[:-1], bundle.manifest.graph_bytes("decoder")
        static_int8(bundle.graph_file("decoder"), path, calibration_latents(own, size))
        psnr = decoder_psnr(path, bundle, latents, 0, OTHERWISE)
        report(f"decoder in int8: PSNR of the decoded pictures {psnr:.1f} dB")
        if psnr >= STATIC_PSNR:
            return "int8-static"
        report(f"decoder: below {STATIC_PSNR:g} dB only its weights become int8: smaller and not quicker")
    psnr = int8_weights(bundle, path, latents)
    report(f"decoder with int8 weights: PSNR of the decoded pictures {psnr:.1f} dB")
    return "int8"


def int8_weights(bundle: Bundle, path: Path, latents: np.ndarray) -> float:
    """Writes the bundle's decoder with int8 weights to `path` -> PSNR in dB of what it decodes.

    Raises BundleError when the pictures are further apart than DECODER_PSNR.
    """
    model = load_graph(bundle.graph_file("decoder"))
    names = convolutions_at_rest(model)
    save_graph(model, path)
    left = [node.name for node in load_graph(path).graph if node.op_type == "Conv" and node.inputs[1].is_initializer()]
    if not names or left:
        raise BundleError(f"{path.name}: {len(left)} convolutions kept their float weights, {len(names)} did not")
    return decoder_psnr(path, bundle, latents, DECODER_PSNR, OTHERWISE)


def convolutions_at_rest(model: Any) -> list[str]:
    """Replaces every float weight of a Conv by int8 and a DequantizeLinear, in place -> names of the weights."""
    done: dict[Any, Any] = {}
    for node in model.graph:
        if node.op_type != "Conv":
            continue
        weight = node.inputs[1]
        if weight.is_initializer() and weight.dtype in FLOATS:
            if weight not in done:
                done[weight] = _at_rest(model, node, weight)
            node.replace_input_with(1, done[weight])
    return [weight.name for weight in done]


def _at_rest(model: Any, node: Any, weight: Any) -> Any:
    """[O, I, kh, kw] float32 or float16 -> DequantizeLinear of int8 with a scale [O] of the same type."""
    array = weight.const_value.numpy()
    smallest = SMALLEST_SCALE if weight.dtype == ir.DataType.FLOAT else SMALLEST_HALF
    largest = np.abs(array.reshape(len(array), -1).astype(np.float32)).max(axis=1)
    scale = np.maximum(largest / 127, smallest).astype(array.dtype)
    steps = array.astype(np.float32) / scale.astype(np.float32).reshape(-1, 1, 1, 1)
    rounded = np.clip(np.rint(steps), -127, 127).astype(np.int8)
    inputs = [constant(model, f"{weight.name}_int8", rounded), constant(model, f"{weight.name}_scale", scale)]
    inputs.append(zero_points(model, weight.name, scale))
    whole = insert(model, node, "DequantizeLinear", inputs, f"{weight.name}_whole", axis=0)
    whole.shape, whole.type = weight.shape, weight.type
    return whole
