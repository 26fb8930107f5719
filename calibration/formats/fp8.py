"""FP8 (E4M3): weights and activations, static scales."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from ..graph.linears import Linear
from ..graph.qdq import SMALLEST_SCALE, round_input, store_weight
from ..graph.surgery import constant, require_opset
from .format import Quantised, Ranges, Scheme

FP8_LARGEST = 448.0  # of E4M3 (Micikevicius et al. 2022, arXiv:2209.05433)


def static_fp8(model: Any, linears: list[Linear], amax: Ranges) -> None:
    """FP8 (E4M3) weights and activations in place, one scale per tensor and one per output column of the weights."""
    require_opset(model, 19)
    for linear in linears:
        matrix = linear.matrix
        scale = np.maximum(np.abs(matrix).max(axis=0) / FP8_LARGEST, SMALLEST_SCALE).astype(np.float32)
        weight = np.clip(matrix / scale, -FP8_LARGEST, FP8_LARGEST).astype(ml_dtypes.float8_e4m3fn)
        zero = constant(model, "fp8_zero", np.zeros((), ml_dtypes.float8_e4m3fn), ir.DataType.FLOAT8E4M3FN)
        round_input(model, linear, max(amax[linear.name] / FP8_LARGEST, SMALLEST_SCALE), zero)
        store_weight(model, linear, weight, scale, ir.DataType.FLOAT8E4M3FN)


STATIC = Scheme(static_fp8, activations="static", weights="per-channel", ceiling=0.3)  # at worst measured: 0.18
FORMAT = Quantised(
    bits=8,
    schemes={"onnxruntime": STATIC, "tensorrt": STATIC},
    limits={"max_drift": 0.12, "min_psnr": 21},  # 7 % and 30 dB
    first_gpu=89,  # Ada
)
