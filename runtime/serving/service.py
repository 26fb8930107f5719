"""What the server's parts share: the scheduler, its bundles by name, the jobs, the keys."""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..bundle.open import Bundle
from ..errors import RequestError
from ..json_files import read_bounded
from ..loop.prompts import Prompt
from ..loop.tokenizing import Tokenizer
from .jobs import Jobs
from .scheduler import Scheduler

SHORTEST_KEY = 16  # characters
MAX_KEY_FILE = 1 << 20


class UnknownModelError(RequestError):
    """A request names a model that is not served."""


class UnknownJobError(RequestError):
    """A request names a job that never was, or is forgotten by now."""


@dataclass(frozen=True)
class Service:
    """bundles: by name, the default one first. keys: SHA-256 of each; empty: none is asked for.

    hosts: names that requests may call this machine by, beside localhost and addresses. alone: whether the next request
    comes here, too; otherwise nothing is remembered for it.
    """

    scheduler: Scheduler
    bundles: Mapping[str, Bundle]
    max_steps: int = 1000
    max_images: int = 16
    keys: tuple[bytes, ...] = ()
    hosts: frozenset[str] = frozenset()
    alone: bool = True
    jobs: Jobs = field(default_factory=Jobs)
    _tokenizers: dict[str, Tokenizer] = field(default_factory=dict)  # by the name of the model
    _tokenizing: threading.Lock = field(default_factory=threading.Lock)

    def check_remembers(self, what: str) -> None:
        """Raises RequestError where another replica may be asked for it."""
        if not self.alone:
            raise RequestError(f"{what} are remembered by one of several replicas: ask for b64_json, or for a stream")

    @property
    def default(self) -> str:
        return next(iter(self.bundles))

    def bundle(self, model: str | None) -> Bundle:
        """Raises UnknownModelError."""
        name = model or self.default
        if name not in self.bundles:
            raise UnknownModelError(f"model '{name[:80]}' is not one of {', '.join(self.bundles)}")
        return self.bundles[name]

    def tokens(self, bundle: Bundle, text: str, negative: bool = False) -> Prompt:
        """What the model reads of a text; what is too long for it is cut. negative: it is guided away from.

        Raises RequestError, BundleError.
        """
        with self._tokenizing:
            tokenizer = self._tokenizers.get(bundle.manifest.name)
            if tokenizer is None:
                tokenizer = self._tokenizers[bundle.manifest.name] = Tokenizer(bundle)
            return tokenizer.prompt(text, negative)[0]

    def key_of(self, authorization: str | None, key: str | None) -> int | None:
        """Which key a request brings, by "Authorization: Bearer KEY" or "x-api-key: KEY"; None: none that is known.

        As long for a wrong key as for a right one, and for the last as for the first.
        """
        kind, _, bearer = (authorization or "").partition(" ")
        given = key or (bearer.strip() if kind.lower() == "bearer" else "")
        digest = hashlib.sha256(given.encode("utf-8", "surrogatepass")).digest()
        same = [hmac.compare_digest(digest, known) for known in self.keys]
        return same.index(True) if any(same) else None


def read_keys(path: Path) -> tuple[bytes, ...]:
    """A key a line; empty lines and those that begin with # are none. Raises RequestError."""
    try:
        lines = read_bounded(path, MAX_KEY_FILE, RequestError).decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise RequestError(f"{path}: not valid UTF-8 text") from None
    found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not found:
        raise RequestError(f"{path}: has no key: write one a line, as `openssl rand -hex 24` makes them")
    for number, key in enumerate(found, 1):
        if len(key) < SHORTEST_KEY:
            raise RequestError(f"{path}: key {number} has {len(key)} characters, fewer than {SHORTEST_KEY}")
    return tuple(hashlib.sha256(key.encode()).digest() for key in found)


def named(bundles: Sequence[Bundle]) -> dict[str, Bundle]:
    """By the names in their manifests. Raises RequestError where two have the same."""
    found: dict[str, Bundle] = {}
    for bundle in bundles:
        name = bundle.manifest.name
        if name in found:
            raise RequestError(f"{bundle.folder} and {found[name].folder} are both called '{name}': serve one of them")
        found[name] = bundle
    return found
