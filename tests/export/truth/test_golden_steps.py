"""How many steps the recorded trajectories have is the user's to say: each is an evaluation of a large network."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.numpy import load_file

from ditedge.export import ExportOptions, bundle_from_checkpoint
from ditedge.runtime import open_bundle
from tests.conftest import GOLDEN


def test_few_steps_are_recorded_replayed_and_get_ready_programs(tmp_path: Path) -> None:
    checkpoint = GOLDEN / "gray1_cfg" / "model.pt"
    bundle_from_checkpoint(checkpoint, tmp_path / "b", ExportOptions(heads=2, golden_steps=2))  # replays them
    bundle = open_bundle(tmp_path / "b")
    assert [golden.program for golden in bundle.manifest.golden] == ["ddpm-2", "ddim-2"]
    for golden in bundle.manifest.golden:
        assert len(load_file(bundle.folder / golden.file)["x"]) == bundle.program(golden.program).steps == 2


@pytest.mark.parametrize("steps", ["0", "1", "101"])
def test_numbers_that_are_none(tmp_path: Path, steps: str) -> None:
    from click.testing import CliRunner

    from ditedge.cli import main

    command = ["export", "--ckpt", GOLDEN / "gray1_cfg" / "model.pt", "--out", tmp_path / "b", "--golden-steps", steps]
    result = CliRunner().invoke(main, [*map(str, command)])
    assert result.exit_code == 2 and f"{steps} is not in the range 2<=x<=100" in result.output
