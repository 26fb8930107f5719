"""`verify`: a bundle's golden trajectories on an engine of this machine, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..bundle.open import Bundle, open_bundle
from ..options import BUNDLE_FILE, TRUSTED_KEYS
from ..report import Report, silent
from .engine import EngineOptions, options_for
from .loop import StepEvent
from .session import Session
from .verify import Replay, golden_here, replay


@dataclass(frozen=True)
class VerifyRequest:
    """What `ditedge verify` can be told."""

    engine: Path = field(metadata=BUNDLE_FILE)
    options: EngineOptions = EngineOptions()
    trusted_keys: tuple[Path, ...] = field(default=(), metadata=TRUSTED_KEYS)


@dataclass(frozen=True)
class Verification:
    """What was replayed on `provider`; left_out: golden files that are not on this machine."""

    bundle: Bundle
    provider: str
    results: list[Replay]
    left_out: list[str]

    @property
    def passed(self) -> bool:
        return all(result.passed for result in self.results)

    def lines(self) -> Iterator[str]:
        """For people."""
        for result in self.results:
            yield f"{result.golden.program}, guidance {result.golden.guidance:g}"
            for i, (timestep, error) in enumerate(zip(result.timestep, result.error, strict=True)):
                yield f"  step {i + 1:3d}  timestep {timestep:5.0f}  relative error {error:.2e}"
            verdict = "passed" if result.passed else "FAILED"
            yield f"  {verdict}: worst {max(result.error):.2e}, allowed {result.allowed:.1e}"
        if self.left_out:
            yield f"left out here: {', '.join(self.left_out)}"

    def summary(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "bundle": str(self.bundle.folder),
            "bundle_sha256": self.bundle.sha256,
            "provider": self.provider,
            "passed": self.passed,
            "golden": [_fields(result) for result in self.results],
            "left_out": self.left_out,
        }


def verify_bundle(request: VerifyRequest, report: Report = silent) -> Verification:
    """Replays every golden trajectory that is here. Raises BundleError, EngineError, RequestError."""
    bundle = open_bundle(request.engine, trusted_keys=request.trusted_keys or None)
    here = golden_here(bundle)
    with Session(bundle, options_for(request.engine, request.options)) as session:
        results = []
        for golden in here:

            def on_step(event: StepEvent, what: str = f"replaying {golden.file}") -> None:
                report(what, event.step, event.steps)

            results.append(replay(session, golden, on_step))
    left_out = [golden.file for golden in bundle.manifest.golden if golden not in here]
    return Verification(bundle, request.options.provider, results, left_out)


def _fields(result: Replay) -> dict[str, Any]:
    measured = {"timestep": result.timestep.tolist(), "error": result.error.tolist()}
    return {**result.golden.model_dump(), **measured, "allowed": result.allowed, "passed": result.passed}
