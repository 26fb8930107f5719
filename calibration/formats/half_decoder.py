"""A bundle's float32 decoder to float16, float32 where it is needed, judged by the pictures that it decodes.

bfloat16 bundles get a float16 decoder, too: ONNX has no bfloat16 Conv before opset 22, and a decoder is convolutions.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from ...runtime.bundle.open import Bundle
from ...runtime.loop.decoded import decoder_psnr, latents_to_decode
from ...runtime.report import Report, silent
from ..graph.lowering import emulated, lower
from ..graph.surgery import check_graph, load_graph, save_graph
from ..statistics.overflow import largest_while_decoding, too_large

DECODER_PSNR = 40.0  # dB, every node rounded as a GPU rounds; small AutoencoderKL and tiny decoders measure 55 and more


def halve_decoder(bundle: Bundle, path: Path, scratch: Path, report: Report = silent) -> bool:
    """Writes the decoder in float16 to `path` -> False, and nothing is written, when all of it would stay float32.

    scratch: a folder for temporary files. Raises BundleError when the pictures differ by more than DECODER_PSNR.
    """
    report("writing decoder.onnx in fp16")
    latents = latents_to_decode(bundle)
    keep = too_large(largest_while_decoding(bundle, latents, scratch))
    model = load_graph(bundle.graph_file("decoder"))
    if not lower(model, ir.DataType.FLOAT16, keep):
        report("decoder: its numbers are too large for float16, it stays in float32")
        return False
    if keep:
        report(f"decoder: {len(keep)} tensors exceed float16, kept in float32: {', '.join(sorted(keep)[:5])}")
    save_graph(model, path)
    check_graph(path)
    rounded = load_graph(path)
    emulated(rounded)
    save_graph(rounded, scratch / "decoder.onnx")
    psnr = decoder_psnr(scratch / "decoder.onnx", bundle, latents, DECODER_PSNR, "leave it in float32 (--no-decoder)")
    report(f"decoder in float16: PSNR of {len(latents)} decoded pictures {psnr:.1f} dB")
    return True
