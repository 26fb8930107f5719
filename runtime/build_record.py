"""`build.json` beside the plans of one target: what was built, from which graphs, by which library, for which GPUs.

A bundle's `engines/<target>/` holds `conditioner.plan`, `dit.plan` (the step graph), `decoder.plan` and this record. A
plan is executable code: the record's hashes are checked before one is deserialised, and `bundle_sha256` ties them to
the bundle they were built from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import BundleError
from .manifest import FileInfo, Sha256

RECORD_NAME = "build.json"
PLAN_NAMES = {"conditioner": "conditioner.plan", "step": "dit.plan", "decoder": "decoder.plan"}
MAX_RECORD_BYTES = 1 << 20


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ShapeRange(_Strict):
    """One input's optimisation profile: dimensions at least, typically and at most."""

    min: list[Annotated[int, Field(ge=0)]]
    opt: list[Annotated[int, Field(ge=0)]]
    max: list[Annotated[int, Field(ge=0)]]


class PlanInfo(_Strict):
    """One plan, and the graph it was built from."""

    file: Literal["conditioner.plan", "dit.plan", "decoder.plan"]
    plan: FileInfo
    source_sha256: Sha256  # of the ONNX file
    profile: dict[str, ShapeRange]  # by input name; inputs of fixed shape are left out
    seconds: float


class BuildRecord(_Strict):
    format: Literal["ditedge-engines"]
    version: Literal[1]
    made_by: str
    library: Literal["tensorrt", "tensorrt-rtx"]
    library_version: str  # "10.3.0.26"
    gpu: str | None  # name of the GPU it was built on; None: built ahead of time
    compute_capabilities: list[str]  # "sm86", ...; empty: any GPU of the library (TensorRT-RTX's portable plans)
    flags: list[str]  # builder flags by name, sorted
    max_batch: Annotated[int, Field(ge=1)]
    max_rows: Annotated[int, Field(ge=1)]  # conditioning rows (distinct labels) of one step
    weight_streaming_mb: Annotated[int, Field(ge=0)] | None = None  # of weights kept on the device; None: all
    bundle_sha256: Sha256  # of the manifest.json
    plans: dict[Literal["conditioner", "step", "decoder"], PlanInfo]


def read_build_record(path: Path) -> BuildRecord:
    """Reads and validates a build.json. Raises BundleError with one sentence."""
    try:
        if path.stat().st_size > MAX_RECORD_BYTES:
            raise BundleError(f"{path}: larger than {MAX_RECORD_BYTES >> 20} MB, not a build record")
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(data, dict) or data.get("format") != "ditedge-engines":
        raise BundleError(f"{path}: not the record of a ditedge build")
    try:
        return BuildRecord.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "record"
        raise BundleError(f"{path}: {place}: {first['msg']}: build it again") from None
