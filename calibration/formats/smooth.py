"""SmoothQuant (Xiao et al. 2023, arXiv:2211.10438) for a DiT, and centring, at no cost at run time.

A linear's input x becomes (x - c) / s per channel, its weight's rows are multiplied by s and its bias takes up c @ W:
the linear's output stays, every channel's range is symmetric about 0 (Outlier Suppression+, Wei et al. 2023,
arXiv:2304.09145, section 4.1), and large channels lose some of their size to the weight. Where c and s go:

qkv, fc1 and the final linear read LN(x) (1 + scale) + shift, and the conditioner makes scale and shift. So

    shift' = (shift - c) / s        scale' = (1 + scale) / s - 1 = scale / s + (1 / s - 1)

which are the conditioner's rows (weight and bias) divided by s, and constants in the biases.

proj reads softmax(q k') v. The rows of a softmax add up to 1, so (v - c) / s in v's columns of the qkv weight and bias
is (x - c) / s behind it.

fc2 reads a GELU's output, which no preceding weight can move; and where blocks share one modulation (PixArt) or q, k
and v are linears of their own, nothing is moved into the conditioner. With `online` a subtraction and a product do it
at run time: TensorRT fuses them with what lies before and the rounding; for ONNX Runtime they would be two passes over
memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from ..graph.linears import Linear, find_linears
from ..graph.surgery import constant, insert
from ..statistics.collect import LayerStatistics, Statistics

STRENGTH = 0.5  # alpha of the paper's equation 4: half of the difficulty goes to the weights
MOST = 64.0  # of s and 1 / s: (1 + scale') is computed in float32 as a sum with 1, and must keep its digits
SHIFT_OF = {"qkv": 0, "fc1": 3, "linear": 0}  # first of its two chunks; scale is the next one


def smoothing_scales(statistics: LayerStatistics, matrix: np.ndarray, strength: float) -> np.ndarray:
    """s_j = amax|x_j|^strength / amax|W_j|^(1 - strength) for channel j -> [I] float64, of geometric mean 1.

    strength 0 is none: s = 1.
    """
    activation, weight = statistics.channel_amax, np.abs(matrix).max(axis=1).astype(np.float64)
    usable = (activation > 0) & (weight > 0) & (strength > 0)
    scales = np.ones(len(activation))
    scales[usable] = activation[usable] ** strength / weight[usable] ** (1 - strength)
    scales[usable] /= np.exp(np.log(scales[usable]).mean()) if usable.any() else 1.0
    return np.clip(scales, 1 / MOST, MOST)


def smooth(
    step: Any, conditioner: Any, statistics: Statistics, strength: float = STRENGTH, online: bool = False
) -> Statistics:
    """Centres and smooths both graphs (ir.Model) in place -> the statistics of the new linears' inputs.

    online: by nodes of their own, what no weight can move. Linears without statistics or bias are left as they are.
    """
    linears = {linear.name: linear for linear in find_linears(step)}
    modulations = {linear.name: linear for linear in find_linears(conditioner)}
    layers = dict(statistics.layers)
    for group in _same_input(linears.values()):
        names = [linear.name for linear in group]
        if any(name not in layers or _bias(linear) is None for name, linear in zip(names, group, strict=True)):
            continue
        if reads_prompts(group[0]):
            continue
        name, linear, whole = names[0], group[0], np.concatenate([linear.matrix for linear in group], axis=1)
        centre = layers[name].centre
        scales = smoothing_scales(moved_statistics(layers[name], centre, np.ones_like(centre)), whole, strength)
        done = len(group) == 1 and (
            _move_values(linears.get(name.replace(".proj", ".qkv")), centre, scales)
            if name.endswith(".attn.proj")
            else not linear.after_gelu and _move_modulation(modulations, name, linear, centre, scales)
        )
        if not done and online:
            _move_online(step, group, centre, scales)
        for each in group if done or online else ():
            bias = _bias(each)
            _set(bias, bias.const_value.numpy() + centre @ each.matrix)
            _set_matrix(each, each.matrix * scales[:, None])
            layers[each.name] = moved_statistics(layers[each.name], centre, scales)
    return Statistics(statistics.fingerprint, layers)


def reads_prompts(linear: Linear) -> bool:
    """Whether it is fed what the prompt says with no weight or norm between, as the output of cross-attention is.

    The channels' ranges are those of the prompts that were seen. Centred and smoothed, another prompt would leave
    them: measured on a small Sana, whose golden trajectory then ended 0.32 off instead of 0.003.
    """
    seen, left = set(), [linear.input]
    while left:
        value = left.pop()
        node = value.producer()
        if node is None and value.name == "context":
            return True
        if value in seen or node is None or node.op_type in ("LayerNormalization", "Gemm"):
            continue
        seen.add(value)
        is_linear = node.op_type == "MatMul" and node.inputs[1].is_initializer()
        left += [] if is_linear else [other for other in node.inputs if other is not None]
    return False


def _same_input(linears: Iterable[Linear]) -> list[list[Linear]]:
    """Those that read one value together, as q, k and v of most networks do: they can only be smoothed alike."""
    groups: dict[Any, list[Linear]] = {}
    for linear in linears:
        groups.setdefault(linear.input, []).append(linear)
    return list(groups.values())


def moved_statistics(layer: LayerStatistics, centre: np.ndarray, scales: np.ndarray) -> LayerStatistics:
    """The statistics of (x - centre) / scales. Per token, only bounds are known any more: those of the channels."""
    rows = layer.rows[:, None]
    largest, smallest = (layer.channel_max - centre) / scales, (layer.channel_min - centre) / scales
    bound = np.maximum(np.abs(largest), np.abs(smallest)).max(axis=1, keepdims=True)
    return replace(
        layer,
        channel_max=largest,
        channel_min=smallest,
        channel_sum=(layer.channel_sum - rows * centre) / scales,
        channel_square=(layer.channel_square - 2 * centre * layer.channel_sum + rows * centre**2) / scales**2,
        token_amax=np.repeat(bound, layer.token_amax.shape[1], axis=1),
        token_amax_sum=np.full_like(layer.token_amax_sum, np.nan),
    )


def _move_modulation(
    modulations: dict[str, Linear], name: str, linear: Linear, centre: np.ndarray, scales: np.ndarray
) -> bool:
    """In the conditioner's rows for this linear's shift and scale. False where there are none."""
    owner, _, layer = name.rpartition(".attn." if ".attn." in name else ".mlp." if ".mlp." in name else ".")
    modulation, producer = modulations.get(f"{owner}.adaLN_modulation.1"), linear.input.producer()
    if layer not in SHIFT_OF or modulation is None or producer is None or producer.op_type != "Add":
        return False
    bias = _bias(modulation)
    if bias is None:
        return False
    width, first = linear.features[0], SHIFT_OF[layer] * linear.features[0]
    shift, scale = slice(first, first + width), slice(first + width, first + 2 * width)
    weight, offset = modulation.matrix.astype(np.float64), bias.const_value.numpy().astype(np.float64)
    weight[:, shift] /= scales
    weight[:, scale] /= scales
    offset[shift] = (offset[shift] - centre) / scales
    offset[scale] = offset[scale] / scales + (1 / scales - 1)
    _set_matrix(modulation, weight)
    _set(bias, offset)
    return True


def _move_values(qkv: Linear | None, centre: np.ndarray, scales: np.ndarray) -> bool:
    """In the last third of qkv's columns: v, head by head in the order that proj reads them."""
    bias = None if qkv is None else _bias(qkv)
    if qkv is None or bias is None or qkv.features[1] != 3 * len(scales):
        return False
    weight, offset = qkv.matrix.astype(np.float64), bias.const_value.numpy().astype(np.float64)
    values = slice(2 * len(scales), None)
    weight[:, values] /= scales
    offset[values] = (offset[values] - centre) / scales
    _set_matrix(qkv, weight)
    _set(bias, offset)
    return True


def _move_online(step: Any, group: list[Linear], centre: np.ndarray, scales: np.ndarray) -> None:
    """By two nodes in front of the linears, which read one value."""
    name, node, value = group[0].name, group[0].node, group[0].input
    middle = constant(step, f"{name}.centre", centre.astype(np.float32))
    moved = insert(step, node, "Sub", [value, middle], f"{name}.centred")
    factor = constant(step, f"{name}.smoothing", (1 / scales).astype(np.float32))
    moved = insert(step, node, "Mul", [moved, factor], f"{name}.smoothed")
    moved.shape, moved.type = value.shape, value.type
    for linear in group:
        linear.node.replace_input_with(0, moved)


def _bias(linear: Linear) -> Any:
    """The bias' initializer (ir.Value) of a Gemm, or of the Add behind a MatMul; None where there is none."""
    candidates = list(linear.node.inputs[2:])
    for consumer in linear.node.outputs[0].consumers():
        if consumer.op_type == "Add":
            candidates += consumer.inputs
    return next((value for value in candidates if value is not None and value.is_initializer()), None)


def _set_matrix(linear: Linear, matrix: np.ndarray) -> None:
    _set(linear.weight, matrix.T if linear.transposed else matrix)


def _set(value: Any, array: np.ndarray) -> None:
    value.const_value = ir.tensor(np.ascontiguousarray(array, dtype=np.float32), name=value.name)
