"""What is done with signed bundles: plans, derived bundles, commands."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ditedge.runtime import EngineOptions, Session, open_bundle
from ditedge.runtime.bundle.signatures import fingerprint, read_public_key
from ditedge.runtime.bundle.writing import copy_files, new_bundle
from ditedge.runtime.errors import BundleError, DitedgeError, RequestError
from ditedge.runtime.plans.lint import lint_plan
from ditedge.runtime.signing import new_key_pair, sign_bundle
from tests.doubles.gpu_double import DoubleGpu
from tests.doubles.plans import write_plans
from tests.runtime.bundle.signing import (
    ditedge,
    edit_signature,
    flip,
)


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
