"""Signed bundles: what a trusted key signed is opened, everything else is refused in one sentence before it is parsed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa, x25519

from ditedge.cli import main
from ditedge.runtime import EngineOptions, Session, open_bundle
from ditedge.runtime.bundle.signatures import MAX_SIGNATURE_BYTES, Signature, fingerprint, is_valid, read_public_key
from ditedge.runtime.bundle.writing import copy_files, new_bundle
from ditedge.runtime.errors import BundleError, DitedgeError, RequestError
from ditedge.runtime.loop import engine_trt
from ditedge.runtime.plans.lint import lint_plan
from ditedge.runtime.signing import new_key_pair, read_private_key, sign_bundle
from tests.doubles.gpu_double import DoubleGpu
from tests.doubles.plans import write_plans

PEM = serialization.Encoding.PEM
KINDS = {
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "EC": lambda: ec.generate_private_key(ec.SECP256R1()),
    "X25519": x25519.X25519PrivateKey.generate,
    "Ed448": ed448.Ed448PrivateKey.generate,
}


def private_pem(key, passphrase: str | None = None) -> bytes:
    encryption = (
        serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else serialization.NoEncryption()
    )
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, encryption)


def public_pem(key) -> bytes:
    return key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """(private, public) of a new pair."""
    (tmp_path / "keys").mkdir()
    private = tmp_path / "keys" / "release.pem"
    return private, new_key_pair(private)


@pytest.fixture
def signed(gray_bundle: Path, keys: tuple[Path, Path]) -> Path:
    sign_bundle(gray_bundle, keys[0])
    return gray_bundle


def ditedge(*arguments: object, env: dict[str, str] | None = None):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False, env=env)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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


def edit_signature(bundle: Path, **changes: object) -> None:
    path = bundle / "manifest.json.sig"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def to_link(path: Path, to: str) -> None:
    path.unlink()
    path.symlink_to(to)


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


# Plans


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> DoubleGpu:
    gpu = DoubleGpu()
    monkeypatch.setattr(engine_trt, "NvidiaGpu", lambda: gpu)
    return gpu


def load_plans(bundle: Path, folder: Path, trusted: list[Path]) -> None:
    with Session(open_bundle(bundle, trusted_keys=trusted), EngineOptions(plans=folder)) as session:
        session.load("step")


def test_plans_are_signed_with_their_bundle(gray_bundle: Path, keys: tuple[Path, Path], gpu: DoubleGpu) -> None:
    folder = write_plans(gray_bundle).parent
    written = sign_bundle(gray_bundle, keys[0])
    assert list(written) == [gray_bundle / "manifest.json.sig", folder / "build.json.sig"]
    load_plans(gray_bundle, folder, [keys[1]])
    assert gpu.deserialized


@pytest.mark.parametrize(
    ("complaint", "spoil"),
    [
        (r"build\.json is not signed", lambda f: (f / "build.json.sig").unlink()),
        (r"build\.json is not what", lambda f: (f / "build.json").write_text((f / "build.json").read_text() + " ")),
        (r"build\.json\.sig: not valid JSON", lambda f: (f / "build.json.sig").write_text("")),
        (r"dit\.plan: does not match its hash", lambda f: flip(f / "dit.plan")),
        (r"build\.json is not what", lambda f: shutil.copy(f.parents[1] / "manifest.json.sig", f / "build.json.sig")),
    ],
    ids=["no signature", "another record", "torn signature", "another plan", "the manifest's signature"],
)
def test_no_plan_is_deserialised_unless_signed(
    gray_bundle: Path, keys: tuple[Path, Path], gpu: DoubleGpu, complaint: str, spoil: Callable[[Path], object]
) -> None:
    folder = write_plans(gray_bundle).parent
    sign_bundle(gray_bundle, keys[0])
    spoil(folder)
    with pytest.raises(DitedgeError, match=complaint):
        load_plans(gray_bundle, folder, [keys[1]])
    assert not gpu.deserialized
    if "dit" not in complaint:
        with pytest.raises(BundleError, match=complaint):  # `inspect` of a plan deserialises it, too
            lint_plan(folder / "dit.plan", [keys[1]])


def test_plans_built_on_the_device_have_a_key_of_its_own(
    signed: Path, keys: tuple[Path, Path], gpu: DoubleGpu, tmp_path: Path
) -> None:
    folder = write_plans(signed).parent
    before = (signed / "manifest.json.sig").read_bytes()
    device = new_key_pair(tmp_path / "device.pem")
    assert list(sign_bundle(folder / "dit.plan", tmp_path / "device.pem")) == [folder / "build.json.sig"]
    assert (signed / "manifest.json.sig").read_bytes() == before
    load_plans(signed, folder, [keys[1], device])
    with pytest.raises(DitedgeError, match="build.json is signed by .*, which is not a trusted key"):
        load_plans(signed, folder, [keys[1]])


def test_plans_of_another_bundle_are_not_signed(gray_bundle: Path, keys: tuple[Path, Path]) -> None:
    folder = write_plans(gray_bundle).parent
    record = json.loads((folder / "build.json").read_text())
    (folder / "build.json").write_text(json.dumps(record | {"bundle_sha256": "0" * 64}))
    with pytest.raises(BundleError, match="another version of bundle"):
        sign_bundle(gray_bundle, keys[0])
    (folder / "build.json").write_text(json.dumps(record))
    flip(folder / "dit.plan")
    with pytest.raises(BundleError, match=r"dit\.plan is missing, or does not match"):
        sign_bundle(gray_bundle, keys[0])
    assert not list(gray_bundle.rglob("*.sig"))


# What is made of a signed bundle, and where keys are named


def test_a_derived_bundle_is_not_signed(signed: Path, tmp_path: Path) -> None:
    bundle = open_bundle(signed)
    files = bundle.manifest.files
    listing = bundle.manifest.model_copy(update={"files": files | {"manifest.json.sig": files["step.onnx"]}})
    with new_bundle(tmp_path / "copy", False, [signed]) as folder:
        copy_files(replace(bundle, manifest=listing), folder, ())
    assert not list((tmp_path / "copy").rglob("*.sig"))


def test_a_signed_bundle_can_be_replaced(signed: Path) -> None:
    """The signature is the bundle's own file, no foreign one that --force would refuse to remove."""
    with new_bundle(signed, True, []) as folder:
        (folder / "manifest.json").write_text("{}")
    assert [path.name for path in signed.iterdir()] == ["manifest.json"]


def test_every_command_asks_for_the_signature_of_the_environments_keys(
    signed: Path, keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = new_key_pair(tmp_path / "other.pem")
    monkeypatch.setenv("DITEDGE_TRUSTED_KEYS", os.pathsep.join([str(other), str(keys[1])]))
    assert len(open_bundle(signed).trusted) == 2
    monkeypatch.setenv("DITEDGE_TRUSTED_KEYS", str(other))
    out = tmp_path / "out"
    commands = [
        ["run", "--engine", signed, "-o", out],
        ["verify", "--engine", signed],
        ["inspect", signed],
        ["build", "--engine", signed, "--target", "tensorrt-rtx", "--print-trtexec"],
        ["compare", "--engine", signed, "--against", signed],
        ["quantize", "--engine", signed, "--out", out],
        ["convert", "--engine", signed, "--precision", "fp16", "--out", out],
    ]
    for command in commands:
        result = ditedge(*command)
        assert result.exit_code == 2 and "which is not a trusted key" in result.output, command
    assert not out.exists()
    monkeypatch.setenv("DITEDGE_TRUSTED_KEYS", "")
    with pytest.raises(RequestError, match="DITEDGE_TRUSTED_KEYS is set and names no file"):
        open_bundle(signed)


def test_what_is_made_where_signatures_are_asked_for(
    signed: Path, keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`quantize` reads a signed bundle; its own result, which nobody signed yet, it checks and measures all the same."""
    monkeypatch.setenv("DITEDGE_TRUSTED_KEYS", str(keys[1]))
    out = tmp_path / "int8"
    arguments = ["--out", out, "--count", 2, "--max-drift", 1, "--min-psnr", 0, "--program", "ddim-25"]
    result = ditedge("quantize", "--engine", signed, *arguments)
    assert result.exit_code == 0, result.output
    with pytest.raises(BundleError, match="is not signed"):
        open_bundle(out)
    assert ditedge("sign", "--engine", out, "--key", keys[0]).exit_code == 0
    assert open_bundle(out).trusted


def test_options_name_the_keys(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    other, trust = new_key_pair(tmp_path / "other.pem"), ["--trusted-key", keys[1]]
    for command in (
        ["run", "--engine", signed, "--class", 1, "--steps", 2, "-o", tmp_path / "a.png"],
        ["verify", "--engine", signed],
        ["inspect", signed],
        ["build", "--engine", signed, "--target", "tensorrt-rtx", "--print-trtexec"],
    ):
        assert ditedge(*command, *trust).exit_code == 0, command
        assert ditedge(*command, "--trusted-key", other, *trust).exit_code == 0, command
        refused = ditedge(*command, "--trusted-key", other)
        assert refused.exit_code == 2 and "which is not a trusted key" in refused.output, command
    refused = ditedge("inspect", signed / "step.onnx", "--lint", *trust)
    assert refused.exit_code == 2 and "leave --trusted-key out" in refused.output


def test_sign_and_inspect_say_by_whom(gray_bundle: Path, tmp_path: Path) -> None:
    def state() -> dict[str, str]:
        return json.loads(ditedge("inspect", gray_bundle, "--json").output)["signatures"]["manifest.json"]

    assert state() == {"state": "none", "key": None}
    result = ditedge("sign", "--engine", gray_bundle, "--new-key", tmp_path / "release.pem", "--json")
    told = json.loads(result.output)
    files = [tmp_path / "release.pem", tmp_path / "release.pub.pem", gray_bundle / "manifest.json.sig"]
    assert told == {"written": list(map(str, files)), "key": fingerprint(read_public_key(files[1]))}
    assert state() == {"state": "valid", "key": told["key"]}
    edit_signature(gray_bundle, signature="0" * 128)
    assert state() == {"state": "invalid", "key": told["key"]}
    (gray_bundle / "manifest.json.sig").write_text("{")
    assert state()["state"] == "invalid" and "not valid JSON" in state()["why"]
    for arguments in ([], ["--key", files[0], "--new-key", files[0]]):
        both = ditedge("sign", "--engine", gray_bundle, *arguments)
        assert both.exit_code == 2 and "give either --key" in both.output


def test_without_the_package_there_is_one_sentence(signed: Path, keys: tuple[Path, Path], monkeypatch) -> None:
    for name in ("cryptography", "cryptography.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)
    for call in (
        lambda: open_bundle(signed, trusted_keys=[keys[1]]),
        lambda: sign_bundle(signed, keys[0]),
        lambda: new_key_pair(keys[0].parent / "new.pem"),
    ):
        with pytest.raises(RequestError, match=r"need the package cryptography.*pip install 'ditedge\[sign\]'"):
            call()
    description = json.loads(ditedge("inspect", signed, "--json").output)["signatures"]["manifest.json"]
    assert description["state"] == "unchecked" and description["key"].startswith("sha256:")
    assert open_bundle(signed).manifest.name  # who asks for no signature needs no package
