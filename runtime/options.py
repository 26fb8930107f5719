"""An option of a command, said once: beside the field of the frozen dataclass that its value is kept in.

    batch: int = field(default=8, metadata=option("--batch", help="Images at a time.", range=BATCH))

`ditedge/options.py` makes a command's options of such fields; a program fills the same dataclass itself. A field whose
type is another such dataclass brings that one's options along; a field without `option` is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

OPTION = "option"  # of a field's metadata

# Ranges, both ends included, None is open: what no model and no machine can mean is refused before any work.
Range = tuple[int | None, int | None]
BATCH: Range = (1, 1024)  # tables of guidance grow with its square: 2 GB at 10,000
IMAGES: Range = (1, 1_000_000)
SEED: Range = (0, 2**64 - 1)
THREADS: Range = (0, 4096)
HEADS: Range = (1, 4096)
SIZE: Range = (1, 1 << 20)  # channels, pixels
MEGABYTES: Range = (0, 1 << 30)

DEFAULT_STRENGTH = 0.8  # of an image to begin from: diffusers' image-to-image pipelines'
DEFAULT_BATCH = 8  # images at a time of a run, and the most that a plan is built for


@dataclass(frozen=True)
class Option:
    """How a field is given on the command line; its type, its default and whether it is required are the field's."""

    names: tuple[str, ...]  # "--batch"; "--decoder/--no-decoder" of a bool; an argument's has no dash
    help: str
    range: Range | None
    choices: tuple[str, ...]
    metavar: str | None
    commas: bool
    listed: str


def option(
    *names: str,
    help: str = "",
    range: Range | None = None,
    choices: tuple[str, ...] = (),
    metavar: str | None = None,
    commas: bool = False,
    listed: str = "",
) -> Mapping[str, Option]:
    """The metadata of a dataclass field that is an option.

    choices: the only values; of whole numbers: range. commas: a tuple is given as a,b,c, and not by repeating it.
    listed: "module:function", called when the help is made: names that take the place of {} in it.
    """
    return {OPTION: Option(names, help, range, choices, metavar, commas, listed)}


# Options that several commands have.
BUNDLE_FILE = option("--engine", help="Bundle folder, or a graph or engine file inside one.")
BUNDLE_OUT = option("--out", help="Bundle folder to write.")
FORCE = option("--force", help="Replace an existing bundle.")
TRUSTED_KEYS = option(
    "--trusted-key",
    help="Only what this key signed (public, Ed25519, PEM); repeat it. [default: those of $DITEDGE_TRUSTED_KEYS]",
)
