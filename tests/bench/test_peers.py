"""Peers compute the same network; one that cannot is a row that says why."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from bench.peers import PEERS, Task
from bench.peers.child import inputs_of
from ditedge.export.sources.read import read_source
from ditedge.runtime import open_bundle
from ditedge.runtime.bench.measure import Contender, contender_of, measure
from ditedge.runtime.bench.request import BenchSettings
from tests.conftest import BUNDLES, GOLDEN, ROOT

CHECKPOINT, HEADS = GOLDEN / "gray1_cfg" / "model.pt", 2
HERE = {  # those whose packages the tests have anyway, and that compile nothing
    "PyTorch eager float32": 1e-6,
    "PyTorch eager bf16": 0.1,
    "diffusers DiTTransformer2DModel": 1e-5,
    "ONNX Runtime, unsplit": 1e-5,
    "ONNX Runtime, unsplit, its dynamic int8": 0.5,
    "OpenVINO, unsplit, f32": 1e-4,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("peers")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", HERE)
def test_a_peer_computes_the_same_network(name: str, folder: Path) -> None:
    if "OpenVINO" in name:
        pytest.importorskip("ditedge.runtime.loop.engine_openvino").load_openvino()
    source, peer = read_source(CHECKPOINT, heads=HEADS), PEERS[name]
    inputs = inputs_of(source.config, 2)
    with torch.no_grad():
        expected = source.model()(*inputs)
    evaluate = importlib.import_module(f"bench.peers.{peer.module}").make(
        Task(read_source(CHECKPOINT, heads=HEADS).model(), inputs, folder, 1), peer.variant
    )
    for _ in range(2):
        found = torch.as_tensor(evaluate())
        assert float((found - expected).norm() / expected.norm()) < HERE[name]
    assert HERE[name] <= max(peer.rounding, 0.5)


def test_every_peer_has_its_file_and_its_packages() -> None:
    """A file with `make`, and a requirements file for what ditedge's own extras do not bring."""
    peers = ROOT / "bench" / "peers"
    for peer in PEERS.values():
        assert "\ndef make(task: Task, variant: str) -> Evaluate:\n" in (peers / f"{peer.module}.py").read_text()
    listed = {path.stem.removeprefix("requirements-") for path in peers.glob("requirements-*.txt")}
    assert listed == {"nncf", "torchao", "executorch"}


def test_a_step_has_both_evaluations_of_an_image() -> None:
    config = read_source(CHECKPOINT, heads=HEADS).config
    x, timestep, label = inputs_of(config, 3)
    assert torch.equal(x[:3], x[3:]) and len(timestep) == len(label) == 6
    assert label.tolist() == [0, 1, 2] + [config.num_classes] * 3


def test_peers_take_turns_with_a_bundle(tmp_path: Path) -> None:
    """In processes of their own; what this machine lacks does not stop the others."""
    child = ROOT / "bench" / "peers" / "child.py"
    settings = BenchSettings(threads=1, repeats=2, drift_steps=2)
    first = open_bundle(BUNDLES / "gray1_cfg")
    contenders = [contender_of("ours", first.folder, first, "cpu", settings, first, tmp_path / "x.npy")]
    for name in ("CUDA: PyTorch bf16, CUDA graph", "PyTorch eager float32"):
        told = [name, CHECKPOINT, HEADS, 1, 1, tmp_path]
        contenders.append(Contender(name, [sys.executable, str(child), *map(str, told)], limit=PEERS[name].rounding))
    record = measure(contenders, settings, "a step", first)
    ours, cuda, eager = record.rows
    assert ours.status == "ok" and eager.status == "ok" and eager.drift < 1e-6 and eager.ratio is not None
    assert eager.parts.keys() == {"step"} and eager.image is not None
    if not torch.cuda.is_available():
        assert cuda.status == "failed" and "needs an NVIDIA GPU" in cuda.reason
    assert json.loads(record.model_dump_json())["rows"][2]["name"] == "PyTorch eager float32"
