"""What a plan is made of, kernel by kernel: read from the builder's log or from the engine inspector's JSON.

A plan's layers can be asked of the library only with a GPU (EngineInspector). The builder's own log lists them as well,
without one, so a build leaves them in layers.json beside the plans. The inspector's JSON has two schemas: TensorRT 10.x
gives a tensor's type in "Format/Datatype", 11.x and TensorRT-RTX split that field ("Format", "Datatype") and replaced
"Bindings" by "I/O Tensors".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import BundleError
from ..files import write_text
from ..json_files import read_json

LAYERS_NAME = "layers.json"
MAX_LAYERS_BYTES = 64 << 20
# as the schemas write element types -> ours
TYPES = {
    "float": "float32", "fp32": "float32", "half": "float16", "fp16": "float16", "bfloat16": "bfloat16",
    "bf16": "bfloat16", "int8": "int8", "fp8": "float8", "e4m3": "float8", "int4": "int4", "fp4": "float4",
    "int32": "int32", "int64": "int64", "bool": "bool", "uint8": "uint8",
}  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """One kernel, or one layer of the library's own. inputs, outputs, constants: element types."""

    name: str
    kind: str  # the library's LayerType: "gemm", "kgen", "runtime_fusion", "Reformat", ...
    inputs: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    tactic: str = ""
    onnx: tuple[str, ...] = ()  # names of the ONNX nodes it computes


def layers_from_log(text: str) -> list[Layer]:
    """The layer list that a builder with detailed verbosity logs: one line a layer."""
    return [_from_line(line) for line in text.splitlines() if "LayerType: " in line and "Name: " in line]


def layers_from_json(text: str) -> list[Layer]:
    """EngineInspector.get_engine_information(JSON), either schema. Raises BundleError when it is neither.

    A plan built without detailed verbosity names its layers only: then types are unknown.
    """
    try:
        layers = json.loads(text)["Layers"]
        return [Layer(entry, "") if isinstance(entry, str) else _from_entry(entry) for entry in layers]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"the engine inspector's output is not understood ({error})") from None


@dataclass(frozen=True)
class PlanLayers:
    """The layers of one plan, and the device memory that its builder announced (bytes; 0: it did not say)."""

    layers: tuple[Layer, ...]
    activation_bytes: int = 0
    weight_bytes: int = 0


def write_layers(path: Path, plans: Mapping[str, PlanLayers]) -> None:
    """layers.json: {"conditioner": {"layers": [...], "activation_bytes": ...}, "step": ..., "decoder": ...}."""
    write_text(path, json.dumps({name: asdict(plan) for name, plan in plans.items()}) + "\n")


def read_layers(path: Path, graph: str) -> PlanLayers:
    """One graph's entry of a layers.json. Raises BundleError."""
    try:
        entry = read_json(path, MAX_LAYERS_BYTES, BundleError)[graph]
        layers = tuple(_from_record(layer) for layer in entry["layers"])
        return PlanLayers(layers, int(entry["activation_bytes"]), int(entry["weight_bytes"]))
    except (ValueError, KeyError, TypeError, OverflowError):
        raise BundleError(f"{path}: no readable list of the layers of {graph}: build again") from None


def _from_record(entry: Mapping[str, Any]) -> Layer:
    lists = {field: tuple(map(str, entry[field])) for field in ("inputs", "constants", "outputs", "onnx")}
    return Layer(str(entry["name"]), str(entry["kind"]), tactic=str(entry["tactic"]), **lists)


def element_type(text: str) -> str:
    """ "Row major linear FP16 format" or "Half" -> "float16"; "" when it is not understood."""
    for word in re.findall(r"[A-Za-z]+\d*\w*", text):
        if word.lower() in TYPES:
            return TYPES[word.lower()]
    return ""


def _from_line(line: str) -> Layer:
    def section(name: str) -> tuple[str, ...]:
        found = re.search(rf", {name}: \[(.*?)\](?=, (?:Inputs|Constants|Outputs|TacticName|ParameterType)|$)", line)
        return tuple(map(element_type, re.findall(r"Datatype: ([^,}]*)", found.group(1)))) if found else ()

    def value(name: str) -> str:
        found = re.search(rf"{name}: ([^,]*)(?:,|$)", line)
        return found.group(1).strip() if found else ""

    return Layer(
        name=value("Name"),
        kind=value("LayerType"),
        inputs=section("Inputs"),
        constants=section("Constants"),
        outputs=section("Outputs"),
        tactic=value("TacticName"),
        onnx=_onnx_names(line),
    )


def _from_entry(entry: Mapping[str, Any]) -> Layer:
    def types(key: str) -> tuple[str, ...]:
        return tuple(
            element_type(str(t.get("Datatype") or t.get("DataType") or t.get("Format/Datatype") or t.get("Format", "")))
            for t in entry.get(key) or ()
        )

    return Layer(
        name=str(entry["Name"]),
        kind=str(entry.get("LayerType", "")),
        inputs=types("Inputs"),
        constants=types("Constants"),
        outputs=types("Outputs"),
        tactic=str(entry.get("TacticName", "")),
        onnx=_onnx_names(str(entry.get("Metadata", ""))),
    )


def _onnx_names(metadata: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\[ONNX Layer: ([^\]\x1f]*)\]", metadata))
