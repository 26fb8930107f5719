"""libditedge and signed bundles: the verdicts of runtime/bundle/signatures.py, on the same bundles, keys and damages."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from capi_ctypes import DitedgeError, load
from PIL import Image

from ditedge.runtime.bundle.signatures import fingerprint, read_public_key
from ditedge.runtime.signing import new_key_pair, sign_bundle
from tests.cpp.support import ARGUMENT, BUNDLE, ENGINE, REQUEST
from tests.runtime.bundle.conftest import keys, signed
from tests.runtime.bundle.signing import KINDS, edit_signature, private_pem, public_pem
from tests.runtime.bundle.test_signatures import SPOILED, each_byte_flipped

__all__ = ["keys", "signed"]  # fixtures

Opener = Callable[[Path, Sequence[Path] | None], None]


@pytest.fixture
def open_it(built: Path) -> Opener:
    """open_it(bundle, trusted keys or None for ditedge_bundle_open): opens and closes it, or raises DitedgeError."""
    if ctypes.util.find_library("crypto") is None:
        pytest.skip("signatures are not tested: OpenSSL's libcrypto is not installed")
    c = load(built / "libditedge.so")

    def open_it(bundle: Path, trusted: Sequence[Path] | None = None, check_hashes: int = 1) -> None:
        handle = ctypes.c_void_p(1)
        if trusted is None:
            status = c.ditedge_bundle_open(str(bundle).encode(), check_hashes, ctypes.byref(handle))
        else:
            paths = (ctypes.c_char_p * len(trusted))(*[str(key).encode() for key in trusted])
            count = ctypes.c_size_t(len(trusted))
            status = c.ditedge_bundle_open_trusted(str(bundle).encode(), paths, count, ctypes.byref(handle))
        if status:
            assert handle.value is None
            raise DitedgeError(status, c.ditedge_last_error().decode())
        c.ditedge_bundle_close(handle)

    return open_it


def refused(status: int, complaint: str, call: Callable[[], None]) -> None:
    with pytest.raises(DitedgeError, match=complaint) as caught:
        call()
    assert caught.value.status == status and "\n" not in str(caught.value)


def test_a_signed_bundle_opens_for_its_key(
    open_it: Opener, signed: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    other = new_key_pair(tmp_path / "other.pem")
    open_it(signed, [keys[1]])
    open_it(signed, [other, keys[1]])
    name = fingerprint(read_public_key(keys[1]))
    refused(BUNDLE, f"manifest.json is signed by {name}, which is not a trusted key", lambda: open_it(signed, [other]))
    edit_signature(signed, public_key=read_public_key(other).hex())
    refused(BUNDLE, "manifest.json is not what sha256:[0-9a-f]{64} signed", lambda: open_it(signed, [other]))
    open_it(signed)  # asks for no signature


@pytest.mark.parametrize("name", SPOILED)
def test_what_python_refuses_is_refused(open_it: Opener, signed: Path, keys: tuple[Path, Path], name: str) -> None:
    SPOILED[name][1](signed)
    place = r"step\.onnx: does not match" if name == "another file" else r"manifest\.json"
    refused(BUNDLE, place, lambda: open_it(signed, [keys[1]]))


@pytest.mark.parametrize(("name", "step"), [("manifest.json", 37), ("manifest.json.sig", 1)])
def test_every_byte_counts(open_it: Opener, signed: Path, keys: tuple[Path, Path], name: str, step: int) -> None:
    for _ in each_byte_flipped(signed / name, step):
        refused(BUNDLE, r"manifest\.json", lambda: open_it(signed, [keys[1]]))
    open_it(signed, [keys[1]])


def test_keys_that_are_none(open_it: Opener, signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    files = {
        "private.pem": (keys[0].read_bytes(), "is a private key"),
        "text.pem": (b"hello", "is not a public key in PEM"),
        "torn.pem": (keys[1].read_bytes()[:60], "is not a public key in PEM"),
        "empty.pem": (b"", "is not a public key in PEM"),
        "huge.pem": (b"\n" * (17 << 10), "larger than 16 kB"),
        "cut.pem": (keys[1].read_bytes().replace(b"MCow", b""), "is a key of another kind"),
        **{f"{kind}.pem": (public_pem(make()), "is a key of another kind") for kind, make in KINDS.items()},
        "rsa.pem": (private_pem(KINDS["RSA"]()), "is a private key"),
    }
    for name, (content, complaint) in files.items():
        (tmp_path / name).write_bytes(content)
        refused(REQUEST, rf"{name}.* ?{complaint}", lambda name=name: open_it(signed, [keys[1], tmp_path / name]))
    refused(REQUEST, "cannot read .*none.pem", lambda: open_it(signed, [tmp_path / "none.pem"]))
    refused(ARGUMENT, "keys are missing", lambda: open_it(signed, []))
    (tmp_path / "dos.pem").write_bytes(b"a comment\r\n" + keys[1].read_bytes().replace(b"\n", b"\r\n"))
    open_it(signed, [tmp_path / "dos.pem"])


def test_the_environments_keys(
    open_it: Opener, signed: Path, keys: tuple[Path, Path], tmp_path: Path, monkeypatch
) -> None:
    other = new_key_pair(tmp_path / "other.pem")
    monkeypatch.setenv("DITEDGE_TRUSTED_KEYS", f"{other}:{keys[1]}")
    open_it(signed)
    monkeypatch.setenv("DITEDGE_TRUSTED_KEYS", str(other))
    refused(BUNDLE, "which is not a trusted key", lambda: open_it(signed))
    open_it(signed, [keys[1]])  # named keys stand for themselves
    monkeypatch.setenv("DITEDGE_TRUSTED_KEYS", "")
    refused(REQUEST, "DITEDGE_TRUSTED_KEYS is set and names no file", lambda: open_it(signed))


def test_a_signature_asks_for_the_hashes(open_it: Opener, signed: Path, keys: tuple[Path, Path], monkeypatch) -> None:
    raw = bytearray((signed / "step.onnx").read_bytes())
    raw[len(raw) // 2] ^= 1
    (signed / "step.onnx").write_bytes(raw)
    open_it(signed, check_hashes=0)
    monkeypatch.setenv("DITEDGE_TRUSTED_KEYS", str(keys[1]))
    refused(BUNDLE, "step.onnx: does not match its hash", lambda: open_it(signed, check_hashes=0))


def test_without_libcrypto_nothing_is_opened(
    open_it: Opener, signed: Path, keys: tuple[Path, Path], monkeypatch
) -> None:
    monkeypatch.setenv("DITEDGE_CRYPTO", "/nowhere/libcrypto.so")
    refused(ENGINE, "libcrypto, which checks signatures, is not to be found", lambda: open_it(signed, [keys[1]]))
    open_it(signed)


def test_ditedge_run(
    built: Path, signed: Path, keys: tuple[Path, Path], onnxruntime_library: Path, tmp_path: Path
) -> None:
    other = new_key_pair(tmp_path / "other.pem")

    def run(trusted: object, name: str = "--trusted-key") -> subprocess.CompletedProcess[str]:
        command = [
            built / "ditedge-run",
            "--bundle",
            signed,
            "--class",
            "3",
            "--program",
            "ddim-25",
            "-o",
            tmp_path / "a.png",
        ]
        environment = os.environ | {"DITEDGE_ONNXRUNTIME": str(onnxruntime_library)}
        return subprocess.run([*command, name, str(trusted)], capture_output=True, text=True, env=environment)

    done = run(f"{other};{keys[1]}")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "a.png") as image:
        assert np.asarray(image).shape == (8, 8)
    for trusted, complaint in ((other, "not a trusted key"), ("", "--trusted-key needs a value"), (";", "cannot read")):
        done = run(trusted)
        assert done.returncode == 2 and complaint in done.stderr
    sign_bundle(signed, tmp_path / "other.pem")
    assert run(other).returncode == 0
