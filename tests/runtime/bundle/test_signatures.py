"""Signed bundles: what a trusted key signed is opened, everything else is refused in one sentence before it is parsed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from ditedge.runtime import open_bundle
from ditedge.runtime.bundle.signatures import MAX_SIGNATURE_BYTES, Signature, fingerprint, is_valid, read_public_key
from ditedge.runtime.errors import BundleError
from ditedge.runtime.signing import new_key_pair, sign_bundle
from tests.runtime.bundle.signing import (
    edit_signature,
    flip,
    to_link,
    tree,
)


def test_a_published_signature_is_valid() -> None:
    """RFC 8032, 7.1, tests 1 (of nothing) and 2 (of one byte)."""
    vectors = [
        ("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", b"",
         "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"),
        ("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", b"\x72",
         "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"),
    ]  # fmt: skip
    for key, message, signature in vectors:
        values = {"format": "ditedge-signature", "version": 1, "algorithm": "ed25519"}
        read = Signature.model_validate({**values, "public_key": key, "signature": signature})
        assert is_valid(read, message) and not is_valid(read, message + b" ")


def test_signing_adds_one_file_and_touches_no_other(gray_bundle: Path, keys: tuple[Path, Path]) -> None:
    before = tree(gray_bundle)
    written = sign_bundle(gray_bundle, keys[0])
    after = tree(gray_bundle)
    assert list(written) == [gray_bundle / "manifest.json.sig"] and after.keys() - before.keys() == {
        "manifest.json.sig"
    }
    assert {name: after[name] for name in before} == before
    bundle = open_bundle(gray_bundle, trusted_keys=[keys[1]])
    assert bundle.trusted == (read_public_key(keys[1]),)
    assert open_bundle(gray_bundle).trusted == ()


def test_a_second_signature_replaces_the_first(signed: Path, tmp_path: Path) -> None:
    other = new_key_pair(tmp_path / "other.pem")
    sign_bundle(signed, tmp_path / "other.pem")
    assert open_bundle(signed, trusted_keys=[other])
    assert not [path for path in signed.iterdir() if path.name.startswith(".")], "nothing temporary is left"


def test_openssl_makes_the_keys_and_agrees(gray_bundle: Path, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    private, public = tmp_path / "k.pem", tmp_path / "k.pub.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    (written,) = sign_bundle(gray_bundle, private).values()
    assert open_bundle(gray_bundle, trusted_keys=[public])
    (tmp_path / "raw").write_bytes(bytes.fromhex(written.signature))
    check = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-sigfile", tmp_path / "raw"]
    subprocess.run([*check, "-in", gray_bundle / "manifest.json"], check=True, capture_output=True)
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", public, "-outform", "DER"], check=True, capture_output=True
    )
    summed = subprocess.run(["openssl", "sha256", "-r"], input=der.stdout, check=True, capture_output=True)
    assert fingerprint(written.key) == f"sha256:{summed.stdout.decode().split()[0]}"


SPOILED: dict[str, tuple[str, Callable[[Path], object]]] = {
    "no signature": (r"manifest\.json is not signed \(there is no manifest\.json\.sig\)", lambda b: (b / "manifest.json.sig").unlink()),
    "another manifest": (r"manifest\.json is not what sha256:[0-9a-f]{64} signed", lambda b: (b / "manifest.json").write_bytes((b / "manifest.json").read_bytes() + b"\n")),
    "a manifest that is no JSON": (r"manifest\.json is not what sha256:[0-9a-f]{64} signed", lambda b: (b / "manifest.json").write_text('{"')),
    "another file": (r"step\.onnx: does not match its hash", lambda b: flip(b / "step.onnx")),
    "another signature": (r"is not what sha256:", lambda b: edit_signature(b, signature="0" * 128)),
    "a key that is no point": (r"is not a trusted key", lambda b: edit_signature(b, public_key="f" * 64)),
    "a short signature": (r"manifest\.json\.sig: signature: .*sign the bundle again", lambda b: edit_signature(b, signature="00" * 63)),
    "no hexadecimal": (r"manifest\.json\.sig: signature: ", lambda b: edit_signature(b, signature="z" * 128)),
    "a number for a key": (r"manifest\.json\.sig: public_key: ", lambda b: edit_signature(b, public_key=7)),
    "another algorithm": (r"manifest\.json\.sig: algorithm: ", lambda b: edit_signature(b, algorithm="none")),
    "a later version": (r"manifest\.json\.sig: version: ", lambda b: edit_signature(b, version=2)),
    "another format": (r"manifest\.json\.sig: not a signature of `ditedge sign`", lambda b: edit_signature(b, format="x")),
    "an empty file": (r"manifest\.json\.sig: not valid JSON", lambda b: (b / "manifest.json.sig").write_bytes(b"")),
    "a raw signature": (r"manifest\.json\.sig: not valid", lambda b: (b / "manifest.json.sig").write_bytes(b"\xff" * 64)),
    "a list": (r"manifest\.json\.sig: not a signature", lambda b: (b / "manifest.json.sig").write_text("[]")),
    "a huge file": (r"manifest\.json\.sig: larger than 4 kB", lambda b: (b / "manifest.json.sig").write_bytes(b" " * (MAX_SIGNATURE_BYTES + 1))),
    "a folder": (r"cannot read .*manifest\.json\.sig: not a file", lambda b: ((b / "manifest.json.sig").unlink(), (b / "manifest.json.sig").mkdir())),
    "a link to nothing": (r"cannot read .*manifest\.json\.sig: No such file", lambda b: to_link(b / "manifest.json.sig", "nowhere")),
    "an endless file": (r"cannot read .*manifest\.json\.sig: not a file", lambda b: to_link(b / "manifest.json.sig", "/dev/zero")),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILED)
def test_what_is_not_as_it_was_signed_is_refused(signed: Path, keys: tuple[Path, Path], name: str) -> None:
    complaint, spoil = SPOILED[name]
    open_bundle(signed, trusted_keys=[keys[1]])
    spoil(signed)
    for checked in (True, False):  # a signature asks for the hashes, too
        with pytest.raises(BundleError, match=complaint) as caught:
            open_bundle(signed, check_hashes=checked, trusted_keys=[keys[1]])
        assert "\n" not in str(caught.value)


def each_byte_flipped(file: Path, step: int) -> Iterator[int]:
    """Flips the lowest bit of one byte after the other in `file`, and yields which it is; undone at the end."""
    raw = file.read_bytes()
    for place in range(0, len(raw), step):
        file.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        yield place
    file.write_bytes(raw)


@pytest.mark.parametrize(("name", "step"), [("manifest.json", 37), ("manifest.json.sig", 1)])
def test_every_byte_counts(signed: Path, keys: tuple[Path, Path], name: str, step: int) -> None:
    for place in each_byte_flipped(signed / name, step):
        with pytest.raises(BundleError):
            open_bundle(signed, trusted_keys=[keys[1]])
            pytest.fail(f"byte {place}")
    open_bundle(signed, trusted_keys=[keys[1]])


def test_a_signature_by_another_key_is_refused(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    other = new_key_pair(tmp_path / "other.pem")
    with pytest.raises(
        BundleError, match=rf"signed by {fingerprint(read_public_key(keys[1]))}, which is not a trusted"
    ):
        open_bundle(signed, trusted_keys=[other])
    assert len(open_bundle(signed, trusted_keys=[other, keys[1], keys[1]]).trusted) == 2  # one of several is enough


def test_who_names_a_trusted_key_without_having_it_is_refused(signed: Path, keys: tuple[Path, Path]) -> None:
    """public_key says the right name, the signature is a stranger's."""
    stranger = ed25519.Ed25519PrivateKey.generate()
    edit_signature(signed, signature=stranger.sign((signed / "manifest.json").read_bytes()).hex())
    with pytest.raises(BundleError, match="is not what sha256:"):
        open_bundle(signed, trusted_keys=[keys[1]])
