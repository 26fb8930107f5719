"""A bundle's text encoder in another form, measured by the rows that it makes; and a bundle without one.

No golden trajectory shows what a text encoder does: those have rows already.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.bundle.manifest import INSTRUCTION
from ..runtime.bundle.open import Bundle
from ..runtime.errors import BundleError, RequestError
from ..runtime.loop.prompts import Prompt
from ..runtime.loop.session import Session
from ..runtime.loop.verify import relative_error
from ..runtime.report import Report
from .formats.int4 import BLOCK_SIZES, matmul_nbits
from .formats.int8 import int8_at_rest
from .graph.emulation import emulated_engine
from .graph.linears import find_linears
from .graph.surgery import load_graph, save_graph
from .options import ENCODERS, QuantizeOptions
from .pool import pool_of
from .quality.limits import check_rewritten

SMALLEST = BLOCK_SIZES[-1]  # of ONNX Runtime's int4: linears of another width stay float32
LARGEST = {"int8": 0.05, "int4": 0.3}  # relative error of a prompt's rows


def check_encoders(
    bundle: Bundle,
    files: Mapping[str, Path],
    prompts: Path | None,
    allowed: float,
    remedy: str,
    scratch: Path,
    report: Report,
) -> None:
    """Compares what text encoders make of prompts with what the bundle's own make. files: by graph, the new ones.

    16-bit nodes round as on a device. prompts: as `pool_of` has it. Raises BundleError where a relative error is above
    `allowed`; remedy: what ends that sentence.
    """
    of = [prompt for prompt in pool_of(bundle, prompts, report, encode=False).of if isinstance(prompt, Prompt)]
    with Session(bundle) as session:  # one after the other: T5-XXL takes 19 GB
        exact = [session.encode(prompt) for prompt in of]
    engines = {name: emulated_engine(path, scratch) for name, path in files.items()}
    with Session(bundle, engines=engines) as session:
        found = [session.encode(prompt) for prompt in of]
    errors = [max(relative_error(b[name], a[name]) for name in a) for a, b in zip(exact, found, strict=True)]
    worst = float(np.max(errors))
    report(f"text encoder: relative error of {len(of)} encoded prompts {worst:.1e}")
    if not worst <= allowed:  # NaN, too
        raise BundleError(
            f"the text encoder's relative error on prompt {of[int(np.argmax(errors))].text!r} is {worst:.1e}, "
            f"allowed {allowed:g}: {remedy}; nothing was written"
        )


def encoder_format(bundle: Bundle, options: QuantizeOptions) -> str | None:
    """What its weights become, "int8" or "int4"; None: they stay. Raises RequestError where it has none to round."""
    if options.text_encoder == "fp32":
        return None
    if options.text_encoder not in ENCODERS:
        raise RequestError(f"--text-encoder {options.text_encoder} is not one of {', '.join(ENCODERS)}")
    names = text_graphs(bundle)
    if not names:
        raise RequestError(f"{bundle.folder} has no text encoder: leave --text-encoder {options.text_encoder} out")
    found = {bundle.manifest.graphs[name].precision for name in names} - {"float32"}  # type: ignore[index]
    if found:
        raise RequestError(f"{bundle.folder}: its text encoder is in {found.pop()}: round that of the float32 bundle")
    return options.text_encoder


def quantise_encoders(
    bundle: Bundle, precision: str, prompts: Path | None, folder: Path, scratch: Path, report: Report
) -> dict[str, Any]:
    """Writes `text.onnx` (and its like) with such weights into the new bundle's `folder` -> the fields that change.

    They are computed with by ONNX Runtime, which alone runs text encoders. Raises BundleError as `check_encoders`.
    """
    graphs: dict[str, Any] = {str(name): graph for name, graph in bundle.manifest.graphs.items()}
    files = {name: folder / graphs[name].file for name in text_graphs(bundle)}
    for name, path in files.items():
        report(f"quantising {name}.onnx, weights in {precision}")
        _round_weights(bundle.graph_file(name), path, precision)
        graphs[name] = graphs[name].model_copy(update={"precision": precision})
    remedy = "leave it in float32 (--text-encoder fp32)"
    check_encoders(bundle, files, prompts, LARGEST[precision], remedy, scratch, report)
    return {"graphs": graphs}


def _round_weights(source: Path, path: Path, precision: str) -> None:
    """Raises BundleError where a linear that was to be rounded is not."""
    model = load_graph(source)
    linears = [linear for linear in find_linears(model) if precision == "int8" or linear.features[0] % SMALLEST == 0]
    int8_at_rest(model, linears) if precision == "int8" else matmul_nbits(model, linears)
    save_graph(model, path)
    check_rewritten(path, [linear.name for linear in linears])


def check_has_text(bundle: Bundle) -> None:
    """Raises RequestError for a bundle that has no text encoder to leave out."""
    if not text_graphs(bundle):
        what = "takes classes" if bundle.manifest.text is None else "has no text encoder"
        raise RequestError(f"{bundle.folder} {what}: leave --without-text out")


def text_graphs(bundle: Bundle) -> list[str]:
    """The text encoders that a bundle has: text, text_2 ..."""
    return [str(name) for name in bundle.manifest.graphs if str(name).startswith("text")]


def without_text(bundle: Bundle, folder: Path, graphs: dict[str, Any]) -> dict[str, Any]:
    """Takes the tokenizer from the new bundle's folder -> the fields of its manifest. graphs: those of its manifest.

    The recorded prompt of no words stays, and so does the encoder's hash: prompts that are recorded with the bundle
    that has one are its.
    """
    text = bundle.manifest.text
    assert text is not None
    for info in text.encoders.values():
        if info.tokenizer is not None:
            (folder / info.tokenizer).unlink()
    kept = {name: graph for name, graph in graphs.items() if not name.startswith("text")}
    nothing = {"tokenizer": None, "instruction": None}
    further = [info.model_copy(update=nothing) for info in text.further]
    requires = [name for name in bundle.manifest.requires if name != INSTRUCTION]
    return {"graphs": kept, "text": text.model_copy(update={**nothing, "further": further}), "requires": requires}
