"""`ditedge sign`: private keys, and the signatures that they leave in a bundle (signatures.py says what those mean)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .bundle.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES
from .bundle.open import Bundle, open_bundle
from .bundle.signatures import (
    MAX_KEY_BYTES,
    Signature,
    check_is_ed25519,
    cryptography_parts,
    fingerprint,
    signature_file,
)
from .errors import BundleError, RequestError
from .files import sha256_of_file, write_text
from .json_files import read_bounded
from .options import option
from .plans.record import MAX_RECORD_BYTES, RECORD_NAME, record_from_json

PASSPHRASE = "DITEDGE_KEY_PASSPHRASE"  # environment: of an encrypted private key


@dataclass(frozen=True)
class SignRequest:
    """What `ditedge sign` can be told."""

    engine: Path = field(metadata=option("--engine", help="Bundle folder; or a plan inside one: only its folder."))
    key: Path | None = field(
        default=None,
        metadata=option("--key", help="Private key in PEM: openssl genpkey -algorithm ed25519 -out FILE."),
    )
    new_key: Path | None = field(
        default=None,
        metadata=option("--new-key", help="Make a key pair first: FILE, and its public half beside it, NAME.pub.pem."),
    )


@dataclass(frozen=True)
class Signed:
    """By which private key, the files written, and the two of a new key pair."""

    private: Path
    signatures: dict[Path, Signature]
    new_keys: tuple[Path, ...]

    @property
    def signer(self) -> str:
        """The fingerprint of the key."""
        return fingerprint(next(iter(self.signatures.values())).key)

    def lines(self, engine: Path) -> Iterator[str]:
        """For people; engine: what was signed."""
        public = self.private.with_suffix(".pub.pem")
        if self.new_keys:
            yield f"wrote {self.private}: private, not encrypted; keep it off the devices, and keep it"
            yield f"wrote {public}: for --trusted-key, on the devices"
        yield from (f"wrote {file}" for file in self.signatures)
        yield f"signed by {self.signer}"
        known = public if public.is_file() else "PUBLIC.pem"
        yield f"next: ditedge run --engine {engine} --trusted-key {known}"


def sign(request: SignRequest, passphrase: Callable[[Path], str | None] = lambda path: None) -> Signed:
    """`sign_bundle`, with a new pair of keys where the request asks for one. passphrase: of an encrypted key's file."""
    private = request.key or request.new_key
    if private is None or (request.key is not None and request.new_key is not None):
        raise RequestError("give either --key, or --new-key to make a key pair first")
    new: tuple[Path, ...] = ()
    if request.new_key is not None:
        check_can_be_signed(request.engine, private)  # no key is made for nothing
        new = (private, new_key_pair(private))
    return Signed(private, sign_bundle(request.engine, private, lambda: passphrase(private)), new)


def sign_bundle(
    path: Path, private_key: Path, passphrase: Callable[[], str | None] = lambda: None
) -> dict[Path, Signature]:
    """Signs the bundle at `path` in place -> the files written: signatures of the manifest, and of each target's plans.

    path: a bundle's folder; or a .plan inside one, and then only that folder of plans is signed (on the device that
    built them, by a key of its own). The bundle's files and plans are hashed first: what does not fit together is not
    signed. Nothing else in the bundle is touched. Raises BundleError, RequestError; then nothing was written.
    """
    contents = check_can_be_signed(path, private_key)
    key = read_private_key(private_key, passphrase)
    signatures = {signature_file(file): signature_of(key, raw) for file, raw in contents.items()}
    for file, signature in signatures.items():
        write_text(file, signature.model_dump_json(indent=1) + "\n")
    return signatures


def check_can_be_signed(path: Path, private_key: Path) -> dict[Path, bytes]:
    """What `sign_bundle` signs, by file. Raises as it does, for everything but the key's content."""
    bundle = open_bundle(path, trusted_keys=())  # about to be signed: no signature is asked for
    if private_key.resolve().is_relative_to(bundle.folder.resolve()):
        raise RequestError(
            f"{private_key} lies in the bundle, and would be given away with it: keep the private key elsewhere"
        )
    contents = {}
    if path.suffix != ".plan":
        contents[bundle.folder / MANIFEST_NAME] = _manifest_bytes(bundle)
    plans = [path.parent / RECORD_NAME] if path.suffix == ".plan" else bundle.folder.glob(f"engines/*/{RECORD_NAME}")
    contents |= {record: _record_bytes(bundle, record) for record in sorted(plans)}
    for file in contents:
        _check_place(bundle, signature_file(file))
    return contents


def signature_of(key: Any, raw: bytes) -> Signature:
    """key: an Ed25519PrivateKey of the cryptography package."""
    public: bytes = key.public_key().public_bytes_raw()
    return Signature(
        format="ditedge-signature",
        version=1,
        algorithm="ed25519",
        public_key=public.hex(),
        signature=key.sign(raw).hex(),
    )


def read_private_key(path: Path, passphrase: Callable[[], str | None] = lambda: None) -> Any:
    """The Ed25519PrivateKey in a PEM file. passphrase: asked when it is encrypted. Raises RequestError."""
    raw = read_bounded(path, MAX_KEY_BYTES, RequestError)
    serialization, _, unsupported = cryptography_parts()
    if b"PUBLIC KEY-----" in raw:
        raise RequestError(f"{path} is a public key: sign with the private one that it belongs to")
    try:
        key = serialization.load_pem_private_key(raw, None)
    except TypeError:  # what the package says of an encrypted key
        key = _decrypted(path, raw, passphrase())
    except (ValueError, unsupported):
        raise RequestError(f"{path} is not a private key in PEM (-----BEGIN PRIVATE KEY-----)") from None
    check_is_ed25519(path, key)
    return key


def _decrypted(path: Path, raw: bytes, passphrase: str | None) -> Any:
    if passphrase is None:
        raise RequestError(f"{path} is encrypted: give its passphrase in {PASSPHRASE}, or sign at a terminal")
    serialization, _, unsupported = cryptography_parts()
    try:
        return serialization.load_pem_private_key(raw, passphrase.encode())
    except (ValueError, TypeError, unsupported):
        raise RequestError(f"{path}: the passphrase does not open this key") from None


def new_key_pair(path: Path) -> Path:
    """Makes a private key at `path`, readable for its owner only -> its public half's file, NAME.pub.pem.

    Raises RequestError when one of the two exists: a key is never overwritten.
    """
    serialization, ed25519, _ = cryptography_parts()
    key, public = ed25519.Ed25519PrivateKey.generate(), path.with_suffix(".pub.pem")
    pem = serialization.Encoding.PEM
    private_bytes = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public_bytes = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    _write_new(public, public_bytes, 0o644)
    try:
        _write_new(path, private_bytes, 0o600)
    except BaseException:
        public.unlink()
        raise
    return public


def _write_new(path: Path, content: bytes, mode: int) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
        except BaseException:
            path.unlink()
            raise
    except FileExistsError:
        raise RequestError(f"{path} exists, and a key is never overwritten: give another name, or --key") from None
    except (OSError, ValueError) as error:
        raise RequestError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None


def _manifest_bytes(bundle: Bundle) -> bytes:
    """manifest.json as it was when the bundle was opened and its files were hashed."""
    path = bundle.folder / MANIFEST_NAME
    raw = read_bounded(path, MAX_MANIFEST_BYTES, BundleError)
    if hashlib.sha256(raw).hexdigest() != bundle.sha256:
        raise BundleError(f"{path} was changed while the bundle was read: sign it again")
    if signature_file(path).name in bundle.manifest.files:
        raise BundleError(f"{path} lists its own signature among its files: export the checkpoint again")
    return raw


def _record_bytes(bundle: Bundle, path: Path) -> bytes:
    """A build.json whose plans are those that it lists, of this bundle."""
    raw = read_bounded(path, MAX_RECORD_BYTES, BundleError)
    record = record_from_json(raw, path)
    again = f"build them again: ditedge build --engine {bundle.folder} --target {record.library}"
    if record.bundle_sha256 != bundle.sha256:
        raise BundleError(f"{path}: the plans were built from another version of bundle {bundle.folder}: {again}")
    for info in record.plans.values():
        plan = path.parent / info.file
        if not plan.is_file() or sha256_of_file(plan) != info.plan.sha256:
            raise BundleError(f"{plan} is missing, or does not match its hash in {RECORD_NAME}: {again}")
    return raw


def _check_place(bundle: Bundle, file: Path) -> None:
    """Raises BundleError for a signature file that a hostile bundle made a link to something else."""
    inside = file.parent.resolve().is_relative_to(bundle.folder.resolve())
    if not inside or file.is_symlink() or (file.exists() and not file.is_file()):
        raise BundleError(f"{file} is no place for a signature (a link, or a folder): remove it first")
