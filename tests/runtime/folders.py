"""What tests of replacing share: the least that counts as a bundle, written as a command writes one."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ditedge.runtime.bundle.writing import new_bundle


def agree(_: Path) -> None:
    """may_replace: whatever lies there may go."""


def bundle(folder: Path, text: str = "old", **more: str) -> Path:
    """The least that counts as a bundle of ours. more: files that its manifest does not list."""
    folder.mkdir(parents=True)
    (folder / "step.onnx").write_text(text)
    (folder / "manifest.json").write_text(json.dumps({"format": "ditedge-bundle", "files": {"step.onnx": {}}}))
    for name, content in more.items():
        (folder / name).write_text(content)
    return folder


def make(out: Path, text: str = "new", force: bool = False, inputs: tuple[Path, ...] = ()) -> None:
    with new_bundle(out, force, inputs) as folder:
        (folder / "step.onnx").write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))
