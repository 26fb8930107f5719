"""A bundle from a bundle, in one order of work. Nothing appears at the target before everything succeeded.

    the graphs are rewritten -> the golden trajectories replayed -> the whole judged -> written, or not at all

The golden trajectories are kept: they say what PyTorch computed in float32. Only how far the new graphs may be from
them changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ditedge import __version__

from ..runtime.bundle.manifest import MANIFEST_NAME, GoldenInfo, Manifest
from ..runtime.bundle.open import Bundle, open_bundle
from ..runtime.bundle.writing import copy_files, hashed_files, new_bundle
from ..runtime.files import write_text
from ..runtime.loop.engine import Engine
from ..runtime.loop.verify import Replay, replay_golden
from ..runtime.replacing import scratch_beside
from ..runtime.report import Report, silent


@dataclass(frozen=True)
class Derivation:
    """What a command puts into the order of work; each step raises DitedgeError, and then nothing is left.

    rewrite: writes `graphs` into the new bundle's folder, with a second folder for temporary files, and returns the
        fields of the manifest that change.
    tolerance: what the new manifest allows a replayed trajectory. None: nothing is replayed, because the decoder alone
        is another one.
    engines: that replay, of the new bundle and with a folder for temporary files. None: those of its graphs.
    judge: of the new bundle and of how many seconds the replay took; may add files to its folder.
    """

    graphs: tuple[str, ...]
    rewrite: Callable[[Path, Path], dict[str, Any]]
    tolerance: Callable[[Replay], float] | None = None
    engines: Callable[[Bundle, Path], Mapping[str, Engine]] | None = None
    judge: Callable[[Bundle, float], None] | None = None


def derive_bundle(
    source: Bundle,
    out: Path,
    how: Derivation,
    *,
    inputs: Sequence[Path] = (),
    force: bool = False,
    report: Report = silent,
) -> Manifest:
    """Writes what `how` makes of the bundle `source` to `out`. inputs: what else is read, and so never replaced.

    Raises DitedgeError; then nothing is left behind.
    """
    with new_bundle(out, force, [source.folder, *inputs]) as folder, scratch_beside(out) as scratch:
        copy_files(source, folder, [graph for graph in how.graphs if graph in source.manifest.graphs])
        changes = how.rewrite(folder, scratch)
        new = {"name": out.name, "made_by": f"ditedge {__version__}", "files": hashed_files(folder), **changes}
        manifest, seconds = _write(folder, source.manifest, new), 0.0
        bundle = _open(folder)  # validates the manifest, and looks at every graph
        if how.tolerance is not None:
            start = time.monotonic()
            manifest = _write(folder, manifest, {"golden": _replayed(bundle, how, scratch, report)})
            seconds = time.monotonic() - start
        if how.judge is not None:
            how.judge(_open(folder), seconds)
            manifest = _write(folder, manifest, {"files": hashed_files(folder, manifest.files)})
    return manifest


def _write(folder: Path, manifest: Manifest, changes: dict[str, Any]) -> Manifest:
    manifest = manifest.model_copy(update=changes)
    write_text(folder / MANIFEST_NAME, manifest.json_text())
    return manifest


def _open(folder: Path) -> Bundle:
    """The new bundle, whose files are ours and a moment old: nothing is hashed again, and nobody signed it yet."""
    return open_bundle(folder, check_hashes=False, trusted_keys=())


def _replayed(bundle: Bundle, how: Derivation, scratch: Path, report: Report) -> list[GoldenInfo]:
    """The trajectories with their new tolerances."""
    assert how.tolerance is not None
    report("replaying the golden trajectories")
    engines = how.engines(bundle, scratch) if how.engines is not None else None
    results = replay_golden(bundle, engines, report)
    return [result.golden.model_copy(update={"tolerance": how.tolerance(result)}) for result in results]
