"""INT8: weights and activations. Static scales for TensorRT, and for ONNX Runtime integer products as follows.

x [.., I] @ W [I, O] with W = q_w s_w (s_w per output column) and x = (q_x - z) s_x is (q_x - z) @ q_w in int32, times
s_x s_w. Weights are signed and activations unsigned because that pair, and no other, has fast kernels on x86.

s_x is one number per row of x, so a token never sees the others, nor an image its batch; z is a constant. (One scale
for the whole batch, as quantize_dynamic has it, is a twentieth quicker and coarser, and an image depends on its batch.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...runtime.loop.verify import LARGEST_ERROR
from ..graph.attention import write_out_softmax
from ..graph.heads import PARTS, heads_of, to_heads
from ..graph.linears import Linear
from ..graph.qdq import SMALLEST_SCALE, round_input, store_weight, zero_points
from ..graph.surgery import constant, insert, take_place
from .format import Quantised, Ranges, Scheme
from .smooth import STRENGTH

GELU_MINIMUM = 0.170045  # min over x of -gelu(x), tanh approximation: 0.17004
GELU_ZERO_POINT = 32  # of 255 levels, 223 for the positive side: finer than 127 levels wherever a row exceeds 0.67


def quantised_weight(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[I, O] float32 -> int8 [I, O] and scale [O] float32 per output column, symmetric, rounded half to even."""
    scale = np.maximum(np.abs(matrix).max(axis=0) / 127, SMALLEST_SCALE).astype(np.float32)
    return np.rint(matrix / scale).astype(np.int8), scale


def dynamic_int8(model: Any, linears: list[Linear], amax: Ranges | None = None) -> None:
    """Replaces each linear's MatMul by an integer one, in place: that of q, k and v together by one of each."""
    write_out_softmax(model)
    for linear in linears:
        weight, scale = quantised_weight(linear.matrix)
        rounded, heads = _rounded(model, linear), heads_of(linear)
        if heads is not None:
            for part, some in enumerate(np.split(np.arange(len(scale)), PARTS)):
                name = f"{linear.name}.{'qkv'[part]}"
                to_heads(model, heads, part, _product(model, linear, rounded, weight[:, some], scale[some], name), name)
            for node in reversed(heads.nodes):
                model.graph.remove(node, safe=True)
        else:
            take_place(linear.node.outputs[0], _product(model, linear, rounded, weight, scale, linear.name))
        model.graph.remove(linear.node, safe=True)


@dataclass(frozen=True)
class _Rounded:
    """A linear's input as uint8 (ir.Value)."""

    rows: Any  # [rows, I]
    zero: Any  # the zero point, a number
    by_row: Any  # [rows, 1] float32: a scale each
    shape: Any  # [..]: of the input but for its last axis


def _rounded(model: Any, linear: Linear) -> _Rounded:
    """One scale per row. Rows are flattened to one axis, over which QuantizeLinear takes a vector of scales."""
    node, name, inputs = linear.node, linear.name, linear.features[0]
    zero_point = GELU_ZERO_POINT if linear.after_gelu else 128
    levels = 255 - zero_point
    floor = GELU_MINIMUM / zero_point if linear.after_gelu else SMALLEST_SCALE
    last = constant(model, "axis_last", np.array([-1], np.int64))

    x = insert(model, node, "Reshape", [linear.input, constant(model, f"rows_of_{inputs}", np.array([-1, inputs]))],
               f"{name}.rows")  # fmt: skip
    size = x if linear.after_gelu else insert(model, node, "Abs", [x], f"{name}.abs")
    largest = insert(model, node, "ReduceMax", [size, last], f"{name}.amax", keepdims=0)
    step = constant(model, f"one_over_{levels}", np.array(1 / levels, np.float32))
    scale = insert(model, node, "Mul", [largest, step], f"{name}.amax_scale")
    least = constant(model, f"least_scale_{zero_point}", np.array(floor, np.float32))
    scale = insert(model, node, "Max", [scale, least], f"{name}.x_scale")
    zero = constant(model, f"uint8_{zero_point}", np.array(zero_point, np.uint8))
    count = insert(model, node, "Shape", [scale], f"{name}.count")
    zeros = insert(model, node, "Expand", [zero, count], f"{name}.x_zero")
    rows = insert(model, node, "QuantizeLinear", [x, scale, zeros], f"{name}.x_uint8", axis=0)
    by_row = insert(model, node, "Unsqueeze", [scale, last], f"{name}.row_scale")
    shape = insert(model, node, "Shape", [linear.input], f"{name}.shape", start=0, end=-1)
    return _Rounded(rows, zero, by_row, shape)


def _product(model: Any, linear: Linear, x: _Rounded, weight: np.ndarray, scale: np.ndarray, name: str) -> Any:
    """x @ weight, of these columns of the linear: int8 [I, O], with scales [O]."""
    node, outputs = linear.node, weight.shape[1]
    q_weight = constant(model, f"{name}.weight_int8", np.ascontiguousarray(weight))
    s_weight = constant(model, f"{name}.weight_scale", np.ascontiguousarray(scale))
    one = constant(model, "float_one", np.array(1, np.float32))
    # ONNX Runtime's own operator: MatMulInteger, Cast and Mul in one pass. It does not fuse them by itself here, and
    # the step of DiT-XL takes 5 % longer with the three (processor time, one thread).
    product = insert(model, node, "MatMulIntegerToFloat", [x.rows, q_weight, one, s_weight, x.zero],
                     f"{name}.by_column", domain="com.microsoft")  # fmt: skip
    product = insert(model, node, "Mul", [product, x.by_row], f"{name}.by_row")
    width = constant(model, f"width_{outputs}", np.array([outputs]))
    shape = insert(model, node, "Concat", [x.shape, width], f"{name}.out_shape", axis=0)
    return insert(model, node, "Reshape", [product, shape], f"{name}.product")


def int8_at_rest(model: Any, linears: list[Linear]) -> None:
    """Stores these weights as int8 with a DequantizeLinear: a quarter of the size on disk, arithmetic as before.

    ONNX Runtime's CPU provider keeps them so in memory, too, and turns them into float32 in each run.
    """
    for linear in linears:
        weight, scale = quantised_weight(linear.matrix)
        axis = 0 if linear.transposed else 1
        stored = np.ascontiguousarray(weight.T if linear.transposed else weight)
        q_weight = constant(model, f"{linear.name}.weight_int8", stored)
        s_weight = constant(model, f"{linear.name}.weight_scale", scale)
        inputs = [q_weight, s_weight, zero_points(model, linear.name, scale)]
        whole = insert(model, linear.node, "DequantizeLinear", inputs, f"{linear.name}.weight", axis=axis)
        linear.node.replace_input_with(1, whole)


def static_int8(model: Any, linears: list[Linear], amax: Ranges, per_channel: bool = True) -> None:
    """W8A8 in place. amax: of each linear's input, by name. per_channel: weight scales per output column, or one."""
    for linear in linears:
        matrix = linear.matrix
        weight, scale = quantised_weight(matrix) if per_channel else _one_scale(matrix)
        zero = constant(model, "int8_zero", np.array(0, np.int8))
        round_input(model, linear, max(amax[linear.name] / 127, SMALLEST_SCALE), zero)
        store_weight(model, linear, weight, scale, None)


def _one_scale(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One weight scale for the whole matrix: the naive baseline."""
    scale = np.float32(max(np.abs(matrix).max() / 127, SMALLEST_SCALE))
    return np.rint(matrix / scale).astype(np.int8), np.array(scale)


def naive_int8(model: Any, linears: list[Linear], amax: Ranges) -> None:
    """Static, one scale per tensor: the baseline to beat."""
    static_int8(model, linears, amax, per_channel=False)


# At worst, on the demo and two latent and pixel models of random weights, a golden tolerance is 0.07 (naive 0.29); of
# kernels that summed wrongly it is 0.38.
CEILING = 0.2
FORMAT = Quantised(
    bits=8,
    schemes={
        "onnxruntime": Scheme(dynamic_int8, activations="per-token", weights="per-channel", ceiling=CEILING),
        "tensorrt": Scheme(
            static_int8, activations="static", weights="per-channel", ceiling=CEILING, smoothing=STRENGTH
        ),
    },
    limits={"max_drift": 0.10, "min_psnr": 26},  # 3.5 % and 36 dB, naive 6 % and 31 dB; wrong sums: 20 % and 20.6 dB
    naive=Scheme(naive_int8, activations="static", weights="per-tensor", ceiling=LARGEST_ERROR),
)
