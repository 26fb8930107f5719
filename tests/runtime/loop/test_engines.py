"""The table of engines: what it holds is what help texts, `doctor` and errors say, and the page on adding one is true."""

from __future__ import annotations

import doctest
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ditedge.cli import main
from ditedge.runtime import EngineOptions, Session, open_bundle
from ditedge.runtime.doctor import examine
from ditedge.runtime.errors import EngineError
from ditedge.runtime.loop import engines
from ditedge.runtime.loop.engine import EngineKind
from ditedge.runtime.loop.engine_ort import OrtEngine
from ditedge.runtime.loop.engines import ENGINES, kind_of, open_engine, providers
from tests.conftest import ROOT


class Nothing:
    """An engine that leaves its outputs as they are."""

    inputs: frozenset[str] = frozenset()

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], cancel: object = None) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch) -> EngineKind:
    """Another line in the table."""
    kind = EngineKind(
        packages={"no-such-package": ("computes nothing", "pip install no-such-package")},
        providers={"nothing": "nothing at all"},
        open=lambda graph, options: Nothing(),
        refusal=lambda provider: f"{provider} is not here",
    )
    monkeypatch.setitem(ENGINES, "Nothing", kind)
    return kind


def test_an_engine_is_chosen_by_its_provider(golden_bundle, nothing: EngineKind) -> None:
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    with Session(bundle, EngineOptions("nothing")) as session:
        assert isinstance(session.engine("step"), Nothing)
    with Session(bundle) as session:
        assert isinstance(session.engine("step"), OrtEngine)


def test_doctor_lists_packages_and_providers_of_the_table(nothing: EngineKind) -> None:
    findings = {finding.name: finding for finding in examine()}
    assert findings["no-such-package"].remedy == "pip install no-such-package"
    assert findings["provider nothing"].found == "" and findings["provider nothing"].remedy == "nothing is not here"
    for kind in ENGINES.values():
        assert {f"provider {name}" for name in kind.providers} | set(kind.packages) <= set(findings)


def test_an_unknown_provider_is_told_the_table(golden_bundle, nothing: EngineKind) -> None:
    with Session(open_bundle(golden_bundle("gray1_cfg")), EngineOptions("abacus")) as session:
        with pytest.raises(EngineError, match=r"no provider 'abacus'; there are: cpu, .*openvino-bf16, nothing; see"):
            session.load("step")


def test_full_names_are_onnx_runtimes() -> None:
    assert kind_of("OpenVINOExecutionProvider") is ENGINES["ONNX Runtime"]
    assert kind_of("openvino") is ENGINES["OpenVINO"]


@pytest.mark.parametrize("command", ["run", "verify"])
def test_help_lists_the_table(command: str) -> None:
    help_text = "".join(CliRunner().invoke(main, [command, "--help"]).stdout.split())
    assert ",".join(providers()) in help_text


def test_another_file_than_a_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no engine for '\.xml' files; give the bundle folder"):
        open_engine(tmp_path / "step.xml", EngineOptions("openvino"))


def test_the_page_on_adding_an_engine_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(engines, "ENGINES", dict(ENGINES))  # what the page adds is gone again
    result = doctest.testfile(str(ROOT / "docs" / "adding-an-engine.md"), module_relative=False)
    assert result.attempted > 9 and result.failed == 0
