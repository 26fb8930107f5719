"""What a set is: which images, in which batches. Whoever samples a part of it, and when, makes the same bytes.

Images are sampled in batches that are always the same ones, since the kernels of an engine may depend on how many
share a run: image i is in batch i // `batch`, and a batch of which a file is missing is sampled as a whole.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from ..bundle.open import Bundle
from ..errors import RequestError
from ..files import write_text
from ..json_files import read_json, validated
from ..loop.request import check_images
from .request import SampleSetRequest

NAME = "set.json"
MAX_BYTES = 4 << 20
REMEDY = "give another --out, or the options that it was begun with"


class SetPlan(BaseModel, frozen=True):
    """`set.json`. The same file, the same images."""

    version: Literal[1] = 1
    bundle: str
    bundle_sha256: str
    count: Annotated[int, Field(ge=1)]
    seed: Annotated[int, Field(ge=0)]
    batch: Annotated[int, Field(ge=1)]
    balanced: bool
    format: Literal["png", "npz"]
    layout: Literal["flat", "class"]
    program: str
    made: dict[str, Any]
    guidance: float
    provider: str
    num_classes: Annotated[int, Field(ge=1)]
    names: list[str]  # of the classes; empty: they have none

    @property
    def batches(self) -> int:
        return -(-self.count // self.batch)

    def images(self, batch: int) -> range:
        return range(batch * self.batch, min(self.count, (batch + 1) * self.batch))

    def label(self, image: int) -> int:
        """In turn, or what a hash of the image's seed says: the same whoever asks, and no part of its noise."""
        if self.balanced:
            return image % self.num_classes
        digest = hashlib.sha256(f"label of seed {self.seed + image}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % self.num_classes

    def file(self, image: int) -> str:
        """The name of a PNG below the set's folder."""
        name = f"{image:0{max(6, len(str(self.count - 1)))}d}.png"
        return f"{self.label(image):0{len(str(self.num_classes - 1))}d}/{name}" if self.layout == "class" else name

    def class_name(self, label: int) -> str:
        return self.names[label] if self.names else str(label)


@dataclass(frozen=True)
class Shard:
    """Part `number` of `of`, from 1 on: every of-th batch."""

    number: int = 1
    of: int = 1

    def batches(self, plan: SetPlan) -> range:
        return range(self.number - 1, plan.batches, self.of)


def shard_of(text: str | None) -> Shard:
    """ "2/8" -> Shard(2, 8). Raises RequestError."""
    if text is None:
        return Shard()
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise RequestError(f"--shard {text!r} is not i/n, from 1/n to n/n")
    return Shard(int(found[1]), int(found[2]))


def plan_of(request: SampleSetRequest, bundle: Bundle) -> SetPlan:
    """Raises RequestError for what does not fit the bundle."""
    bundle.require_classes("sample-set")
    bundle.require("decoder")
    program = bundle.program(**asdict(request.settings))
    guidance = bundle.manifest.defaults.guidance if request.guidance is None else request.guidance
    if guidance != 1.0 and bundle.manifest.model.null_class is None:
        raise RequestError(f"guidance {guidance:g} needs a null class, and this model has none: give --guidance 1")
    check_images(bundle.manifest.model, [0, 0], [request.seed, request.seed + request.count - 1], None)
    if request.layout == "class" and request.format != "png":
        raise RequestError("--layout class is for --format png: arrays have their classes in arr_1")
    return SetPlan(
        bundle=bundle.manifest.name,
        bundle_sha256=bundle.sha256,
        count=request.count,
        seed=request.seed,
        batch=request.batch,
        balanced=request.balanced,
        format=request.format,  # type: ignore[arg-type]  # one of the choices
        layout=request.layout,  # type: ignore[arg-type]
        program=program.name,
        made=program.made,
        guidance=guidance,
        provider=request.options.provider if request.engine.suffix != ".plan" else "plan",
        num_classes=bundle.manifest.model.num_classes,
        names=list(bundle.manifest.labels),
    )


def begin(folder: Path, plan: SetPlan) -> None:
    """Writes set.json, or finds it the same. Raises RequestError where the folder has another set, or other things."""
    place = folder / NAME
    if not place.exists():
        if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise RequestError(f"{folder} is not empty and has no {NAME}: give an empty folder, or a new one")
        write_text(place, plan.model_dump_json(indent=1) + "\n")
    check_same(folder, read_plan(folder), plan)


def read_plan(folder: Path) -> SetPlan:
    """Raises RequestError."""
    if not (folder / NAME).is_file():
        raise RequestError(f"{folder} has no {NAME}: it is no folder of `ditedge sample-set`")
    data = read_json(folder / NAME, MAX_BYTES, RequestError)
    return validated(SetPlan, data, folder / NAME, RequestError)


def check_same(folder: Path, found: SetPlan, plan: SetPlan, remedy: str = REMEDY) -> None:
    """Raises RequestError with the first difference, and the remedy."""
    if found == plan:
        return
    was, now = found.model_dump(), plan.model_dump()
    key = next(key for key in now if was[key] != now[key])
    raise RequestError(f"{folder} is another set: its {key} is {_short(was[key])}, not {_short(now[key])}: {remedy}")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
