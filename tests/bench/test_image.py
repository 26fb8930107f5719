"""One picture of the reference recipe and of bundles, in turns."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import BUNDLES, GOLDEN, ROOT


def test_a_picture_of_the_reference_is_all_of_its_steps(tmp_path: Path) -> None:
    """What it says of the reference is 250 steps; of a bundle, the passes of its program, in one measurement."""
    gray, checkpoint = BUNDLES / "gray1_cfg", GOLDEN / "gray1_cfg" / "model.pt"
    command = [sys.executable, ROOT / "bench" / "image.py", "--ckpt", checkpoint, "--heads", "2"]
    command += ["--engine", gray, "--engine", tmp_path, "--threads", "1", "--repeats", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    machine, reference, ours, failed = done.stdout.splitlines()
    assert "processors" in machine and "500 passes" in reference and "1.0x (1.0 to 1.0)" in reference
    seconds, mine = (float(re.search(r"([\d.]+) s a picture", line)[1]) for line in (reference, ours))
    assert seconds > 250 * 1e-4 and re.search(rf"{gray}: \d+ passes", ours) and mine < seconds
    assert "failed" in failed and "is not a bundle" in failed
