"""Manifests, programs and build records, true and mutated: Python and C++ take the same ones and refuse the same ones.

    python -m tests.fuzz.verdicts --bundle build/demo/fashion --program build/cpp/ditedge-verdicts --count 10000

Both ask their own readers, with their own limits; what they say of a refused file may differ. C++ does not look at fields that it
has no use for (UNUSED; docs/format.md, "Reading rules"): where Python refuses a document, it is asked again with true values there.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from ditedge.runtime.bundle.manifest import MAX_MANIFEST_BYTES, manifest_from_json
from ditedge.runtime.errors import DitedgeError
from ditedge.runtime.json_files import MAX_VALUES, parse_json, read_bounded
from ditedge.runtime.plans.record import read_build_record
from ditedge.runtime.samplers.program import MAX_PROGRAM_BYTES, read_program
from tests.conftest import BUNDLES, PIXART, ROOT
from tests.fuzz.mutations import mutated_json

# What C++ does not look at, and a value that Python takes there ("=min": that of the field min beside it).
UNUSED: dict[str, dict[str, Any]] = {
    "manifest": {
        **{
            "name": "",
            "made_by": "",
            "source_sha256": "0" * 64,
            "golden": [],
            "vae": None,
            "quantization": None,
            "text/tokenizer": None,
            "text/further/*/tokenizer": None,
            "text/instruction/text": "x",
            "text/further/*/instruction/text": "x",
            "flow": None,
        },
        **{"model/architecture": "dit", "model/patch_size": 1, "model/hidden_size": 1, "model/depth": 1},
        **{"model/num_heads": 1, "model/parameters": 1, "model/learned_variance": False, "model/frequency_divisor": 1},
        **{"model/mlp_norm_eps": 0.5, "model/mlp_ratio": 1.0},
    },
    "record": {
        **{"made_by": "", "gpu": None, "max_rows": 1, "plans/*/source_sha256": "0" * 64, "plans/*/seconds": 0},
        **{"plans/*/profile/*/opt": "=min", "plans/*/further/*/*/opt": "=min"},
    },
}
RECORD = ROOT / "tests" / "cpp" / "build.json"
READERS: dict[str, Any] = {
    "manifest": lambda path: manifest_from_json(read_bounded(path, MAX_MANIFEST_BYTES, DitedgeError), path),
    "program": read_program,
    "record": read_build_record,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--program", type=Path, required=True, help="ditedge-verdicts")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("build/verdicts"), help="where documents of two verdicts go")
    options = parser.parse_args()
    counts, differences = compare(options.bundle, options.program, options.out, options.count, options.seed)
    print(
        f"{options.count} documents, seed {options.seed}: {dict(sorted(counts.items()))}; {len(differences)} differences"
    )
    print("\n".join(differences))
    sys.exit(bool(differences))


def compare(bundle: Path, program: Path, out: Path, count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Documents by kind and verdict, and a line for each that Python and C++ do not agree about; they stay in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    verdicts: Counter[str] = Counter()
    differences = []
    with cpp_reader(program) as cpp_verdict:
        for name, kind, raw in documents(bundle, count, seed):
            path = out / f"{name}.json"
            path.write_bytes(raw)
            ours, theirs = python_verdict(kind, path), cpp_verdict(kind, path)
            verdicts[f"{kind} {_word(ours)}"] += 1
            if _word(ours) == _word(theirs):
                path.unlink()
            else:
                differences.append(f"{path}\n  Python: {ours[:300]}\n  C++:    {theirs[:300]}")
    return verdicts, differences


@contextmanager
def cpp_reader(program: Path) -> Iterator[Callable[[str, Path], str]]:
    """ditedge-verdicts as a function of kind and path: "taken", or "refused: " and why. Raises where it dies."""
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as cpp:
        assert cpp.stdin is not None and cpp.stdout is not None
        questions, answers = cpp.stdin, cpp.stdout

        def ask(kind: str, path: Path) -> str:
            print(kind, path, file=questions, flush=True)
            answer = answers.readline().strip()
            if not answer:
                raise RuntimeError(f"{program} died of the {kind} {path}")
            return answer

        yield ask


def _word(verdict: str) -> str:
    return verdict.split(":")[0]


def documents(bundle: Path, count: int, seed: int) -> Iterator[tuple[str, str, bytes]]:
    """(name, kind, text): the true documents, of a thousand on those at the edge of a limit, then mutated ones."""
    true = [("manifest", manifest) for manifest in manifests(bundle)]
    true += [("program", program) for program in programs(bundle)] + [("record", record) for record in records()]
    given = [(kind, json.dumps(document).encode()) for kind, document in true]
    given += [("program", raw) for raw in edges(true[len(manifests(bundle)) + 1][1])] if count >= 1000 else []
    for index in range(count):
        random = Random(f"{seed}/{index}")
        kind, document = random.choice(true)
        kind, raw = given[index] if index < len(given) else (kind, mutated_json(random, document))
        yield f"{seed}-{index}-{kind}", kind, raw


def edges(program: Any) -> Iterator[bytes]:
    """Programs whose settings are as many or as deep as a document may be, and one more."""
    room = MAX_VALUES - _values(program | {"made": {"x": []}})
    for value in ("0", '"a"', "[]", "{}", '"["', '"\\\\\\"["'):
        for count in (room, room + 1):
            yield (
                json.dumps(program | {"made": {"x": None}})
                .replace("null", f"[{','.join([value] * count)}]", 1)
                .encode()
            )
    for depth in range(28, 34):
        for opens, closes in ("[]", ('{"a":', "}")):
            yield (
                json.dumps(program | {"made": {"x": None}})
                .replace("null", opens * depth + "1" + closes * depth)
                .encode()
            )
    for text in ("[" * MAX_VALUES, "x" * MAX_PROGRAM_BYTES, '"[' * MAX_VALUES):
        yield json.dumps(program | {"made": {text: text[:9]}}).encode()


def _values(document: Any) -> int:
    """Objects, lists, texts, numbers, true, false and null of a document."""
    inner = document.values() if isinstance(document, dict) else document if isinstance(document, list) else ()
    return 1 + sum(map(_values, inner))


def manifests(bundle: Path) -> list[Any]:
    """A bundle's manifest, and others with each object and each kind of model that it has not."""
    plain = json.loads((bundle / "manifest.json").read_text())
    channels, digest = plain["model"]["in_channels"], "0" * 64
    full = copy.deepcopy(plain)
    full["vae"] = {"kind": "kl", "source_sha256": digest, "precision": "float16", "scaling_factor": 0.18}
    full["vae"] |= {"shift_factor": 0, "latents_mean": [0.5] * channels, "latents_std": [1] * channels}
    full["graphs"]["preview"] = copy.deepcopy(plain["graphs"].get("decoder") or plain["graphs"]["preview"])
    full["quantization"] = {"precision": "int8", "form": "onnxruntime", "weights": "per-channel", "decoder": "int8"}
    full["quantization"] |= {"activations": "static", "smoothing": 0.5, "kept": ["final_layer.linear"]}
    full["quantization"] |= {"conditioner": "int8", "source_bundle": digest, "calibration": digest}
    flow = copy.deepcopy(plain) | {"schedule": None, "labels": []}
    flow["model"] |= {"prediction": "flow-to-data", "timestep_range": [0, 1.0], "null_class": None}
    flow["graphs"].pop("decoder", None)
    later = copy.deepcopy(full) | {"requires": [], "surprise": {"deep": [1]}}
    later["quantization"] = {"precision": "nf4", "blocks": 64}
    later["golden"][0] |= {"prompt": "a cat", "tolerance": 3}
    later["graphs"]["step"] |= {"precision": "float8", "surprise": 1}
    later["graphs"]["text"] = {"file": "text.onnx", "inputs": [{"name": "ids", "dtype": "int32"}]}
    given = copy.deepcopy(plain)
    given["schedule"] = {"kind": "given", "betas": [0.1, 0.2, 0.3], "steps": 3, "zero_terminal_snr": True}
    given["graphs"]["step-short"] = copy.deepcopy(given["graphs"]["step"])
    return [plain, full, flow, given, later, *prompts()]


def prompts() -> list[Any]:
    """Of a model that takes prompts; and of one that is told its picture's size, and whose prompts are recorded."""
    plain = json.loads((BUNDLES / PIXART / "manifest.json").read_text())
    told = copy.deepcopy(plain)
    told["text"] |= {"encoder_sha256": None, "tokenizer": None, "empty": None}
    del told["graphs"]["text"], told["text"]["pad"]
    sizes = [{"name": name, "dtype": "float32", "shape": ["U"]} for name in ("height", "width")]
    told["graphs"]["conditioner"]["inputs"] += sizes
    two = copy.deepcopy(plain) | {"flow": {"shift": 3.0}}
    two["text"] |= {"pooled": 8, "guidance": "embedded"}
    two["text"]["further"] = [{"tokens": 8, "width": None, "pooled": 4, "masked": False, "tokenizer": None}]
    two["defaults"]["by_tokens"] = {"16": "ddim-10", "64": "ddim-25"}
    two["graphs"]["text_2"] = {"file": "text.onnx", "inputs": [{"name": "ids", "dtype": "int64", "shape": ["P", 8]}]}
    two["graphs"]["text_2"]["outputs"] = [{"name": "pooled", "dtype": "float32", "shape": ["P", 4]}]
    vector = {"name": "vector", "dtype": "float32", "shape": ["P", 12]}
    two["graphs"]["context"]["outputs"].append(vector)
    two["graphs"]["conditioner"]["inputs"] += [vector, {"name": "guidance", "dtype": "float32", "shape": ["U"]}]
    del two["graphs"]["position"]
    return [plain, told, two]


def programs(bundle: Path) -> list[Any]:
    """A program of the bundle, one of two slots and noise, and what each may have been made for."""
    smallest = min((bundle / "programs").iterdir(), key=lambda path: path.stat().st_size)
    plain = json.loads(smallest.read_text())
    schedules = [
        {"kind": "linear", "beta_start": 1e-4, "beta_end": 0.02, "betas": None, "steps": 1000},
        {"kind": "given", "betas": [0.1, 0.2], "steps": 2, "zero_terminal_snr": False},
        {"kind": "cosine", "steps": 50},
        None,
    ]
    small = {
        "version": 2,
        "name": "two",
        "made": {"sampler": "ddim", "steps": 9},
        "init": [0, 1],
        "x0_bound": 3e38,
        "timestep": [9, 0.5],
    }
    small |= {"x0_from": [[1, 0.5], [2.0, -1]], "log_sigma": [[0, 0], [0.5, 1]], "guidance": [1, 0.5]}
    small |= {"mix": [[[1, 0, 0.5, 1], [0, 1, 0, 0]], [[0, 0, 1.0, 0], [1, 1, 1, 0]]]}
    ranges, predictions = ([999, 0], [0, 1.0]), ("epsilon", "x0", "v", "flow")
    made_for = [
        {"prediction": prediction, "timestep_range": ranges[i % 2], "schedule": schedule}
        for i, (prediction, schedule) in enumerate(zip(predictions, schedules, strict=True))
    ]
    short = small | {"graph": ["step", "step-short"]}
    return [
        plain,
        small,
        small | {"process": None, "graph": None},
        short,
        *(small | {"process": process} for process in made_for),
    ]


def records() -> list[Any]:
    plain = json.loads(RECORD.read_text())
    later = copy.deepcopy(plain) | {"surprise": 1, "gpu": {"name": "a GPU"}}
    later["plans"]["text"] = {"file": "text.plan"}
    return [plain, plain | {"weight_streaming_mb": 100, "gpu": "a GPU", "flags": ["tf32"]}, later]


def python_verdict(kind: str, path: Path) -> str:
    """ "taken", or "refused: " and why, of the fields that both use; anything but a refusal is raised."""
    try:
        READERS[kind](path)
        return "taken"
    except DitedgeError as error:
        refused = f"refused: {error}"
    if kind in UNUSED and path.suffix != ".used":
        document = _with_true_values(kind, path)
        if document is not None:
            path = path.with_suffix(".used")
            path.write_text(json.dumps(document))
            refused = python_verdict(kind, path)
            path.unlink()
    return refused


def _with_true_values(kind: str, path: Path) -> Any:
    """The document with what C++ does not look at as it may be; None where it is no JSON."""
    try:
        document = parse_json(path.read_bytes(), path, DitedgeError)
    except DitedgeError:
        return None
    for place, value in UNUSED[kind].items():
        *way, last = place.split("/")
        for at in _objects(document, way):
            at[last] = at.get(value[1:]) if isinstance(value, str) and value.startswith("=") else value
    return document


def _objects(at: Any, way: list[str]) -> Iterator[dict[str, Any]]:
    """Every object at the end of `way`, where "*" is any key."""
    if isinstance(at, list) and way[:1] == ["*"]:
        for element in at:
            yield from _objects(element, way[1:])
    if not isinstance(at, dict):
        return
    if not way:
        yield at
        return
    for key in list(at) if way[0] == "*" else [way[0]] if way[0] in at else []:
        yield from _objects(at[key], way[1:])


if __name__ == "__main__":
    main()
