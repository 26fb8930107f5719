"""Options of a command from the fields of a dataclass (runtime/options.py), and the dataclass from what was given."""

from __future__ import annotations

import importlib
import math
import types
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import click

from ditedge.interrupt import importing
from ditedge.runtime.options import OPTION, Option

FILE = click.Path(path_type=Path)


class Finite(click.ParamType):  # type: ignore[type-arg]  # generic only in new versions of click
    """A number that is not infinite and not "nan", which no comparison refuses later."""

    name = "float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number", param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


class Commas(click.ParamType):  # type: ignore[type-arg]
    """Names with commas between them: a tuple."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        return (
            value
            if isinstance(value, tuple)
            else tuple(part.strip().lower() for part in value.split(",") if part.strip())
        )


class RequestCommand(click.Command):
    """A command whose function gets a request, filled from the options: an instance of the dataclass `request`.

    request: "module:dataclass", imported when the command is used; so the help of one command imports no other's.
    """

    def __init__(self, *arguments: Any, request: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._request: str | None = request
        self.kind: type[Any] = object

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if self._request is not None:
            module, _, name = self._request.partition(":")
            with importing():
                self.kind = getattr(importlib.import_module(module), name)
            self.params[:0], self._request = list(params_of(self.kind)), None
        return super().get_params(ctx)

    def invoke(self, ctx: click.Context) -> Any:
        ctx.params["request"] = request_from(self.kind, ctx.params)
        return super().invoke(ctx)


def command(group: click.Group, request: str, name: str | None = None) -> Callable[[Callable[..., Any]], click.Command]:
    """Decorates f(request, ...) as a command of `group`; options of click's own come after those of the request."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        return group.command(name, cls=RequestCommand, request=request)(function)

    return decorate


def params_of(kind: type[Any]) -> Iterator[click.Parameter]:
    """The options of a dataclass, in the order of its fields; those of a dataclass among them in its place."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        hint = hints[field.name]
        if OPTION in field.metadata:
            yield _param(field, hint, field.metadata[OPTION])
        elif is_dataclass(hint):
            yield from params_of(hint)  # type: ignore[arg-type]  # a type, not an instance


def request_from(kind: type[Any], values: dict[str, Any]) -> Any:
    """The dataclass with the values of its options, which are taken out of `values`."""
    hints, given = get_type_hints(kind), {}
    for field in fields(kind):
        if OPTION in field.metadata:
            given[field.name] = values.pop(field.name)
        elif is_dataclass(hints[field.name]) and any(params_of(hints[field.name])):  # type: ignore[arg-type]
            given[field.name] = request_from(hints[field.name], values)
    return kind(**given)


def _param(field: Field[Any], hint: Any, option: Option) -> click.Parameter:
    kind, several = _plain(hint)
    required = field.default is MISSING and field.default_factory is MISSING
    if not option.names[0].startswith("-"):
        return click.Argument([field.name], type=_type(kind, option), required=required)
    settings: dict[str, Any] = {"help": _help(option), "required": required, "metavar": option.metavar}
    if kind is bool:
        settings |= {"is_flag": True, "default": field.default}
    else:
        settings |= {"type": _type(kind, option), "multiple": several and not option.commas}
        if option.commas:
            settings |= {"default": field.default}
        elif not required and not several and field.default is not None:
            settings |= {"default": field.default, "show_default": "[default: " not in option.help}
    return click.Option([field.name, *option.names], **settings)


def _help(option: Option) -> str:
    if not option.listed:
        return option.help
    module, _, function = option.listed.partition(":")
    with importing():
        names = getattr(importlib.import_module(module), function)()
    return option.help.format(", ".join(names))


def _plain(hint: Any) -> tuple[Any, bool]:
    """X of X, X | None and tuple[X, ...]; whether it is the latter."""
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    return (get_args(hint)[0], True) if get_origin(hint) is tuple else (hint, False)


def _type(kind: Any, option: Option) -> click.ParamType[Any] | type[Any]:
    if option.commas:
        return Commas()
    if option.choices:
        return click.Choice(option.choices)
    if option.range is not None:
        return click.IntRange(*option.range)
    return {Path: FILE, float: Finite()}.get(kind, kind)  # type: ignore[no-any-return]
