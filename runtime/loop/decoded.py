"""Is another form of a decoder the same decoder? The same latents through both, and the PSNR of the pictures.

The PSNR is here, in one place, because both who converts and who quantises judge by it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..bundle.open import Bundle
from ..errors import BundleError
from .engine import EngineOptions
from .engines import open_engine
from .host_loop import decode_images
from .noise import SeededNoise
from .verify import read_golden


def latents_to_decode(bundle: Bundle) -> np.ndarray:
    """[S, C, H, W] float32: where the golden trajectories ended (what the network makes), and one of normal numbers."""
    ends = [
        read_golden(bundle, golden, bundle.program(golden.program).steps)["x"][-1] for golden in bundle.manifest.golden
    ]
    return np.concatenate([*ends, SeededNoise([0], bundle.manifest.model.latent_shape).initial()]).astype(np.float32)


def decoded(path: Path, bundle: Bundle, latents: np.ndarray) -> np.ndarray:
    """The pictures uint8 [S, h, w, 1 or 3] that the decoder graph at `path` makes; `bundle` says how large they are."""
    engine = open_engine(path, EngineOptions(keep_buffers=False))
    try:
        return decode_images(engine, latents, bundle.manifest.picture_size("decoder"))
    finally:
        engine.close()


def decoder_psnr(path: Path, bundle: Bundle, latents: np.ndarray, least: float, what: str) -> float:
    """dB between the pictures of the graph at `path` and of the bundle's own decoder; infinite for equal ones.

    Raises BundleError below `least`; `what` ends that sentence with what to do.
    """
    expected, actual = (decoded(file, bundle, latents) for file in (bundle.graph_file("decoder"), path))
    found = psnr(actual, expected)
    if found < least:
        raise BundleError(
            f"PSNR of {len(latents)} decoded pictures is {found:.1f} dB, at least {least:g} dB is allowed: {what}; "
            "nothing was written"
        )
    return found


def psnr(a: np.ndarray, b: np.ndarray, peak: float = 255.0) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal arrays."""
    return psnr_of_error(float(np.mean((np.float64(a) - np.float64(b)) ** 2)), peak)


def psnr_of_error(mean_squared: float, peak: float = 255.0) -> float:
    """The same of a mean squared error: 10 log10(peak^2 / error), as Huynh-Thu & Ghanbari 2008 have it."""
    return 10 * float(np.log10(peak**2 / mean_squared)) if mean_squared > 0 else float("inf")
