"""Python and C++ take the same manifests, programs and build records, and refuse the same ones."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from ditedge.runtime.bundle.manifest import UNDERSTOOD
from tests.fuzz.verdicts import compare, cpp_reader, manifests, programs, prompts, python_verdict, records


@pytest.fixture
def bundle(golden_bundle) -> Path:
    return golden_bundle("gray1_cfg")


def test_generated_documents_get_the_same_verdict(built: Path, bundle: Path, tmp_path: Path) -> None:
    """`make verdicts` asks about ten thousand. Fields that C++ has no use for have true values for Python."""
    counts, differences = compare(bundle, built / "ditedge-verdicts", tmp_path, count=400, seed=7)
    assert not differences, "\n".join(differences)
    for kind in ("manifest", "program", "record"):
        assert counts[f"{kind} taken"] >= 5 and counts[f"{kind} refused"] >= 20, counts
    assert not list(tmp_path.iterdir())


# Kind, place, value -> whether both take it.
VERDICTS: list[tuple[str, str, object, bool]] = [
    ("record", "plans/step/profile/noise/max/0", 2**31, False),
    ("record", "plans/step/seconds", "1", True),  # C++ has no use for it
    ("record", "plans/step/profile/noise/max", [1, 1, 8], False),
    ("record", "plans/step/profile/noise/min", [1, 1, 8], False),
    ("record", "plans/step/one_image", {"noise": [1, 1, 8, 8]}, True),
    ("record", "plans/step/one_image", {"noise": [1] * 9}, False),
    ("record", "plans/step/one_image", {"noise": [-1]}, False),
    ("record", "plans/step/one_image", {"noise": 1}, False),
    ("record", "plans/step/one_image", None, False),
    ("record", "plans/text", {"file": "text.plan"}, True),
    ("record", "plans/step/plan/sha256", "0" * 63, False),
    ("record", "plans/step/file", "decoder.plan", False),
    ("record", "plans/step/plan/bytes", 0, True),
    ("record", "max_batch", 0, False),
    ("record", "gpu", 3, True),
    ("record", "gpu", "a GPU", True),
    ("record", "later", {"field": [1]}, True),
    ("program", "timestep/0", 3.1e38, False),
    ("program", "timestep/0", -3.0e38, True),
    ("program", "init/1", 1e300, False),
    ("program", "guidance/0", 0.5, True),
    ("program", "guidance/0", -0.5, False),
    ("program", "guidance/0", True, False),
    ("program", "graph", None, True),
    ("program", "graph", [], False),
    ("program", "graph", "step", False),
    ("program", "graph", 10 * ["step-short"], True),
    ("program", "graph", [*9 * ["step"], "decoder"], False),
    ("program", "graph", [*9 * ["step"], 1], False),
    ("manifest", "graphs/step-short", {}, False),
    ("manifest", "graphs/later", {}, True),
    ("program", "made", {f"k{i}": 0 for i in range(100_001)}, True),
    ("program", "made", {"a text": '\\"[{' * (1 << 19)}, True),
    ("program", "made", {"lists": [[]] * (1 << 20)}, False),
    ("manifest", "later", 1, True),
    ("manifest", "model/guided_channels", 2**63 - 1, True),
    ("manifest", "model/guided_channels", 2**63, False),
    ("manifest", "model/parameters", 2**63, True),
    ("manifest", "version", 1, False),
    ("manifest", "requires", ["wings"], False),
    ("manifest", "requires", "wings", False),
    ("manifest", "requires", sorted(UNDERSTOOD - {"text"}), True),
    ("manifest", "quantization", {"precision": "nf4"}, True),
    ("manifest", "golden", [{"tolerance": 2}], True),
    ("manifest", "graphs/step/precision", "float8", True),
    ("manifest", "graphs/step/precision", 8, False),
    ("manifest", "graphs/preview", {"file": 3}, False),
    ("manifest", "graphs/text", {"file": 3}, True),
    ("manifest", "graphs", {f"g{i}": {} for i in range(17)}, False),
    ("prompts", "text", None, False),
    ("prompts", "text/tokens", 4096, True),
    ("prompts", "text/tokens", 4097, False),
    ("prompts", "text/width", 16.0, False),
    ("prompts", "text/width", 17, False),  # not that of context's input
    ("prompts", "text/pad", -1, False),
    ("prompts", "text/encoder_sha256", None, True),
    ("prompts", "text/encoder_sha256", "0" * 63, False),
    ("prompts", "text/tokenizer", 3, True),  # C++ has no use for it
    ("prompts", "text/empty", "nowhere.safetensors", False),
    ("prompts", "text/empty", None, True),
    ("prompts", "text/multiple", 3, False),  # input_size is none
    ("prompts", "text/largest", 4, False),
    ("prompts", "text/largest", 4096, False),  # too many pixels
    ("prompts", "text/largest", 1024, True),
    ("prompts", "text/factor", 1025, False),
    ("prompts", "text/further", [{"tokens": 8, "width": 16}], True),
    ("prompts", "text/further", [{"tokens": 8, "width": 16}] * 4, False),
    ("prompts", "text/further", [{"tokens": 8}], False),
    ("prompts", "text/masked", 1, False),
    ("prompts", "text/masked", False, False),  # context has a mask
    ("prompts", "text/pooled", 65537, False),
    ("prompts", "text/width", None, False),  # context reads hidden
    ("prompts", "text/guidance", "none", True),
    ("prompts", "text/guidance", "some", False),
    ("prompts", "defaults/by_tokens", {"16": "ddim-10"}, True),
    ("prompts", "defaults/by_tokens", {"16": "nope"}, False),
    ("prompts", "graphs/conditioner/inputs/0", {"name": "vector", "dtype": "float32", "shape": ["U", 8]}, False),
    ("prompts", "graphs/conditioner/inputs/0", {"name": "guidance", "dtype": "float32", "shape": ["U"]}, True),
    ("prompts", "graphs/text_3", {"file": 3}, False),
    ("manifest", "graphs/text_3", {"file": 3}, True),
    ("prompts", "text/later", 1, True),
    ("prompts", "requires", [], False),
    ("prompts", "model/num_classes", 3, False),
    ("prompts", "labels", ["one"], False),
    ("prompts", "graphs/context/outputs/0/shape", ["P", "T", "W"], False),
    ("prompts", "graphs/context/outputs/1/name", "bias", False),
    ("prompts", "graphs/position/outputs/0/shape/2", 2**24 + 1, False),
    ("prompts", "graphs/text/inputs/0/dtype", "float32", False),
    ("prompts", "graphs/decoder/outputs/0/shape", ["B", 64, 64, 3], False),
    ("prompts", "graphs/decoder/outputs/0/shape", ["B", 3, "h", "w"], False),
    ("prompts", "graphs/conditioner/inputs/0/name", "label", False),
    ("prompts", "graphs/step/inputs/0/shape", ["B", "K", 4, 8, 8], False),
    ("manifest", "graphs/context", {"file": 3}, True),
]


@pytest.mark.parametrize(("kind", "place", "value", "taken"), VERDICTS, ids=[f"{v[0]}-{v[1]}-{v[3]}" for v in VERDICTS])
def test_verdicts(built: Path, bundle: Path, tmp_path: Path, kind: str, place: str, value: object, taken: bool) -> None:
    plain = {
        "manifest": manifests(bundle)[0],
        "prompts": prompts()[0],
        "program": programs(bundle)[0],
        "record": records()[0],
    }[kind]
    kind = "manifest" if kind == "prompts" else kind
    document = copy.deepcopy(plain)
    *way, last = place.split("/")
    at = document
    for part in way:
        at = at[int(part) if isinstance(at, list) else part]
    at[int(last) if isinstance(at, list) else last] = value
    path = tmp_path / "x.json"
    path.write_text(json.dumps(document))
    with cpp_reader(built / "ditedge-verdicts") as cpp_verdict:
        for verdict in (python_verdict(kind, path), cpp_verdict(kind, path)):
            assert verdict.startswith("taken" if taken else "refused: "), verdict
