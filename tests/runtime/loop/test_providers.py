"""The provider that was asked for is the one that runs, or the command says why not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from ditedge.cli import main
from ditedge.runtime import EngineOptions, Session, open_bundle
from ditedge.runtime.errors import EngineError
from ditedge.runtime.loop.engine_ort import PROVIDERS, _providers, check_provider

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime lists every provider, as its GPU build does where CUDA's libraries are missing."""
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: [*PROVIDERS.values(), "OpenVINOExecutionProvider"]
    )


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "OpenVINOExecutionProvider", "coreml", "directml"])
def test_a_provider_that_does_not_start_is_refused(golden_bundle, listed: None, provider: str) -> None:
    if PROVIDERS.get(provider, provider) in onnxruntime.capi._pybind_state.get_available_providers():
        pytest.skip(f"this ONNX Runtime has {provider}")
    with (
        Session(open_bundle(golden_bundle("gray1_cfg")), EngineOptions(provider)) as session,
        pytest.raises(EngineError, match=f"provider '{provider}' could not be started"),
    ):
        session.load("step")


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
@pytest.mark.parametrize("command", ["run", "verify", "compare"])
def test_every_command_refuses(golden_bundle, listed: None, tmp_path: Path, command: str) -> None:
    bundle = str(golden_bundle("gray1_cfg"))
    more = {"run": ["-o", str(tmp_path / "a.png"), "--json"], "verify": [], "compare": ["--against", bundle, "--json"]}
    result = CliRunner().invoke(main, [command, "--engine", bundle, "--provider", "directml", *more[command]])
    assert result.exit_code == 2 and "provider 'directml' could not be started" in result.stderr
    assert result.stdout == "" and not list(tmp_path.iterdir())


def test_a_provider_that_runs_nothing_is_refused(golden_bundle) -> None:
    """Real where the build has Azure's, which lists itself and takes no node of a graph."""
    azure = "AzureExecutionProvider"
    if azure not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no provider that takes nothing")
    with (
        Session(open_bundle(golden_bundle("gray1_cfg")), EngineOptions(azure)) as session,
        pytest.raises(EngineError, match="takes no node"),
    ):
        session.load("step")


def session(*used: str, known: bool = True) -> SimpleNamespace:
    def assignment() -> list[SimpleNamespace]:
        if not known:
            raise RuntimeError("not recorded")
        return [SimpleNamespace(ep_name=name) for name in used]

    return SimpleNamespace(
        get_providers=lambda: [PROVIDERS["cuda"], PROVIDERS["cpu"]], get_provider_graph_assignment_info=assignment
    )


def test_nodes_on_the_cpu_beside_the_provider_are_by_design() -> None:
    check_provider(session(PROVIDERS["cpu"], PROVIDERS["cuda"]), "cuda")
    check_provider(session(known=False), "cuda")  # an older library
    with pytest.raises(EngineError, match="takes no node"):
        check_provider(session(PROVIDERS["cpu"]), "cuda")


def test_float32_on_cuda_is_float32() -> None:
    assert _providers("cuda", list(PROVIDERS.values()))[0] == (PROVIDERS["cuda"], {"use_tf32": "0"})


def test_what_the_package_prints_is_no_output(golden_bundle, listed: None, monkeypatch, capsys) -> None:
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load libcudnn.so.9"))
    with Session(open_bundle(golden_bundle("gray1_cfg")), EngineOptions("CUDAExecutionProvider")) as session:
        with pytest.warns(UserWarning, match="not in available"), pytest.raises(EngineError):
            session.load("step")
        captured = capsys.readouterr()
    assert captured.out == "" and "libcudnn" in captured.err


def test_doctor_says_what_keeps_a_listed_provider_from_running(listed: None) -> None:
    from ditedge.runtime.doctor import examine

    finding = next(finding for finding in examine() if finding.name == "provider tensorrt")
    assert finding.found == "" and "onnxruntime_providers_tensorrt" in finding.remedy
