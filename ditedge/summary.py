"""What a command did: lines for people while it does it, or one JSON object at its end (`--json`)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ditedge.runtime.bundle.manifest import MANIFEST_NAME, Manifest
from ditedge.runtime.files import sha256_of_file

from .terminal import print_json, say


class Summary:
    """Collects fields by the names of `run --json`; `written` is the paths of everything that was written."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._fields: dict[str, Any] = {"written": []}

    def line(self, text: str) -> None:
        """For people: not printed with --json."""
        if not self._as_json:
            say(text)

    def lines(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.line(text)

    def note(self, text: str) -> None:
        """Something to know before long work: said at once, also with --json, which lists it as well."""
        say(f"note: {text}", err=True)
        self._fields.setdefault("notes", []).append(text)

    def add(self, written: list[Path] | None = None, **values: Any) -> None:
        self._fields |= values
        self._fields["written"] += [str(path) for path in written or []]

    def bundle(self, out: Path, manifest: Manifest, what: str, following: str) -> None:
        """A bundle was written. what: about it, in words; following: the command that one would give next."""
        self.add(
            bundle=str(out),
            bundle_sha256=sha256_of_file(out / MANIFEST_NAME),
            bytes=sum(info.bytes for info in manifest.files.values()),
            parameters=manifest.model.parameters,
            precision=manifest.graphs["step"].precision,
            quantization=None if manifest.quantization is None else manifest.quantization.model_dump(),
            golden=[golden.model_dump() for golden in manifest.golden],
            written=[out],
        )
        self.line(f"wrote {out}: {what}")
        self.line(f"next: ditedge {following}")

    def end(self) -> None:
        if self._as_json:
            print_json(self._fields)


def megabytes(manifest: Manifest) -> str:
    """Of a bundle's files: 12.3 MB"""
    return f"{sum(info.bytes for info in manifest.files.values()) / 1e6:.1f} MB"
