"""Who made a bundle: Ed25519 signatures (RFC 8032) over manifest.json, and over the build.json of plans.

`NAME.sig` beside a file signs every byte of NAME as it lies on disk. manifest.json has the hash of every other file of
the bundle, and build.json those of the plans beside it and of the manifest.json that they belong to: so the two
signatures stand for all that a runtime loads. A signature is checked on the very bytes that are parsed afterwards.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ..errors import BundleError, RequestError
from ..fields import Sha256, Strict
from ..json_files import parse_json, read_bounded, validated

TRUSTED_KEYS = "DITEDGE_TRUSTED_KEYS"  # environment: paths of public keys, as PATH separates them
SUFFIX = ".sig"
# The bounds of docs/format.md, "Limits": the same as cpp/src/signatures.cpp's.
MAX_SIGNATURE_BYTES, MAX_KEY_BYTES, MAX_KEYS = 4 << 10, 16 << 10, 100
DER_OF_ED25519 = bytes.fromhex("302a300506032b6570032100")  # RFC 8410: what comes before the 32 bytes of a public key


class Signature(Strict):
    """The content of a .sig file. public_key only names the key: it is trusted when the reader knows it already."""

    format: Literal["ditedge-signature"]
    version: Literal[1]
    algorithm: Literal["ed25519"]
    public_key: Sha256  # 32 bytes in hexadecimal, as a hash has
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]

    @property
    def key(self) -> bytes:
        return bytes.fromhex(self.public_key)


def fingerprint(key: bytes) -> str:
    """Of a public key, 32 bytes: the SHA-256 of its DER form, as `openssl pkey -pubin -outform DER | sha256sum`."""
    return f"sha256:{hashlib.sha256(DER_OF_ED25519 + key).hexdigest()}"


def signature_file(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)


def read_trusted_keys(paths: Iterable[str | Path] | None) -> tuple[bytes, ...]:
    """The public keys, 32 bytes each, in these PEM files; None: in those that $DITEDGE_TRUSTED_KEYS names, if any.

    Raises RequestError for a file that holds no such key, and for a variable that is set and names nothing: whoever set
    it wants signatures to be asked for.
    """
    if paths is None:
        named = os.environ.get(TRUSTED_KEYS)
        if named is None:
            return ()
        paths = [path for path in named.split(os.pathsep) if path]
        if not paths:
            raise RequestError(f"{TRUSTED_KEYS} is set and names no file: give paths of public keys, or unset it")
    paths = list(paths)
    if len(paths) > MAX_KEYS:
        raise RequestError(f"{len(paths)} trusted keys are more than {MAX_KEYS}: leave out those that are not in use")
    return tuple(dict.fromkeys(read_public_key(Path(path)) for path in paths))


def read_public_key(path: Path) -> bytes:
    """32 bytes out of a PEM file. Raises RequestError."""
    raw = read_bounded(path, MAX_KEY_BYTES, RequestError)
    if b"PRIVATE KEY-----" in raw:
        raise RequestError(
            f"{path} is a private key, which stays with whoever signs: "
            f"give its public half (openssl pkey -in {path} -pubout -out {path.with_suffix('.pub.pem')})"
        )
    serialization, _, unsupported = cryptography_parts()
    try:
        key = serialization.load_pem_public_key(raw)
    except (ValueError, unsupported):
        raise RequestError(f"{path} is not a public key in PEM (-----BEGIN PUBLIC KEY-----)") from None
    check_is_ed25519(path, key)
    public: bytes = key.public_bytes_raw()
    return public


def check_is_ed25519(path: Path, key: Any) -> None:
    """Raises RequestError for a key of the cryptography package that is of another kind."""
    kind = type(key).__name__.lstrip("_").removesuffix("PublicKey").removesuffix("PrivateKey")
    if kind != "Ed25519":
        raise RequestError(
            f"{path} is a key of another kind ({kind}), and bundles are signed with Ed25519: "
            "make a pair with `ditedge sign --new-key`, or with openssl genpkey -algorithm ed25519"
        )


def check_signed(path: Path, raw: bytes, trusted: Collection[bytes]) -> None:
    """Raises BundleError unless `raw`, which was read from `path`, is signed by one of the `trusted` keys.

    No trusted keys: nothing is asked for, and nothing read.
    """
    if not trusted:
        return
    signature = read_signature(path)
    if signature is None:
        raise BundleError(
            f"{path} is not signed (there is no {signature_file(path).name}), and only what a trusted key signed is "
            "wanted: have it signed (ditedge sign)"
        )
    if signature.key not in trusted:
        raise BundleError(
            f"{path} is signed by {fingerprint(signature.key)}, which is not a trusted key "
            f"({', '.join(map(fingerprint, trusted))})"
        )
    if not is_valid(signature, raw):
        raise BundleError(
            f"{path} is not what {fingerprint(signature.key)} signed: it, or {signature_file(path).name}, was changed"
        )


def read_signature(path: Path) -> Signature | None:
    """The signature beside `path`; None when there is none. Raises BundleError for one that makes no sense."""
    file = signature_file(path)
    if not os.path.lexists(file):
        return None
    data = parse_json(read_bounded(file, MAX_SIGNATURE_BYTES, BundleError), file, BundleError)
    if not isinstance(data, dict) or data.get("format") != "ditedge-signature":
        raise BundleError(f"{file}: not a signature of `ditedge sign`")
    return validated(Signature, data, file, BundleError, "sign the bundle again")


def is_valid(signature: Signature, raw: bytes) -> bool:
    """Whether the key that the signature names signed `raw`. Raises RequestError without the package for it."""
    _, ed25519, _ = cryptography_parts()
    from cryptography.exceptions import InvalidSignature

    try:
        ed25519.Ed25519PublicKey.from_public_bytes(signature.key).verify(bytes.fromhex(signature.signature), raw)
    except (InvalidSignature, ValueError):
        return False
    return True


def describe_signature(path: Path, raw: bytes) -> dict[str, str | None]:
    """For `inspect`. state: "valid" (by `key`, whoever that is), "none", "invalid", or "unchecked"; why: a sentence."""
    try:
        signature = read_signature(path)
    except BundleError as error:
        return {"state": "invalid", "key": None, "why": str(error)}
    if signature is None:
        return {"state": "none", "key": None}
    key = fingerprint(signature.key)
    try:
        return {"state": "valid" if is_valid(signature, raw) else "invalid", "key": key}
    except RequestError as error:
        return {"state": "unchecked", "key": key, "why": str(error)}


def cryptography_parts() -> tuple[Any, Any, type[Exception]]:
    """(serialization, ed25519, UnsupportedAlgorithm) of the cryptography package. Raises RequestError without it."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError:
        raise RequestError(
            "signatures need the package cryptography, which is not installed: pip install 'ditedge[sign]'"
        ) from None
    return serialization, ed25519, UnsupportedAlgorithm
