"""Makes the bundles that lie here: every model of tests/golden, exported. After a change of the format or of a graph:

    python -m tests.bundles.make        (or: make test-bundles)

Tests that only use a bundle take these (no torch, no minute of exporting); tests/export/test_committed_bundles.py holds
that they are what `export` makes today.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from tests.conftest import BUNDLES, CASES, export_golden


def main() -> None:
    for case in CASES:
        with tempfile.TemporaryDirectory(dir=BUNDLES) as scratch:
            made = export_golden(case, Path(scratch) / case)
            shutil.rmtree(BUNDLES / case, ignore_errors=True)
            made.rename(BUNDLES / case)
        size = sum(file.stat().st_size for file in (BUNDLES / case).rglob("*") if file.is_file())
        print(f"wrote {BUNDLES / case} ({size / 1e3:.0f} kB)")


if __name__ == "__main__":
    main()
