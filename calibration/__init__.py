"""Quality of a bundle's samples, measured; quantisation is built on it. Needs onnxruntime, no torch."""

from typing import TYPE_CHECKING

from ..runtime.lazy import lazily

if TYPE_CHECKING:
    from ..runtime.loop.decoded import psnr as psnr
    from .convert import convert_bundle as convert_bundle
    from .options import ConvertOptions as ConvertOptions
    from .options import QuantizeOptions as QuantizeOptions
    from .quality.compare import Comparison as Comparison
    from .quality.compare import compare_bundles as compare_bundles
    from .quality.distances import accuracy as accuracy
    from .quality.distances import frechet_distance as frechet_distance
    from .quality.distances import kernel_distance as kernel_distance
    from .quality.features import FeatureExtractor as FeatureExtractor
    from .quality.features import image_features as image_features
    from .quality.gate import Gate as Gate
    from .quality.gate import GateFailed as GateFailed
    from .quality.gate import check_gate as check_gate
    from .quality.record import GateResult as GateResult
    from .quality.record import Quality as Quality
    from .quality.record import read_quality as read_quality
    from .quality.report import write_report as write_report
    from .quality.request import CompareRequest as CompareRequest
    from .quantize import quantize_bundle as quantize_bundle

HOMES = {
    "CompareRequest": "quality.request",
    "Comparison": "quality.compare",
    "ConvertOptions": "options",
    "FeatureExtractor": "quality.features",
    "Gate": "quality.gate",
    "GateFailed": "quality.gate",
    "GateResult": "quality.record",
    "Quality": "quality.record",
    "QuantizeOptions": "options",
    "accuracy": "quality.distances",
    "check_gate": "quality.gate",
    "compare_bundles": "quality.compare",
    "convert_bundle": "convert",
    "frechet_distance": "quality.distances",
    "image_features": "quality.features",
    "kernel_distance": "quality.distances",
    "psnr": ".runtime.loop.decoded",
    "quantize_bundle": "quantize",
    "read_quality": "quality.record",
    "write_report": "quality.report",
}
__getattr__ = lazily(__name__, HOMES)
