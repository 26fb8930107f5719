"""INT4: weights alone, in blocks of input channels; activations stay float."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ...runtime.errors import RequestError
from ...runtime.loop.verify import LARGEST_ERROR
from ..graph.linears import Linear
from ..graph.qdq import dequantised
from ..graph.surgery import constant, insert, require_opset, take_place
from .format import Quantised, Ranges, Scheme

BLOCK_SIZES = (128, 64, 32, 16)  # along the input channels


def matmul_nbits(model: Any, linears: list[Linear], amax: Ranges | None = None) -> None:
    """In place, for ONNX Runtime: MatMulNBits, which computes from the packed weights.

    A DequantizeLinear would be folded into float32 weights at load.
    """
    for linear in linears:
        block = block_size(linear.features[0])
        if block not in BLOCK_SIZES:
            raise RequestError(
                f"{linear.name} has {linear.features[0]} input channels, and ONNX Runtime's int4 takes multiples of "
                f"{BLOCK_SIZES[-1]}: leave it in float32 (--keep-layer {linear.name})"
            )
        weight, scale = _int4_blocks(linear.matrix, block)
        _replace_by_nibbles(model, linear, weight, scale, block)


def dequantised_blocks(model: Any, linears: list[Linear], amax: Ranges | None = None) -> None:
    """In place, for TensorRT: int4 [I, O] and DequantizeLinear with block_size."""
    require_opset(model, 21)
    for linear in linears:
        block = block_size(linear.features[0])
        weight, scale = _int4_blocks(linear.matrix, block)
        whole = dequantised(model, linear, weight.astype(ml_dtypes.int4), scale, ir.DataType.INT4, axis=0,
                            block_size=block)  # fmt: skip
        linear.node.replace_input_with(1, whole)


def block_size(channels: int) -> int:
    """The largest usual block that divides the input channels; all of them as one block where none does."""
    return next((size for size in BLOCK_SIZES if channels % size == 0), channels)


def _int4_blocks(matrix: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """[I, O] -> int8 values in -8..7 [I, O], scales [I / block, O] float32.

    The largest value of a block in size becomes -8, so that all 16 levels are used (as in llama.cpp's Q4_0).
    """
    blocks = matrix.reshape(-1, block, matrix.shape[1])
    index = np.abs(blocks).argmax(axis=1, keepdims=True)
    extreme = np.take_along_axis(blocks, index, axis=1)
    scale = np.where(extreme == 0, np.float32(1), extreme / -8).astype(np.float32)
    values = np.clip(np.rint(blocks / scale), -8, 7).astype(np.int8)
    return values.reshape(matrix.shape), scale[:, 0]


def _replace_by_nibbles(model: Any, linear: Linear, weight: np.ndarray, scale: np.ndarray, block: int) -> None:
    """com.microsoft MatMulNBits: nibbles [O, I / block, block / 2] with zero point 8, scales [O * I / block]."""
    inputs, outputs = linear.features
    nibbles = (weight.T.reshape(outputs, inputs // block, block) + 8).astype(np.uint8)
    packed = constant(model, f"{linear.name}.weight_int4", nibbles[..., 0::2] | (nibbles[..., 1::2] << 4))
    scales = constant(model, f"{linear.name}.weight_scale", np.ascontiguousarray(scale.T).reshape(-1))
    new = insert(model, linear.node, "MatMulNBits", [linear.input, packed, scales], f"{linear.name}.product",
                 domain="com.microsoft", K=inputs, N=outputs, bits=4, block_size=block)  # fmt: skip
    take_place(linear.node.outputs[0], new)
    model.graph.remove(linear.node, safe=True)


BLOCKS: dict[str, Any] = {"activations": "float32", "weights": "blocks", "ceiling": LARGEST_ERROR}  # at worst 0.27
FORMAT = Quantised(
    bits=4,
    schemes={"onnxruntime": Scheme(matmul_nbits, **BLOCKS), "tensorrt": Scheme(dequantised_blocks, **BLOCKS)},
    limits={"max_drift": 0.18, "min_psnr": 20},  # 13 % and 24 dB
)
