"""Networks of the user's own, and the commands on every kind of source."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from ditedge.cli import main
from ditedge.export import DiT, DiTConfig, ExportOptions, bundle_from_checkpoint, read_checkpoint, read_source
from ditedge.runtime import generate, open_bundle
from ditedge.runtime.errors import CheckpointError
from tests.conftest import ROOT
from tests.export.sources.diffusers_models import GRAY

SMALL = """
import torch
from torch import nn
from ditedge.export import DiTConfig

class Small(nn.Module):
    '''A convolution whose gain is the modulation: M = 1, nothing of DiT but the interface.'''

    config = DiTConfig(8, 2, 1, 32, 2, 2, num_classes=10, learn_sigma=False)

    def __init__(self, state):
        super().__init__()
        self.conv, self.table = nn.Conv2d(1, 1, 3, padding=1), nn.Embedding(11, 1)

    def conditioner(self, timestep, label):
        return self.table(label) + torch.cos(timestep / 1000)[:, None]

    def trunk(self, x, modulation):
        return self.conv(x) * modulation[:, :, None, None]
"""


def custom(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: str) -> None:
    (folder / f"{name}.py").write_text(code)
    monkeypatch.chdir(folder)


@pytest.fixture
def documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What --model is told of the page's network."""
    text = (ROOT / "docs" / "custom-models.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    custom(tmp_path, monkeypatch, "documented_dit", code)
    return "documented_dit:build"


def test_the_documented_custom_model_is_read(documented: str) -> None:
    """With every check of the interface: shapes, types, rows that do not see each other."""
    checkpoint = read_source(GRAY, model=documented)
    assert checkpoint.module is not None and checkpoint.config.null_class
    given = read_checkpoint(GRAY, heads=2)  # the same weights, in the page's module
    assert all(torch.equal(checkpoint.weights[key], weight) for key, weight in given.weights.items())
    with torch.no_grad():
        x, modulation = torch.randn(1, 1, 8, 8), torch.randn(1, 6 * 2 * 32 + 2 * 32)
        assert not torch.allclose(checkpoint.model().trunk(x, modulation), given.model().trunk(x, modulation))


@pytest.mark.slow  # one more export: test_a_custom_model_that_only_mimics_dit has one
def test_the_documented_custom_model(documented: str, tmp_path: Path) -> None:
    manifest = bundle_from_checkpoint(GRAY, tmp_path / "b", ExportOptions(model=documented))
    assert (manifest.model.architecture, manifest.model.null_class) == ("custom", 10)
    plain = DiT(DiTConfig(8, 2, 1, 32, 2, 2, num_classes=10, learn_sigma=manifest.model.learned_variance))
    assert manifest.model.parameters == sum(tensor.numel() for tensor in plain.state_dict().values())


def test_a_custom_model_that_only_mimics_dit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    custom(tmp_path, monkeypatch, "small_dit", SMALL)
    bundle_from_checkpoint(GRAY, tmp_path / "b", ExportOptions(model="small_dit:Small", prediction="flow-to-data"))
    bundle = open_bundle(tmp_path / "b")
    assert bundle.manifest.graphs["conditioner"].outputs[0].shape == ["U", 1]
    assert generate(bundle, [1, 2], [0, 1], program=bundle.program(steps=3)).shape == (2, 8, 8, 1)


@pytest.mark.parametrize(
    ("spec", "change", "complaint"),
    [
        ("broken", ("", ""), "write it as package.module:factory"),
        ("nowhere:Small", ("", ""), "cannot import nowhere"),
        ("broken:Large", ("", ""), "broken has no function 'Large'"),
        ("broken:Small", ("import torch\n", "import torch\n1 / 0\n"), r"ZeroDivisionError: .* \(broken.py, line 3\)"),
        ("broken:Small", ("super().__init__()", "state['lora']"), "the factory failed: KeyError: 'lora'"),
        ("broken:Small", ("def trunk", "def body"), "no attribute 'trunk'"),
        ("broken:Small", ("config = DiTConfig(", "config = dict(a="), "cannot import broken .*SyntaxError"),
        ("broken:Small", ("config = ", "config = 3 #"), "config is of type int"),
        ("broken:Small", ("[:, None]\n", "[:, None].double()\n"), r"conditioner\(.*\) returned a torch.float64 tensor"),
        ("broken:Small", ("self.conv(x) *", "self.conv(x).double() *"), "returned a torch.float64 tensor"),
        (
            "broken:Small",
            ("return self.conv(x) *", "return 3 #"),
            "returned an object of type int, expected a float32 tensor",
        ),
        ("broken:Small", ("self.conv(x) *", "self.conv(x)[:, :, 1:] *"), r"shape \[3, 1, 7, 8\], expected"),
        ("broken:Small", ("self.conv(x) *", "self.conv(x) / 0 *"), "not finite"),
        ("broken:Small", ("self.conv(x) *", "torch.rand_like(x) *"), "two outputs for one input"),
        ("broken:Small", ("self.conv(x) *", "x.mean(0) *"), "depends on the other rows"),
        ("broken:Small", ("nn.Embedding(11, 1)", "nn.Embedding(2, 1)"), "failed on a batch of 3: IndexError"),
    ],
)
def test_broken_custom_models_say_what_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, change: tuple[str, str], complaint: str
) -> None:
    monkeypatch.delitem(__import__("sys").modules, "broken", raising=False)
    custom(tmp_path, monkeypatch, "broken", SMALL.replace(*change))
    with pytest.raises(CheckpointError, match=f"--model {spec}: .*({complaint})"):
        read_source(GRAY, model=spec)


def test_a_flow_has_no_variance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = SMALL.replace("learn_sigma=False", "learn_sigma=True").replace("self.conv(x) *", "x.repeat(1, 2, 1, 1) *")
    custom(tmp_path, monkeypatch, "flow_dit", code)
    with pytest.raises(CheckpointError, match="set learn_sigma=False"):
        read_source(GRAY, model="flow_dit:Small", prediction="flow-to-data")
    with pytest.raises(CheckpointError, match="leave --heads"):
        read_source(GRAY, model="flow_dit:Small", heads=2)


def test_the_commands_take_every_source(
    transformer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder's default bundle name, `inspect` of a folder, and a SiT bundle sampled with its own sampler."""
    monkeypatch.chdir(transformer_folder.parent)
    run = CliRunner().invoke
    inspected = run(main, ["inspect", "transformer", "--json"], catch_exceptions=False)
    description = json.loads(inspected.stdout)
    assert description["model"]["frequency_divisor"] == 127 and description["prediction"] == "epsilon"
    monkeypatch.chdir(tmp_path)
    shutil.copytree(transformer_folder, tmp_path / "dit")
    made = run(main, ["export", "--ckpt", "dit"], catch_exceptions=False)
    assert made.exit_code == 0 and (tmp_path / "dit-bundle" / "manifest.json").is_file(), made.output
    flow = ["export", "--ckpt", str(GRAY), "--heads", "2", "--prediction", "flow-to-data", "--out", "sit"]
    assert run(main, flow, catch_exceptions=False).exit_code == 0
    sample = ["run", "--engine", "sit", "--sampler", "flow-euler", "--steps", "3", "--count", "2", "-o", "a.png"]
    assert run(main, sample, catch_exceptions=False).exit_code == 0
    again = run(main, ["run", "--engine", "sit", "--like", "a.png", "-o", "b.png"], catch_exceptions=False)
    assert again.exit_code == 0 and (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert run(main, ["verify", "--engine", "sit"], catch_exceptions=False).output.count("passed") == 2
    assert run(main, ["inspect", "sit"], catch_exceptions=False).exit_code == 0
