"""Options of a command come from the fields of a dataclass, and the dataclass from what was given."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import get_type_hints

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ditedge.cli import main
from ditedge.options import RequestCommand, command, request_from
from ditedge.runtime.errors import RequestError
from ditedge.runtime.options import BATCH, option
from tests.growing import copied_package


@dataclass(frozen=True)
class Inner:
    spin: bool = field(default=False, metadata=option("--spin", help="Wait busily."))
    hidden: int = 3


@dataclass(frozen=True)
class Request:
    engine: Path = field(metadata=option("--engine", help="Bundle."))
    batch: int = field(default=8, metadata=option("--batch", help="At a time.", range=BATCH))
    inner: Inner = Inner()
    decoder: bool = field(default=True, metadata=option("--decoder/--no-decoder", help="Its too. [default: yes]"))
    keys: tuple[Path, ...] = field(default=(), metadata=option("--key", help="Repeat it."))
    scale: float | None = field(default=None, metadata=option("--scale", help="Of it."))
    kind: str | None = field(default=None, metadata=option("--kind", choices=("a", "b")))
    computed: int = 5


@click.group()
def group() -> None:
    """A group of commands."""


seen: list[Request] = []


@command(group, f"{__name__}:Request")
@click.option("--json", "as_json", is_flag=True)
def work(request: Request, as_json: bool) -> None:
    """Does it."""
    seen.append(request)


def test_a_command_gets_the_dataclass() -> None:
    for arguments, wanted in (
        ([], Request(Path("b"))),
        (["--spin", "--batch", "2", "--no-decoder"], Request(Path("b"), 2, Inner(spin=True), decoder=False)),
        (["--key", "x", "--key", "y", "--scale", "1.5", "--kind", "b"],
         Request(Path("b"), keys=(Path("x"), Path("y")), scale=1.5, kind="b")),
    ):  # fmt: skip
        result = CliRunner().invoke(group, ["work", "--engine", "b", *arguments], catch_exceptions=False)
        assert result.exit_code == 0 and seen.pop() == wanted, result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing option '--engine'"),
        (["--engine", "b", "--batch", "0"], "0 is not in the range 1<=x<=1024"),
        (["--engine", "b", "--scale", "nan"], "nan is not a finite number"),
        (["--engine", "b", "--kind", "c"], "'c' is not one of"),
        (["--engine", "b", "--hidden", "1"], "No such option"),
    ],
)
def test_what_a_field_does_not_take_is_refused(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(group, ["work", *arguments])
    assert result.exit_code == 2 and words in result.output and not seen


def test_help_says_ranges_and_defaults_once() -> None:
    text = " ".join(CliRunner().invoke(group, ["work", "--help"]).output.split())
    assert "--batch INTEGER RANGE At a time. [default: 8; 1<=x<=1024]" in text
    assert "--decoder / --no-decoder Its too. [default: yes]" in text and "Bundle. [required]" in text
    assert text.index("--batch") < text.index("--spin") < text.index("--decoder") < text.index("--json")


@pytest.mark.parametrize("name", sorted(key for key, value in main.commands.items() if type(value) is RequestCommand))
def test_of_what_is_not_given_a_command_takes_the_defaults_of_its_request(name: str) -> None:
    """Whatever click reads, it ends in the dataclass that a program gets when it fills the required fields."""
    found = main.commands[name]
    needed = {param.name: param for param in found.get_params(click.Context(found)) if param.required}
    values = {name: param.type.choices[0] if isinstance(param.type, click.Choice) else "1" for name, param in needed.items()}  # fmt: skip
    given = [word for name, param in needed.items() for word in (param.opts[0], values[name])[isinstance(param, click.Argument) :]]  # fmt: skip
    context = found.make_context(name, given)
    options = [option for param in found.params for option in param.opts]
    assert len(options) == len(set(options))
    wanted = {name: needed[name].type_cast_value(context, (value,) if getattr(needed[name], "multiple", False) else value) for name, value in values.items()}  # fmt: skip
    assert request_from(found.kind, context.params) == filled(found.kind, wanted)


def filled(kind: type, wanted: dict[str, object]) -> object:
    """The dataclass as a program makes it, that gives what has no default."""
    hints, required = get_type_hints(kind), [field for field in fields(kind) if field.default is MISSING]
    return kind(**{f.name: wanted[f.name] if f.name in wanted else filled(hints[f.name], wanted) for f in required})


def test_a_new_option_of_run_is_a_field_and_its_use(golden_bundle, tmp_path: Path) -> None:
    """In a copy of the package: --mirror, said in request.py, done in run.py, and in no other file."""
    copy, ditedge = copied_package(tmp_path)
    for name, old, new in (
        ("request.py", "    preview_every: int", '    mirror: bool = field(default=False, metadata=option("--mirror", help="Left is right."))\n'),
        ("run.py", "    images[bad] = 0\n", "    images = images[:, :, ::-1] if job.how.mirror else images\n"),
    ):  # fmt: skip
        file = copy / "runtime" / "pictures" / name
        assert file.read_text().count(old) == 1
        file.write_text(file.read_text().replace(old, new + old))
    run = ["run", "--engine", golden_bundle("gray1_cfg"), "--class", 3, "--steps", 2]
    said, *_ = ditedge(["run", "--help"], [*run, "-o", "a.png"], [*run, "--mirror", "-o", "b.png"])
    assert "--mirror Left is right." in said
    with Image.open(tmp_path / "a.png") as plain, Image.open(tmp_path / "b.png") as mirrored:
        assert np.array_equal(np.asarray(plain)[:, ::-1], np.asarray(mirrored)) and plain != mirrored


def test_float_types_have_one_spelling_on_each_side() -> None:
    from ditedge.export.options import vae_dtype

    assert [vae_dtype(name) for name in ("fp32", "fp16")] == ["float32", "float16"]
    for other in ("float16", "bf16"):
        with pytest.raises(RequestError, match=f"precision '{other}' of a decoder is not one of fp32, fp16"):
            vae_dtype(other)
