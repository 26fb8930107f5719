"""A VAE becomes `decoder.onnx`: its check against PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from ...runtime.errors import BundleError
from ...runtime.loop.engine import EngineOptions
from ...runtime.loop.engines import open_engine
from ...runtime.loop.verify import relative_error
from ...runtime.replacing import scratch_folder
from ..networks.vae import VaeDecoder
from .modules import uint8_image

# Relative error before rounding, against float32 PyTorch: float32 sums in another order, float16 rounds more often.
DECODER_TOLERANCE = {"float32": 1e-4, "float16": 1e-2}
FLOAT16_RANGE = 65504.0  # a CPU that computes in float32 hides an overflow: activations are measured in PyTorch
CLOSE_PIXELS = 0.999  # share of the picture's numbers that must be within 1 of 255 after rounding
CHECK_PIXELS = 3 * 256 * 256  # a check decodes three pictures where they are this small together, else one


def check_decoder(path: Path, vae: VaeDecoder, size: int, precision: str) -> None:
    """Compares decoder.onnx with `vae` (float32) in PyTorch on normal latents, before and after rounding.

    size: H = W of the latents. Raises BundleError.
    """
    batch = 3 if 3 * (size * vae.config.factor) ** 2 <= CHECK_PIXELS else 1  # it was traced with two
    latent = torch.randn(batch, vae.config.latent_channels, size, size, generator=torch.Generator().manual_seed(2))
    expected, largest = _picture_and_largest_activation(vae, latent)
    if precision == "float16" and not largest < FLOAT16_RANGE / 2:
        raise BundleError(
            f"the VAE's activations reach {largest:.0f}, too near float16's limit of {FLOAT16_RANGE:.0f}: "
            "give --vae-precision fp32"
        )
    value, image = _run_before_and_after_rounding(path, latent.numpy(), tuple(expected.shape))
    error = relative_error((value - 128) / 127.5, expected.numpy())
    difference = np.abs(image.astype(np.int16) - uint8_image(expected).numpy())
    close = float(np.mean(difference <= 1))
    if not error <= DECODER_TOLERANCE[precision] or close < CLOSE_PIXELS:
        raise BundleError(
            f"{path.name} does not compute what PyTorch does: relative error {error:.1e} before rounding, allowed "
            f"{DECODER_TOLERANCE[precision]:.0e}; {100 * close:.2f} % within 1 of 255, at least {100 * CLOSE_PIXELS} %"
        )


@torch.no_grad()
def _picture_and_largest_activation(vae: VaeDecoder, latent: Tensor) -> tuple[Tensor, float]:
    """The picture before rounding [B, C, h, w], decoded one by one, and the largest number that any layer gave out."""
    largest = 0.0

    def look(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        nonlocal largest
        largest = max(largest, float(output.abs().max()))

    handles = [module.register_forward_hook(look) for module in vae.modules()]
    try:
        picture = torch.cat([vae(one[None]) for one in latent])
        return picture, largest
    finally:
        for handle in handles:
            handle.remove()


def _run_before_and_after_rounding(
    path: Path, latent: np.ndarray, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """127.5 x + 128 as float32 [B, C, h, w], and the image [B, h, w, C]; from a copy with one more output."""
    model = onnx.load(path)
    producers = {output: node for node in model.graph.node for output in node.output}
    node = producers["image"]
    while node.op_type != "Clip":  # backwards over the cast and the transpose
        node = producers[node.input[0]]
    value_name = node.input[0]
    model.graph.output.append(onnx.helper.make_tensor_value_info(value_name, onnx.TensorProto.FLOAT, None))
    value, image = np.empty(shape, np.float32), np.empty((shape[0], *shape[2:], shape[1]), np.uint8)
    with scratch_folder() as folder:
        onnx.save(model, folder / "decoder.onnx")
        engine = open_engine(folder / "decoder.onnx", EngineOptions())
        try:
            engine.run({"latent": latent}, {"image": image, value_name: value})
        finally:
            engine.close()
    return value, image
