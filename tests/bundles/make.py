"""Makes the bundles that lie here: every model of tests/golden, and a small PixArt pipeline, exported. After a change of the format or of a graph:

    python -m tests.bundles.make        (or: make test-bundles)

Tests that only use a bundle take these (no torch, no minute of exporting); tests/export/test_committed_bundles.py holds
that they are what `export` makes today.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from tests.conftest import BUNDLES, CASES, PIXART, export_golden
from tests.export.pixart_pipelines import export_pixart, small_pipeline


def main() -> None:
    for case in (*CASES, PIXART):
        with tempfile.TemporaryDirectory(dir=BUNDLES) as scratch:
            made = _made(case, Path(scratch))
            shutil.rmtree(BUNDLES / case, ignore_errors=True)
            made.rename(BUNDLES / case)
        size = sum(file.stat().st_size for file in (BUNDLES / case).rglob("*") if file.is_file())
        print(f"wrote {BUNDLES / case} ({size / 1e3:.0f} kB)")


def _made(case: str, scratch: Path) -> Path:
    if case == PIXART:
        return export_pixart(small_pipeline(), scratch / "pipeline", scratch / case)
    return export_golden(case, scratch / case)


if __name__ == "__main__":
    main()
