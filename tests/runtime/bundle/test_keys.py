"""Keys of signatures: what is no key, what is another kind, what is never overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from ditedge.runtime import open_bundle
from ditedge.runtime.errors import BundleError, RequestError
from ditedge.runtime.signing import new_key_pair, read_private_key, sign_bundle
from tests.runtime.bundle.signing import (
    KINDS,
    ditedge,
    flip,
    private_pem,
    public_pem,
    tree,
)


@pytest.mark.parametrize("kind", KINDS)
def test_keys_of_another_kind_are_refused(gray_bundle: Path, tmp_path: Path, kind: str) -> None:
    key = KINDS[kind]()
    (tmp_path / "public.pem").write_bytes(public_pem(key))
    (tmp_path / "private.pem").write_bytes(private_pem(key))
    with pytest.raises(RequestError, match=rf"public\.pem is a key of another kind \({kind}\).*openssl genpkey"):
        open_bundle(gray_bundle, trusted_keys=[tmp_path / "public.pem"])
    with pytest.raises(RequestError, match=rf"private\.pem is a key of another kind \({kind}\)"):
        sign_bundle(gray_bundle, tmp_path / "private.pem")
    assert not (gray_bundle / "manifest.json.sig").exists()


def test_files_that_hold_no_key(gray_bundle: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "text.pem").write_text("hello")
    (tmp_path / "torn.pem").write_text("-----BEGIN PUBLIC KEY-----\n!!\n-----END PUBLIC KEY-----\n")
    (tmp_path / "huge.pem").write_bytes(b"\n" * (17 << 10))
    public = {
        keys[0]: r"release\.pem is a private key.*openssl pkey -in .*-pubout -out .*release\.pub\.pem",
        tmp_path / "text.pem": "not a public key in PEM",
        tmp_path / "torn.pem": "not a public key in PEM",
        tmp_path / "huge.pem": "larger than 16 kB",
        tmp_path / "none.pem": "cannot read .*none.pem: No such file",
        tmp_path: "not a file",
    }
    for path, complaint in public.items():
        with pytest.raises(RequestError, match=complaint):
            open_bundle(gray_bundle, trusted_keys=[path])
    private = {
        keys[1]: r"release\.pub\.pem is a public key",
        tmp_path / "text.pem": "not a private key in PEM",
        tmp_path / "none.pem": "cannot read .*none.pem: No such file",
    }
    for path, complaint in private.items():
        with pytest.raises(RequestError, match=complaint):
            sign_bundle(gray_bundle, path)


def test_an_unreadable_key_is_refused(gray_bundle: Path, keys: tuple[Path, Path], monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # root may read whatever its mode says
    with pytest.raises(RequestError, match=r"cannot read .*release\.pub\.pem: Permission denied"):
        open_bundle(gray_bundle, trusted_keys=[keys[1]])


def test_encrypted_keys_need_their_passphrase(gray_bundle: Path, tmp_path: Path) -> None:
    key, path = ed25519.Ed25519PrivateKey.generate(), tmp_path / "locked.pem"
    path.write_bytes(private_pem(key, "open sesame"))
    for given, complaint in (
        (None, "is encrypted: .*DITEDGE_KEY_PASSPHRASE"),
        ("wrong", "does not open"),
        ("", "does not open"),
    ):
        with pytest.raises(RequestError, match=complaint):
            read_private_key(path, lambda given=given: given)
    refused = ditedge("sign", "--engine", gray_bundle, "--key", path)
    assert refused.exit_code == 2 and "is encrypted" in refused.output
    done = ditedge("sign", "--engine", gray_bundle, "--key", path, env={"DITEDGE_KEY_PASSPHRASE": "open sesame"})
    assert done.exit_code == 0 and "signed by sha256:" in done.output


def test_new_keys_are_private_and_never_overwritten(tmp_path: Path) -> None:
    public = new_key_pair(tmp_path / "a.pem")
    assert public == tmp_path / "a.pub.pem" and (tmp_path / "a.pem").stat().st_mode & 0o777 == 0o600
    before = tree(tmp_path)
    for gone in (None, "a.pub.pem", "a.pem"):
        if gone is not None:
            (tmp_path / gone).unlink()
        with pytest.raises(RequestError, match="exists, and a key is never overwritten"):
            new_key_pair(tmp_path / "a.pem")
        assert tree(tmp_path) == {name: raw for name, raw in before.items() if name != gone}
        (tmp_path / (gone or "a.pem")).write_bytes(before[gone or "a.pem"])
    with pytest.raises(RequestError, match="cannot write .*nowhere"):
        new_key_pair(tmp_path / "nowhere" / "a.pem")


def test_what_does_not_fit_together_is_not_signed(gray_bundle: Path, keys: tuple[Path, Path]) -> None:
    flip(gray_bundle / "step.onnx")
    with pytest.raises(BundleError, match="does not match its hash"):
        sign_bundle(gray_bundle, keys[0])
    assert not (gray_bundle / "manifest.json.sig").exists()


def test_a_key_in_the_bundle_is_refused(gray_bundle: Path) -> None:
    result = ditedge("sign", "--engine", gray_bundle, "--new-key", gray_bundle / "release.pem")
    assert result.exit_code == 2 and "lies in the bundle" in result.output
    assert not list(gray_bundle.glob("*.pem"))


def test_a_signature_never_follows_a_link(gray_bundle: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (gray_bundle / "manifest.json.sig").symlink_to(precious)
    with pytest.raises(BundleError, match="no place for a signature"):
        sign_bundle(gray_bundle, keys[0])
    assert precious.read_text() == "mine"
