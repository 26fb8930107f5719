"""A bundle's text encoder in another form, measured by the rows that it makes; and a bundle without one.

No golden trajectory shows what a text encoder does: those have rows already.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.bundle.open import Bundle
from ..runtime.errors import BundleError, RequestError
from ..runtime.loop.prompts import Prompt
from ..runtime.loop.session import Session
from ..runtime.loop.verify import relative_error
from ..runtime.report import Report
from .graph.emulation import emulated_engine
from .pool import pool_of


def check_encoder(
    bundle: Bundle, path: Path, prompts: Path | None, allowed: float, remedy: str, scratch: Path, report: Report
) -> float:
    """The largest relative error of the rows of a prompt, of the encoder at `path` against the bundle's own.

    16-bit nodes round as on a device. prompts: as `pool_of` has it. Raises BundleError above `allowed`; remedy: what
    ends that sentence.
    """
    of = [prompt for prompt in pool_of(bundle, prompts, report, encode=False).of if isinstance(prompt, Prompt)]
    with Session(bundle) as exact, Session(bundle, engines={"text": emulated_engine(path, scratch)}) as other:
        pairs = [(other.encode(prompt), exact.encode(prompt)) for prompt in of]
    errors = [max(relative_error(found[name], right[name]) for name in right) for found, right in pairs]
    worst = float(np.max(errors))
    report(f"text encoder: relative error of {len(of)} encoded prompts {worst:.1e}")
    if not worst <= allowed:  # NaN, too
        raise BundleError(
            f"the text encoder's relative error on prompt {of[int(np.argmax(errors))].text!r} is {worst:.1e}, "
            f"allowed {allowed:g}: {remedy}; nothing was written"
        )
    return worst


def check_has_text(bundle: Bundle) -> None:
    """Raises RequestError for a bundle that has no text encoder to leave out."""
    if "text" not in bundle.manifest.graphs:
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
    further = [info.model_copy(update={"tokenizer": None}) for info in text.further]
    return {"graphs": kept, "text": text.model_copy(update={"tokenizer": None, "further": further})}
