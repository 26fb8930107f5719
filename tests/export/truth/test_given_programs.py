"""`export --program`: a table that was found for a model is in its bundle, and is what `run` plays."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from ditedge.cli import main
from ditedge.export.truth.programs import given_programs, write_programs
from ditedge.runtime.bundle.manifest import Manifest
from ditedge.runtime.bundle.open import open_bundle
from ditedge.runtime.errors import RequestError
from ditedge.runtime.samplers.program import read_program
from tests.conftest import BUNDLES, GOLDEN, MODELS

TUNED = MODELS / "fashion-programs" / "tuned-8.json"


def test_the_first_that_is_given_is_the_default(tmp_path: Path) -> None:
    checkpoint, out = GOLDEN / "gray1_cfg" / "model.pt", tmp_path / "bundle"
    programs = [arg for file in (TUNED, TUNED.with_name("tuned-15.json")) for arg in ("--program", str(file))]
    result = CliRunner().invoke(
        main, ["export", "--ckpt", str(checkpoint), "--heads", "2", "--out", str(out), "--golden-steps", "2", *programs]
    )
    assert result.exit_code == 0, result.output
    bundle = open_bundle(out)
    assert bundle.manifest.defaults.program == "tuned-8"
    for name in ("tuned-8", "tuned-15"):
        given, there = read_program(TUNED.with_name(f"{name}.json")), bundle.program(name)
        assert (given.mix == there.mix).all() and (given.guidance == there.guidance).all()
    assert "dpm++-20" in bundle.manifest.programs, "beside those that any bundle has"
    picture = tmp_path / "picture.png"
    result = CliRunner().invoke(main, ["run", "--engine", str(out), "--seed", "1", "-o", str(picture)])
    assert result.exit_code == 0 and "tuned-8" in result.output, result.output


def manifest() -> Manifest:
    return open_bundle(BUNDLES / "gray1_cfg").manifest


def refused(tmp_path: Path, sentence: str, **changes: object) -> None:
    path, known = tmp_path / "given.json", manifest()
    path.write_text(json.dumps({**json.loads(TUNED.read_text()), **changes}))
    with pytest.raises(RequestError, match=re.escape(sentence)):
        given = given_programs([path], known.model, known.schedule)
        write_programs(known.model, known.schedule, {}, tmp_path, 4, given=given)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "'../tuned' cannot be that of a file", name="../tuned")
    process = json.loads(TUNED.read_text())["process"]
    refused(tmp_path, "was made for a prediction of v; this model", process={**process, "prediction": "v"})
    refused(tmp_path, "'ddim-4' is the name of another program of this bundle", name="ddim-4")


def test_a_file_that_is_none_ends_with_a_sentence(tmp_path: Path) -> None:
    for bad in (tmp_path / "missing.json", GOLDEN / "gray1_cfg" / "case.json"):
        command = ["export", "--ckpt", str(GOLDEN / "gray1_cfg" / "model.pt"), "--heads", "2", "--program", str(bad)]
        result = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "out")])
        assert result.exit_code == 2 and str(bad) in result.output and not (tmp_path / "out").exists()
