"""What a picture remembers of how it was made, and the run that makes it again (`run --like`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from ..bundle.open import Bundle
from ..errors import ProgramError, RequestError
from ..files import sha256_of_file
from ..loop.prompts import Prompt
from ..report import silent
from ..samplers.program import Program, read_program
from ..samplers.settings import settings_from_made
from .also import Also, RecordedAlso, also_again
from .begin import Beginning, beginning_of
from .images import read_metadata
from .request import ImageOptions
from .words import RecordedPrompt, again

NOTHING = ImageOptions()
MOST_IMAGES = 1_000_000  # of one run
Label = Annotated[int, Field(ge=0, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**64)]


class Metadata(BaseModel):
    """The part of a picture's metadata that `--like` uses; a picture comes from anywhere, so all of it is checked."""

    bundle_sha256: str
    labels: Annotated[list[Label], Field(max_length=MOST_IMAGES)] = []
    seeds: Annotated[list[Seed], Field(max_length=MOST_IMAGES)] | None
    away_from: Annotated[list[Label], Field(max_length=MOST_IMAGES)] | None = None
    prompts: Annotated[list[RecordedPrompt], Field(max_length=MOST_IMAGES)] = []
    negative: Annotated[list[RecordedPrompt], Field(max_length=MOST_IMAGES)] = []
    also: Annotated[list[RecordedAlso], Field(max_length=64)] = []
    size: tuple[int, int] | None = None
    guidance: Annotated[float, Field(allow_inf_nan=False)]
    made: dict[str, Any]
    program_file: str | None = None  # name of the file that the program came from, when it was no bundle's
    program_sha256: str | None = None
    image_sha256: str | None = None  # of the picture that it began from
    mask_sha256: str | None = None


@dataclass(frozen=True)
class Recipe:
    """labels, or prompts and what to guide away from, and seeds of the images, in order; the rest as in `generate`.

    program_file: name and hash of the file that the program came from, as pictures remember them; empty without.
    """

    labels: list[int]
    seeds: list[int]
    away_from: list[int] | None
    guidance: float
    program: Program
    program_file: dict[str, str] = field(default_factory=dict)
    prompts: list[Prompt] = field(default_factory=list)
    negative: list[Prompt] = field(default_factory=list)
    size: tuple[int, int] | None = None  # width, height in pixels; None: the model's own
    begin: Beginning | None = None
    also: list[Also] = field(default_factory=list)

    @property
    def images(self) -> int:
        return len(self.seeds)


def program_file_metadata(path: Path) -> dict[str, str]:
    """What pictures remember of a program file."""
    return {"program_file": path.name, "program_sha256": sha256_of_file(path)}


def recipe_of_picture(
    picture: Path,
    bundle: Bundle,
    program_file: Path | None,
    begin: ImageOptions = NOTHING,
    warn: Callable[[str], object] = silent,
) -> Recipe:
    """The run that made `picture`. Raises RequestError.

    program_file, begin: the same files that made it, where they did. warn: told where a prompt is cut.
    """
    try:
        data = Metadata.model_validate(read_metadata(picture))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise RequestError(f"{picture}: its metadata cannot be used ({place}: {first['msg']})") from None
    if data.bundle_sha256 != bundle.sha256:
        raise RequestError(f"{picture} was made with another bundle (sha256 {data.bundle_sha256[:12]}...)")
    if data.seeds is None:
        raise RequestError(f"{picture} was made from a noise file, so it has no seeds to make it again from")
    program = _program(picture, data, bundle, program_file)
    source = program_file_metadata(program_file) if program_file is not None else {}
    told = (data.guidance, program, source)
    started, also = _beginning(picture, data, bundle, begin), also_again(picture, bundle, data.also, warn)
    if bundle.manifest.text is None:
        if not data.labels:
            raise RequestError(f"{picture}: its metadata cannot be used (labels: there are none)")
        return Recipe(data.labels, data.seeds, data.away_from or None, *told, begin=started, also=also)
    prompts = again(picture, bundle, data.prompts, warn)
    negative = again(picture, bundle, data.negative, warn, negative=True)
    if len(data.prompts) != len(data.seeds) or not data.prompts or len(data.negative) not in (0, len(data.prompts)):
        raise RequestError(f"{picture}: its metadata cannot be used (prompts: not one for each image)")
    return Recipe([], data.seeds, None, *told, prompts, negative, data.size, started, also)


def _beginning(picture: Path, data: Metadata, bundle: Bundle, asked: ImageOptions) -> Beginning | None:
    """What the picture began from, by the same files."""
    for name, given, wanted in (
        ("image", asked.image, data.image_sha256),
        ("mask", asked.mask, data.mask_sha256),
    ):
        if wanted is None and given is not None:
            raise RequestError(f"{picture} was made without --{name}: leave it out")
        if wanted is not None and given is None:
            raise RequestError(f"{picture} was made with an {name} (sha256 {wanted[:12]}...): give it by --{name}")
        if wanted is not None and given is not None and (found := sha256_of_file(given)) != wanted:
            raise RequestError(f"{picture} was made with another {name} (sha256 {wanted[:12]}..., not {found[:12]}...)")
    return beginning_of(asked, bundle, data.size)


def _program(picture: Path, data: Metadata, bundle: Bundle, file: Path | None) -> Program:
    if data.program_sha256 is None:
        if file is not None:
            raise RequestError(f"{picture} was made without a program file: leave --program out")
        ready = next((program for program in bundle.programs.values() if program.made == data.made), None)
        if ready is not None:  # found by `tune`, say, which settings do not make again
            return ready
        try:
            return bundle.program(**asdict(settings_from_made(data.made)))
        except ProgramError as error:
            raise RequestError(f"{picture}: its metadata has settings that make no sense ({error})") from None
    made_by = f"{picture} was made with the program file {data.program_file} (sha256 {data.program_sha256[:12]}...)"
    if file is None:
        raise RequestError(f"{made_by}: give that file by --program")
    found = sha256_of_file(file)
    if found != data.program_sha256:
        raise RequestError(f"{made_by}, and {file} is another (sha256 {found[:12]}...)")
    return read_program(file)
