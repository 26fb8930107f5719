"""`build.json` beside the plans of one target: what was built, from which graphs, by which library, for which GPUs.

A bundle's `engines/<target>/` holds `conditioner.plan`, `dit.plan` (the step graph), `decoder.plan` and this record. A
plan is executable code: the record's hashes are checked before one is deserialised, and `bundle_sha256` ties them to
the bundle they were built from.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from ..bundle.graph_contract import MAX_RANK, PLANNED, known_plans
from ..bundle.manifest import FileInfo
from ..bundle.signatures import check_signed
from ..errors import BundleError
from ..fields import Finite, Sha256, Strict
from ..json_files import parse_json, read_bounded, validated

RECORD_NAME = "build.json"
# A text encoder has no plan: it is for workstations, or prompts come recorded.
PLAN_NAMES = {graph: f"{'dit' if graph == 'step' else graph}.plan" for graph in PLANNED}
MAX_RECORD_BYTES, MAX_NAMES = 1 << 20, 1000
INT32_MAX = 2**31 - 1  # TensorRT's dimensions are of 32 or 64 bits

Sizes = Annotated[list[Annotated[int, Field(ge=0, le=INT32_MAX)]], Field(max_length=MAX_RANK)]
Limit = Annotated[int, Field(ge=1, le=INT32_MAX)]


class ShapeRange(Strict):
    """One input's optimisation profile: dimensions at least, typically and at most."""

    min: Sizes
    opt: Sizes
    max: Sizes

    @model_validator(mode="after")
    def _check(self) -> ShapeRange:
        if not len(self.min) == len(self.opt) == len(self.max):
            raise ValueError("min, opt and max are not of one rank")
        return self

    def takes(self, shape: Sequence[int], start: int = 0) -> bool:
        """Whether the dimensions from `start` on may be these."""
        low, high = self.min[start:], self.max[start:]
        return len(shape) == len(low) and all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))


def exact_ranges(shapes: Mapping[str, list[int]]) -> dict[str, ShapeRange]:
    """The profile that takes these shapes alone."""
    return {name: ShapeRange(min=shape, opt=shape, max=shape) for name, shape in shapes.items()}


class PlanInfo(Strict):
    """One plan, and the graph it was built from."""

    file: str  # PLAN_NAMES has that of each graph
    plan: FileInfo
    source_sha256: Sha256  # of the ONNX file
    profile: Annotated[
        dict[str, ShapeRange], Field(max_length=MAX_NAMES)
    ]  # by input name; inputs of fixed shape are left out
    seconds: Finite
    # by input name: the only shapes that the plan's second profile takes (`build --one-image`); {}: there is none
    one_image: Annotated[dict[str, Sizes], Field(max_length=MAX_NAMES)] = {}
    # by input name, of a model that takes prompts: a profile for each further size of latents, after those two
    further: Annotated[list[dict[str, ShapeRange]], Field(max_length=MAX_NAMES)] = []

    @property
    def profiles(self) -> list[dict[str, ShapeRange]]:
        """All of them, in the plan's order; none for a graph whose inputs have fixed shapes."""
        found = [self.profile, *([exact_ranges(self.one_image)] if self.one_image else []), *self.further]
        return found if self.profile else []


class BuildRecord(Strict):
    format: Literal["ditedge-engines"]
    version: Literal[1]
    made_by: str
    library: Literal["tensorrt", "tensorrt-rtx"]
    library_version: str  # "10.3.0.26"
    gpu: str | None  # name of the GPU it was built on; None: built ahead of time
    compute_capabilities: Annotated[
        list[str], Field(max_length=MAX_NAMES)
    ]  # "sm86", ...; empty: any GPU of the library (TensorRT-RTX's portable plans)
    flags: Annotated[list[str], Field(max_length=MAX_NAMES)]  # builder flags by name, sorted
    max_batch: Limit
    max_rows: Limit  # conditioning rows (distinct labels) of one step
    weight_streaming_mb: Annotated[int, Field(ge=0, le=1 << 30)] | None = (
        None  # of weights kept on the device; None: all
    )
    bundle_sha256: Sha256  # of the manifest.json
    plans: Annotated[dict[str, PlanInfo], BeforeValidator(known_plans)]

    @model_validator(mode="after")
    def _check(self) -> BuildRecord:
        for graph, plan in self.plans.items():
            if plan.file != PLAN_NAMES[graph]:
                raise ValueError(f"the plan of {graph} is {PLAN_NAMES[graph]}, not {plan.file}")
        return self

    def profile_for(self, graph: str, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """The index of the plan's profile that takes these inputs' shapes: that of one image before any other.

        0 where none does, which whoever binds them will say.
        """
        plan = self.plans[graph]
        exact = plan.one_image
        if exact and all(shapes.get(name) == tuple(shape) for name, shape in exact.items()):
            return 1
        order = [(0, plan.profile), *enumerate(plan.further, start=2 if exact else 1)]
        return next((index for index, profile in order if _takes(profile, shapes)), 0)


def _takes(profile: Mapping[str, ShapeRange], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return all(profile[name].takes(shape) for name, shape in shapes.items() if name in profile)


def read_build_record(path: Path, trusted: Collection[bytes] = ()) -> BuildRecord:
    """Reads and validates a build.json, signed by one of the `trusted` keys if any. Raises BundleError."""
    raw = read_bounded(path, MAX_RECORD_BYTES, BundleError)
    check_signed(path, raw, trusted)
    return record_from_json(raw, path)


def record_from_json(raw: bytes, path: Path) -> BuildRecord:
    """Parses and validates. Raises BundleError with one sentence; `path` is only for the message."""
    data = parse_json(raw, path, BundleError)
    if not isinstance(data, dict) or data.get("format") != "ditedge-engines":
        raise BundleError(f"{path}: not the record of a ditedge build")
    if type(data.get("version")) is not int:  # true and 1.0 equal 1
        raise BundleError(f"{path}: version {data.get('version')!r}: build it again")
    return validated(BuildRecord, data, path, BundleError, "build it again")
