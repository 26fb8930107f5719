"""Static QuantizeLinear/DequantizeLinear for TensorRT, in standard ONNX operators only.

TensorRT since 10 builds strongly typed networks: it does what the graph says and calibrates nothing. Of a linear

    x -> Q(s_x) -> DQ(s_x) -> MatMul(., DQ(q_w, s_w)) -> + bias

it makes one INT8 or FP8 product. Its rules (met by building with TensorRT-RTX): scales are constants, zero points are
0, and weights are stored rounded with a DQ alone: Q and DQ of float weights are refused. Each linear input has one Q/DQ
pair; q, k and v are one linear, so they share theirs. Everything else, attention among it, stays as it was. The pairs
begin and end in the graph's own type, so a later pass may change that type and the scales' with it.

ONNX Runtime computes the same graph on the CPU by simulation: the same rounding, in float arithmetic or int8 kernels.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ...runtime.errors import RequestError
from ..graph.linears import Linear
from ..graph.surgery import constant, insert, require_opset
from .dynamic_int8 import SMALLEST_SCALE, quantised_weight, zero_points

FP8_LARGEST = 448.0  # of E4M3 (Micikevicius et al. 2022, arXiv:2209.05433)
BLOCK_SIZES = (128, 64, 32, 16)  # of INT4 weights, along the input channels


def static_int8(model: Any, linears: list[Linear], amax: dict[str, float], per_channel: bool = True) -> None:
    """W8A8 in place. amax: of each linear's input, by name. per_channel: weight scales per output column, or one."""
    for linear in linears:
        matrix = linear.matrix
        weight, scale = quantised_weight(matrix) if per_channel else _one_scale(matrix)
        zero = constant(model, "int8_zero", np.array(0, np.int8))
        _round_input(model, linear, max(amax[linear.name] / 127, SMALLEST_SCALE), zero)
        _store_weight(model, linear, weight, scale, None)


def static_fp8(model: Any, linears: list[Linear], amax: dict[str, float]) -> None:
    """FP8 (E4M3) weights and activations in place, one scale per tensor and one per output column of the weights."""
    require_opset(model, 19)
    for linear in linears:
        matrix = linear.matrix
        scale = np.maximum(np.abs(matrix).max(axis=0) / FP8_LARGEST, SMALLEST_SCALE).astype(np.float32)
        weight = np.clip(matrix / scale, -FP8_LARGEST, FP8_LARGEST).astype(ml_dtypes.float8_e4m3fn)
        zero = constant(model, "fp8_zero", np.zeros((), ml_dtypes.float8_e4m3fn), ir.DataType.FLOAT8E4M3FN)
        _round_input(model, linear, max(amax[linear.name] / FP8_LARGEST, SMALLEST_SCALE), zero)
        _store_weight(model, linear, weight, scale, ir.DataType.FLOAT8E4M3FN)


def blockwise_int4(model: Any, linears: list[Linear], runtime: str) -> None:
    """INT4 weights only, in blocks of input channels, in place; activations stay float.

    "tensorrt": int4 [I, O] and DequantizeLinear with block_size. "onnxruntime": MatMulNBits, which computes from the
    packed weights (a DequantizeLinear would be folded into float32 weights at load).
    """
    for linear in linears:
        block = block_size(linear.features[0])
        if runtime == "onnxruntime" and block not in BLOCK_SIZES:
            raise RequestError(
                f"{linear.name} has {linear.features[0]} input channels, and ONNX Runtime's int4 takes multiples of "
                f"{BLOCK_SIZES[-1]}: leave it in float32 (--keep-layer {linear.name})"
            )
        weight, scale = _int4_blocks(linear.matrix, block)
        if runtime == "onnxruntime":
            _matmul_nbits(model, linear, weight, scale, block)
        else:
            require_opset(model, 21)
            whole = _dequantised(model, linear, weight.astype(ml_dtypes.int4), scale, ir.DataType.INT4, axis=0,
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


def _matmul_nbits(model: Any, linear: Linear, weight: np.ndarray, scale: np.ndarray, block: int) -> None:
    """com.microsoft MatMulNBits: nibbles [O, I / block, block / 2] with zero point 8, scales [O * I / block]."""
    inputs, outputs = linear.features
    nibbles = (weight.T.reshape(outputs, inputs // block, block) + 8).astype(np.uint8)
    packed = constant(model, f"{linear.name}.weight_int4", nibbles[..., 0::2] | (nibbles[..., 1::2] << 4))
    scales = constant(model, f"{linear.name}.weight_scale", np.ascontiguousarray(scale.T).reshape(-1))
    old = linear.node.outputs[0]
    new = insert(model, linear.node, "MatMulNBits", [linear.input, packed, scales], f"{linear.name}.product",
                 domain="com.microsoft", K=inputs, N=outputs, bits=4, block_size=block)  # fmt: skip
    new.shape, new.type = old.shape, old.type
    ir.convenience.replace_all_uses_with(old, new)
    model.graph.remove(linear.node, safe=True)


def _one_scale(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One weight scale for the whole matrix: the naive baseline."""
    scale = np.float32(max(np.abs(matrix).max() / 127, SMALLEST_SCALE))
    return np.rint(matrix / scale).astype(np.int8), np.array(scale)


def _round_input(model: Any, linear: Linear, scale: float, zero: Any) -> None:
    name, node = linear.name, linear.node
    step = constant(model, f"{name}.x_scale", np.array(scale, np.float32))
    rounded = insert(model, node, "QuantizeLinear", [linear.input, step, zero], f"{name}.x_rounded")
    back = insert(model, node, "DequantizeLinear", [rounded, step, zero], f"{name}.x")
    back.shape, back.type = linear.input.shape, linear.input.type
    node.replace_input_with(0, back)


def _store_weight(model: Any, linear: Linear, weight: np.ndarray, scale: np.ndarray, dtype: Any) -> None:
    attributes = {"axis": 1} if scale.ndim else {}
    linear.node.replace_input_with(1, _dequantised(model, linear, weight, scale, dtype, **attributes))


def _dequantised(
    model: Any, linear: Linear, weight: np.ndarray, scale: np.ndarray, dtype: Any, **attributes: Any
) -> Any:
    """DequantizeLinear of a stored weight [I, O]. The exporter's step graphs hold every linear that way round."""
    stored = constant(model, f"{linear.name}.weight_rounded", np.ascontiguousarray(weight), dtype)
    step = constant(model, f"{linear.name}.weight_scale", scale)
    inputs = [stored, step, *([zero_points(model, linear.name, scale)] if weight.dtype == np.int8 else [])]
    return insert(model, linear.node, "DequantizeLinear", inputs, f"{linear.name}.weight", **attributes)
