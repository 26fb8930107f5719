"""Quality of a bundle's samples, measured; quantisation will be built on it. Needs onnxruntime, no torch."""

from .features import image_features
from .metrics import accuracy, frechet_distance, kernel_distance, psnr

__all__ = ["accuracy", "frechet_distance", "image_features", "kernel_distance", "psnr"]
