"""A bundle appears whole and checked, or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from ditedge.export import DiT, DiTConfig, ExportOptions, bundle_from_checkpoint
from ditedge.export import exporter as bundle_writer
from ditedge.export.graphs import write as graph_files
from ditedge.export.truth import programs
from ditedge.runtime import Session, generate, open_bundle
from ditedge.runtime.errors import BundleError, RequestError
from ditedge.runtime.loop.verify import replay
from tests.conftest import GOLDEN, ROOT

GRAY = GOLDEN / "gray1_cfg" / "model.safetensors"
HEADS = ExportOptions(heads=2)


def test_graphs_have_the_designs_tensors_and_sizes(golden_bundle) -> None:
    folder = golden_bundle("latent4_learned_sigma")
    manifest = open_bundle(folder).manifest
    for graph in manifest.graphs.values():
        model = onnx.load(folder / graph.file)
        onnx.checker.check_model(model, full_check=True)
        assert {opset.domain: opset.version for opset in model.opset_import} == {"": 20}
        for listed, actual in ((graph.inputs, model.graph.input), (graph.outputs, model.graph.output)):
            shapes = {t.name: [d.dim_param or d.dim_value for d in t.type.tensor_type.shape.dim] for t in actual}
            described = {
                t.name: [str(d).replace("K+2", "K + 2") if isinstance(d, str) else d for d in t.shape] for t in listed
            }
            assert shapes == described


def test_no_trace_of_the_exporting_machine(golden_bundle) -> None:
    folder = golden_bundle("gray1_cfg")
    for file in folder.rglob("*"):
        if file.is_file():
            raw = file.read_bytes()
            for needle in (str(ROOT), str(Path.home()), "site-packages", "Traceback", ".py"):
                assert needle.encode() not in raw, (file.name, needle)


def test_golden_trajectories_replay(golden_bundle) -> None:
    with Session(open_bundle(golden_bundle("latent4_learned_sigma"))) as session:
        results = [replay(session, golden) for golden in session.bundle.manifest.golden]
    assert [result.golden.guidance for result in results] == [4.0, 1.0]
    for result in results:
        assert len(result.error) == 10 and result.error.max() < 1e-5  # measured 2e-6


@pytest.mark.parametrize("opset", [pytest.param(18, marks=pytest.mark.slow), 20, 23])
def test_opsets(tmp_path: Path, opset: int) -> None:
    bundle_from_checkpoint(GRAY, tmp_path / "b", ExportOptions(heads=2, opset=opset))
    model = onnx.load(tmp_path / "b" / "step.onnx")
    assert model.opset_import[0].version == opset
    assert generate(open_bundle(tmp_path / "b"), [1], [2]).shape == (1, 8, 8, 1)


def test_weights_move_to_external_data_when_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ditedge.calibration.graph.surgery.EXTERNAL_DATA_BYTES", 100_000)
    manifest = bundle_from_checkpoint(GRAY, tmp_path / "b", HEADS)
    assert "step.onnx.data" in manifest.files and (tmp_path / "b" / "step.onnx").stat().st_size < 100_000
    raw = bytearray((tmp_path / "b" / "step.onnx.data").read_bytes())
    raw[100] ^= 1
    (tmp_path / "b" / "step.onnx.data").write_bytes(raw)
    with pytest.raises(BundleError, match=r"step\.onnx\.data"):
        open_bundle(tmp_path / "b")


@pytest.mark.parametrize("broken", ["graph", "golden", "interrupt", "disk"])
def test_nothing_is_left_behind_on_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    expected: type[BaseException] = BundleError
    if broken == "graph":  # the exported graph has other weights than the network it is compared with
        real = graph_files.onnx_from_module

        def other_weights(module, *args) -> None:
            real(module, *args)
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter += 0.01

        monkeypatch.setattr(graph_files, "onnx_from_module", other_weights)
    elif broken == "golden":  # a table that is not the reference's session
        real_program = programs.make_program

        def wrong(*args, **options):
            program = real_program(*args, **options)
            program.mix[3] *= 1.001
            return program

        monkeypatch.setattr(programs, "make_program", wrong)
    else:
        error = KeyboardInterrupt() if broken == "interrupt" else OSError(28, "No space left on device")
        expected = KeyboardInterrupt if broken == "interrupt" else RequestError

        def fail(*args) -> None:
            raise error

        monkeypatch.setattr(bundle_writer, "write_golden", fail)
    with pytest.raises(expected):
        bundle_from_checkpoint(GRAY, tmp_path / "b", HEADS)
    assert list(tmp_path.iterdir()) == []


def test_existing_bundles_are_replaced_only_by_force(tmp_path: Path) -> None:
    out = tmp_path / "b"
    bundle_from_checkpoint(GRAY, out, HEADS)
    before = (out / "manifest.json").read_bytes()
    with pytest.raises(RequestError, match="use --force"):
        bundle_from_checkpoint(GRAY, out, HEADS)
    bundle_from_checkpoint(GRAY, out, ExportOptions(heads=2, force=True, labels=tuple("abcdefghij")))
    assert (out / "manifest.json").read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    out = tmp_path / "precious"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(RequestError, match="is not a bundle"):
        bundle_from_checkpoint(GRAY, out, ExportOptions(heads=2, force=True))
    assert (out / "thesis.txt").read_text() == "years of work"


@pytest.mark.slow  # one more export: other numbers of classes are in every source's tests
def test_a_17_class_checkpoint_works(tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = DiTConfig(8, 2, 3, 48, 2, 3, num_classes=17)
    model = DiT(config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    bundle_from_checkpoint(tmp_path / "m.safetensors", tmp_path / "b", ExportOptions(heads=3, pixels=True))
    bundle = open_bundle(tmp_path / "b")
    assert (bundle.manifest.model.num_classes, bundle.manifest.model.null_class) == (17, 17)
    program = bundle.program(steps=3)
    guided = generate(bundle, [16], [0], guidance=3.0, program=program, output="latents")
    plain = generate(bundle, [16], [0], guidance=1.0, program=program, output="latents")
    null = generate(bundle, [17], [0], guidance=1.0, program=program, output="latents")
    assert np.abs(guided - plain).max() > 1e-3 < np.abs(plain - null).max()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (ExportOptions(heads=2, guided_channels=2), "--guided-channels 2"),
        (ExportOptions(heads=2, labels=("a", "b")), "2 class names for 10 classes"),
        (ExportOptions(heads=2, labels=tuple("abcdefghijk")), "no-null-class"),
    ],
)
def test_options_that_do_not_fit_the_model(tmp_path: Path, options: ExportOptions, complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        bundle_from_checkpoint(GRAY, tmp_path / "b", options)
    assert list(tmp_path.iterdir()) == []
