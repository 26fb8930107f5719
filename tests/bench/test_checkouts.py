"""Two checkouts in one run: each with its own code and bundle."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import BUNDLES, ROOT


def test_each_runs_the_code_of_its_own_checkout(tmp_path: Path) -> None:
    """The other one is a copy whose steps say that they take a thousand seconds; a third has no such bundle, a fourth no
    such provider."""
    other = tmp_path / "other"
    other.mkdir()
    for name in ("ditedge", "runtime", "cli.py"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, other / name)
    session = other / "runtime" / "loop" / "session.py"
    session.write_text(
        session.read_text() + "\nimport time\ntime.perf_counter = iter(range(0, 10**9, 4000)).__next__\n"
    )
    shutil.rmtree(other / "runtime" / "bench")
    gray = BUNDLES / "gray1_cfg"
    command = [
        sys.executable,
        ROOT / "bench" / "checkouts.py",
        f"{ROOT}:{gray}",
        f"{other}:{gray}",
        f"{ROOT}:{tmp_path}",
        f"{ROOT}:{gray}@abacus",
    ]
    done = subprocess.run(
        [*command, "--repeats", "1", "--threads", "1", "--steps", "4"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    ours, theirs, failed, unknown = done.stdout.splitlines()
    assert float(re.search(r": ([\d.]+) ms a step", ours)[1]) < 100_000 and "1.000x (1.000 to 1.000)" in ours
    assert f"{1000 * 1000:.2f} ms a step" in theirs and "0.000x" in theirs
    assert "failed" in failed and "is not a bundle" in failed
    assert "failed" in unknown and "there is no provider 'abacus'" in unknown
