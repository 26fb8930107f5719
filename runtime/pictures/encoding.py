"""The `encode` command as a function: words in, a recorded prompt out."""

from __future__ import annotations

from collections.abc import Callable

from ..bundle.open import open_bundle
from ..bundle.sizes import text_of
from ..errors import RequestError
from ..files import check_writable
from ..loop.engine import options_for
from ..loop.prompts import Prompt, write_prompt
from ..loop.session import Session
from ..loop.tokenizing import Tokenizer
from ..report import silent
from .request import EncodeRequest


def encode_prompt(request: EncodeRequest, warn: Callable[[str], object] = silent) -> Prompt:
    """Writes what the bundle's text encoder makes of the words. warn: told where they are cut. Raises DitedgeError."""
    if request.out.suffix != ".safetensors":
        raise RequestError(f"cannot write {request.out}: a recorded prompt is a .safetensors file")
    check_writable(request.out)
    bundle = open_bundle(request.engine, trusted_keys=request.trusted_keys or None)
    encoder = text_of(bundle).encoder_sha256
    prompt, cut = Tokenizer(bundle).prompt(request.text, request.negative)
    if cut is not None:
        warn(cut)
    with Session(bundle, options_for(request.engine, request.options)) as session:
        rows = session.encode(prompt)
    write_prompt(request.out, prompt.text, rows, encoder)
    return prompt
