"""B's decoder against A's, apart from the network: the same latents, A's, through both."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from ....runtime.bundle.open import Bundle
from ....runtime.loop.decoded import psnr
from ....runtime.loop.session import Session
from ..metric import Batch, Card, Comparing, Count, Finite, Line, Metric, Positive, Quality, Strict, decibels

MOST = 8  # latents: a large decoder takes seconds for each
ROUNDS = 5  # of one picture, at most


class Decoding(Strict):
    """Of the same final latents. A PSNR of None means equal pictures; ratio: A's time / B's, above 1 B is faster."""

    psnr: Finite | None  # dB, all pictures together
    worst_psnr: Finite | None
    latents: Count
    a_ms: Positive | None  # of one picture, median over rounds in turns; None: no speed was asked for
    b_ms: Positive | None
    ratio: Positive | None


class _Measure:
    """Keeps a few latents, and decodes them at the end, when nothing else runs."""

    def __init__(self, comparing: Comparing) -> None:
        self._comparing, self._latents = comparing, np.empty((0, 0))

    def add(self, batch: Batch) -> None:
        if batch.a is not None and not len(self._latents):
            self._latents = batch.a[-1][:MOST].copy()

    def fields(self) -> dict[str, Any]:
        comparing, request, latents = self._comparing, self._comparing.request, self._latents
        rounds = min(ROUNDS, request.speed_rounds)
        comparing.report("decoding A's latents with both decoders")
        with Session(comparing.a, request.options_a) as a, Session(comparing.b, request.options_b) as b:
            pictures = [session.images(latents) for session in (a, b)]
            seconds = np.array([[_seconds(session, latents[:1]) for session in (a, b)] for _ in range(rounds)])
        each = [psnr(one, other) for one, other in zip(*pictures, strict=True)]
        times = np.median(seconds, axis=0) if rounds else None
        found = Decoding(
            psnr=_finite(psnr(pictures[0], pictures[1])),
            worst_psnr=_finite(min(each)),
            latents=len(latents),
            a_ms=None if times is None else 1000 * float(times[0]),
            b_ms=None if times is None else 1000 * float(times[1]),
            ratio=None if times is None else float(np.median(seconds[:, 0] / seconds[:, 1])),
        )
        return {"decoding": found}


def _seconds(session: Session, latents: np.ndarray) -> float:
    start = time.perf_counter()
    session.images(latents)
    return time.perf_counter() - start


def _finite(value: float) -> float | None:
    """None, which JSON knows, for equal pictures."""
    return value if np.isfinite(value) else None


def _start(comparing: Comparing) -> _Measure | None:
    """Only where B has another decoder: of models of pixels, and of the same file, there is nothing to tell."""
    a, b = comparing.a, comparing.b
    return _Measure(comparing) if _decoder(a) and _decoder(b) and _decoder(a) != _decoder(b) else None


def _decoder(bundle: Bundle) -> list[str]:
    """Hashes of the VAE's decoder; none of a model of pixels."""
    manifest = bundle.manifest
    if manifest.vae is None or "decoder" not in manifest.graphs:
        return []
    return [manifest.files[name].sha256 for name in manifest.graph_files("decoder")]


def _lines(quality: Quality) -> Iterator[Line]:
    d = quality.decoding
    if d is not None:
        yield "PSNR of the decoder", "", decibels(d.psnr), ""
        if d.ratio is not None:
            yield "decoding a picture", f"{d.a_ms:.1f} ms", f"{d.b_ms:.1f} ms ({d.ratio:.2f}x)", ""


def _cards(quality: Quality) -> Iterator[Card]:
    d = quality.decoding
    if d is not None:
        speed = "" if d.ratio is None else f", {d.ratio:.2f}x as fast"
        yield "Decoder", decibels(d.psnr), f"the same latents{speed}"


METRIC = Metric(
    fields={"decoding": Decoding | None},  # None: the same decoder, or none
    start=_start,
    lines=_lines,
    cards=_cards,
)
