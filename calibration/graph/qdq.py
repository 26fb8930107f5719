"""Static QuantizeLinear/DequantizeLinear for TensorRT, in standard ONNX operators only.

TensorRT since 10 builds strongly typed networks: it does what the graph says and calibrates nothing. Of a linear

    x -> Q(s_x) -> DQ(s_x) -> MatMul(., DQ(q_w, s_w)) -> + bias

it makes one INT8 or FP8 product. Its rules (met by building with TensorRT-RTX): scales are constants, zero points are
0, and weights are stored rounded with a DQ alone: Q and DQ of float weights are refused. Each linear input has one Q/DQ
pair, which q, k and v share where they are linears of their own. Everything else, attention among it, stays as it was.
The pairs begin and end in the graph's own type, so a later pass may change that type and the scales' with it.

ONNX Runtime computes the same graph on the CPU by simulation: the same rounding, in float arithmetic or int8 kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .linears import Linear
from .surgery import constant, insert

SMALLEST_SCALE = 1e-8  # of numbers that are all zero: any number but 0


def zero_points(model: Any, name: str, scale: np.ndarray) -> Any:
    """int8 zeros, one for each scale of the weight `name`: ONNX's default, but ONNX Runtime wants them said.

    Where u8 x s8 sums saturate it moves weights to uint8 (`engine_ort.EXACT_SUMS`). Without zero points it would then
    give a whole matrix one, which its DequantizeLinear refuses; nor may two weights share theirs.
    """
    return constant(model, f"{name}.weight_zero", np.zeros(scale.shape, np.int8))


def round_input(model: Any, linear: Linear, scale: float, zero: Any) -> None:
    """A Q/DQ pair in front of the linear, or the one that another linear of the same input has with this scale.

    zero: the zero point, whose type is that of the rounded numbers.
    """
    back = _rounded_before(linear, np.float32(scale), zero)
    if back is None:
        name, node = linear.name, linear.node
        step = constant(model, f"{name}.x_scale", np.array(scale, np.float32))
        rounded = insert(model, node, "QuantizeLinear", [linear.input, step, zero], f"{name}.x_rounded")
        back = insert(model, node, "DequantizeLinear", [rounded, step, zero], f"{name}.x")
        back.shape, back.type = linear.input.shape, linear.input.type
    linear.node.replace_input_with(0, back)


def _rounded_before(linear: Linear, scale: np.float32, zero: Any) -> Any:
    """The output of such a pair behind the linear's input; None where there is none."""
    for reader in linear.input.consumers():
        if reader.op_type == "QuantizeLinear" and reader.inputs[2] is zero:
            if reader.inputs[1].const_value.numpy() == scale:
                return reader.outputs[0].consumers()[0].outputs[0]
    return None


def store_weight(model: Any, linear: Linear, weight: np.ndarray, scale: np.ndarray, dtype: Any) -> None:
    """The linear reads the rounded weight [I, O] through a DequantizeLinear. scale: one number, or [O]."""
    attributes = {"axis": 1} if scale.ndim else {}
    linear.node.replace_input_with(1, dequantised(model, linear, weight, scale, dtype, **attributes))


def dequantised(
    model: Any, linear: Linear, weight: np.ndarray, scale: np.ndarray, dtype: Any, **attributes: Any
) -> Any:
    """DequantizeLinear of a stored weight [I, O]. The exporter's step graphs hold every linear that way round."""
    stored = constant(model, f"{linear.name}.weight_rounded", np.ascontiguousarray(weight), dtype)
    step = constant(model, f"{linear.name}.weight_scale", scale)
    inputs = [stored, step, *([zero_points(model, linear.name, scale)] if weight.dtype == np.int8 else [])]
    return insert(model, linear.node, "DequantizeLinear", inputs, f"{linear.name}.weight", **attributes)
