"""SmoothQuant (Xiao et al. 2023, arXiv:2211.10438) for a DiT, at no cost at run time.

A linear's input is divided per channel by s and its weight's rows are multiplied by s: the product stays, and large
channels lose some of their size to the weight. Where the division goes:

qkv, fc1 and the final linear read LN(x) (1 + scale) + shift, and the conditioner makes scale and shift. So

    shift' = shift / s        scale' = (1 + scale) / s - 1 = scale / s + (1 / s - 1)

which are the conditioner's rows (weight and bias) divided by s, and one more constant in scale's bias for the 1.

proj reads softmax(q k') v, which is linear in v channel by channel: v's columns of the qkv weight and bias over s.
fc2 reads a GELU's output, which no preceding weight can divide; it is not smoothed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from .collect import LayerStatistics, Statistics
from .linears import Linear, find_linears

STRENGTH = 0.5  # alpha of the paper's equation 4: half of the difficulty goes to the weights
MOST = 64.0  # of s and 1 / s: (1 + scale') is computed in float32 as a sum with 1, and must keep its digits
SHIFT_OF = {"qkv": 0, "fc1": 3, "linear": 0}  # first of its two chunks; scale is the next one


def smoothing_scales(statistics: LayerStatistics, matrix: np.ndarray, strength: float) -> np.ndarray:
    """s_j = amax|x_j|^strength / amax|W_j|^(1 - strength) for channel j -> [I] float64, of geometric mean 1."""
    activation, weight = statistics.channel_amax, np.abs(matrix).max(axis=1).astype(np.float64)
    usable = (activation > 0) & (weight > 0)
    scales = np.ones(len(activation))
    scales[usable] = activation[usable] ** strength / weight[usable] ** (1 - strength)
    scales[usable] /= np.exp(np.log(scales[usable]).mean()) if usable.any() else 1.0
    return np.clip(scales, 1 / MOST, MOST)


def smooth(step: Any, conditioner: Any, statistics: Statistics, strength: float = STRENGTH) -> Statistics:
    """Smooths both graphs (ir.Model) in place -> the statistics of the smoothed linears' inputs.

    Linears without statistics, and those of networks that are not built like a DiT, are left as they are.
    """
    linears = {linear.name: linear for linear in find_linears(step)}
    modulations = {linear.name: linear for linear in find_linears(conditioner)}
    layers = dict(statistics.layers)
    for name, linear in linears.items():
        if name not in layers:
            continue
        scales = smoothing_scales(layers[name], linear.matrix, strength)
        if name.endswith(".attn.proj"):
            done = _divide_values(linears.get(name.replace(".proj", ".qkv")), scales)
        else:
            done = _divide_modulation(modulations, name, linear, scales)
        if done:
            _scale_rows(linear, scales)
            layers[name] = divided_statistics(layers[name], scales)
    return Statistics(statistics.fingerprint, layers)


def divided_statistics(layer: LayerStatistics, scales: np.ndarray) -> LayerStatistics:
    """The statistics of x / s. Per-token largest values are not known any more: bounds of them, from the channels."""
    bound = np.maximum(np.abs(layer.channel_max), np.abs(layer.channel_min)) / scales
    return replace(
        layer,
        channel_max=layer.channel_max / scales,
        channel_min=layer.channel_min / scales,
        channel_sum=layer.channel_sum / scales,
        channel_square=layer.channel_square / scales**2,
        token_amax=np.repeat(bound.max(axis=1, keepdims=True), layer.token_amax.shape[1], axis=1),
        token_amax_sum=np.full_like(layer.token_amax_sum, np.nan),
    )


def _divide_modulation(modulations: dict[str, Linear], name: str, linear: Linear, scales: np.ndarray) -> bool:
    """Folds 1 / s into the conditioner's rows for this linear's shift and scale. False where there are none."""
    owner, _, layer = name.rpartition(".attn." if ".attn." in name else ".mlp." if ".mlp." in name else ".")
    modulation, producer = modulations.get(f"{owner}.adaLN_modulation.1"), linear.input.producer()
    if layer not in SHIFT_OF or modulation is None or producer is None or producer.op_type != "Add":
        return False
    bias = _bias(modulation)
    if bias is None:
        return False
    width, first = linear.features[0], SHIFT_OF[layer] * linear.features[0]
    weight, offset = modulation.matrix.astype(np.float64), bias.const_value.numpy().astype(np.float64)
    for start in (first, first + width):
        weight[:, start : start + width] /= scales
        offset[start : start + width] /= scales
    offset[first + width : first + 2 * width] += 1 / scales - 1
    _set_matrix(modulation, weight)
    _set(bias, offset)
    return True


def _divide_values(qkv: Linear | None, scales: np.ndarray) -> bool:
    """Folds 1 / s into the last third of qkv's columns: v, head by head in the order that proj reads them."""
    bias = None if qkv is None else _bias(qkv)
    if qkv is None or bias is None or qkv.features[1] != 3 * len(scales):
        return False
    weight, offset = qkv.matrix.astype(np.float64), bias.const_value.numpy().astype(np.float64)
    weight[:, -len(scales) :] /= scales
    offset[-len(scales) :] /= scales
    _set_matrix(qkv, weight)
    _set(bias, offset)
    return True


def _scale_rows(linear: Linear, scales: np.ndarray) -> None:
    _set_matrix(linear, linear.matrix * scales[:, None])


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
