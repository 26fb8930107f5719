"""A bundle of a latent model without pictures, or with another VAE's, and a VAE -> a bundle with that decoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from ..calibration.derived import Derivation, derive_bundle
from ..runtime.bundle.manifest import Manifest
from ..runtime.bundle.open import Bundle, open_bundle
from ..runtime.bundle.writing import check_target
from ..runtime.errors import RequestError
from ..runtime.report import Report, silent
from .options import vae_dtype
from .pictures import read_fitting_vae, vae_info, write_pictures


def add_decoder(
    source: Path,
    vae_path: Path,
    out: Path,
    *,
    precision: str = "fp32",
    force: bool = False,
    report: Report = silent,
    note: Callable[[str], object] = silent,
) -> Manifest:
    """Writes bundle `source` with the decoder of the VAE at `vae_path` to `out`.

    Its preview is made anew, every other file stays as it is. precision: of the decoder, "fp32" or "fp16". note: told,
    before the work, what the user should know. Raises RequestError, CheckpointError (the VAE), BundleError; then
    nothing is left.
    """
    inputs = [source, vae_path]
    check_target(out, force, inputs)
    bundle = open_bundle(source)
    bundle.require_classes("add-decoder")
    manifest, info = bundle.manifest, bundle.manifest.model
    if "decoder" in manifest.graphs and manifest.vae is None:
        raise RequestError(f"{source}: its model makes pixels, which need no VAE")
    report(f"reading {vae_path}")
    vae = read_fitting_vae(vae_path, info)
    for text in vae.notes:
        note(text)

    def rewrite(folder: Path, scratch: Path) -> dict[str, Any]:
        graphs = {str(name): graph for name, graph in manifest.graphs.items() if name not in made_anew}
        graphs |= write_pictures(vae, info, False, folder, vae_dtype(precision), _opset(bundle), report)
        return {"graphs": graphs, "vae": vae_info(vae, vae_dtype(precision))}

    made_anew = ("decoder", "preview")
    return derive_bundle(bundle, out, Derivation(made_anew, rewrite), inputs=inputs, force=force, report=report)


def _opset(bundle: Bundle) -> int:
    """The operator set of the bundle's graphs: whoever chose it has a runtime that needs it."""
    model = onnx.load(bundle.graph_file("step"), load_external_data=False)
    return next(int(opset.version) for opset in model.opset_import if opset.domain in ("", "ai.onnx"))
