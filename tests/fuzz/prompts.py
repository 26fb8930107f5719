"""What a bundle that takes prompts reads: its manifest, its tokenizer, recorded prompts, trajectories of prompts."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from ditedge.runtime import Session, open_bundle
from ditedge.runtime.describe import describe_bundle
from ditedge.runtime.loop.prompts import empty_prompt, read_prompt
from ditedge.runtime.loop.tokenizing import Tokenizer
from ditedge.runtime.loop.verify import replay
from tests.conftest import BUNDLES, PIXART
from tests.fuzz.mutations import mutated_bytes, mutated_json, mutated_safetensors
from tests.fuzz.target import Files, Target


def prompt_targets(folder: Path) -> list[Target]:
    """What is around their documents is made below `folder`."""
    for name in ("prompt manifest", "tokenizer", "prompt golden", "recorded prompt"):
        if not (folder / name).exists():
            shutil.copytree(BUNDLES / PIXART, folder / name)
    true = json.loads((BUNDLES / PIXART / "manifest.json").read_text())
    golden, empty, tokenizer = true["golden"][0]["file"], true["text"]["empty"], true["text"]["tokenizer"]
    raw = {name: (BUNDLES / PIXART / name).read_bytes() for name in (golden, empty, tokenizer)}

    def with_file(name: str, data: bytes) -> Files:
        files = true["files"] | {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}}
        return {"manifest.json": json.dumps(true | {"files": files}).encode(), name: data}

    def read_recorded(path: Path) -> None:
        bundle = open_bundle(path)
        empty_prompt(bundle)
        read_prompt(path / empty, bundle)

    def replay_all(path: Path) -> None:
        with Session(open_bundle(path)) as session:
            replay(session, session.bundle.manifest.golden[0])

    return [
        Target("prompt manifest", lambda random: {"manifest.json": mutated_json(random, true)},
               lambda path: describe_bundle(open_bundle(path))),
        Target("tokenizer", lambda random: with_file(tokenizer, random.choice(
                   (mutated_json(random, json.loads(raw[tokenizer])), mutated_bytes(random, raw[tokenizer])))),
               lambda path: Tokenizer(open_bundle(path)).prompt("a red fox")),
        Target("recorded prompt", lambda random: with_file(empty, mutated_safetensors(random, raw[empty])), read_recorded),
        Target("prompt golden", lambda random: with_file(golden, mutated_safetensors(random, raw[golden])), replay_all),
    ]  # fmt: skip
