"""Quality of a bundle's samples, measured; quantisation is built on it. Needs onnxruntime, no torch."""

from ..runtime.loop.decoded import psnr
from .quality.compare import Comparison, compare_bundles
from .quality.distances import accuracy, frechet_distance, kernel_distance
from .quality.features import FeatureExtractor, image_features
from .quality.gate import Gate, GateFailed, check_gate
from .quality.record import GateResult, Quality, read_quality
from .quality.report import write_report
from .quality.request import CompareRequest

__all__ = [
    "CompareRequest",
    "Comparison",
    "FeatureExtractor",
    "Gate",
    "GateFailed",
    "GateResult",
    "Quality",
    "accuracy",
    "check_gate",
    "compare_bundles",
    "frechet_distance",
    "image_features",
    "kernel_distance",
    "psnr",
    "read_quality",
    "write_report",
]
