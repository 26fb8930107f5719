"""What reaches the terminal: lines without control characters, JSON, and the one display of progress.

Names come from files of others (bundles, checkpoints, folders), and a terminal obeys what they hold; rich obeys square
brackets, too. So every line goes through `say`, and no text is given to rich as markup.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from ditedge.runtime.report import Report, duration

LINE_SECONDS = 5.0  # without a terminal: a line of progress so often, rarer when it takes long ...
TENTH_SECONDS = 1.0  # ... and one for each tenth of the work, but not more often than this
HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, format (they reorder text), surrogates, separators


def printable(text: str) -> str:
    """The text with its control characters written as escapes (\\x1b); newlines and tabs stay."""
    return "".join(
        character
        if character in "\n\t" or unicodedata.category(character) not in HIDDEN
        else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in text
    )


def say(text: str, err: bool = False) -> None:
    """One or more lines on the standard output, or on the standard error."""
    click.echo(printable(text), err=err)


def print_json(value: Any) -> None:
    """JSON in ASCII; numbers that are not finite become null, which every reader of JSON knows."""
    click.echo(json.dumps(_finite(value), indent=1, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def readable(value: Any, indent: int = 0) -> str:
    """Nested dicts as indented lines; empty values are left out."""
    lines = []
    for key, item in value.items():
        if isinstance(item, dict) and item:
            lines.append("  " * indent + f"{key}:")
            lines.append(readable(item, indent + 1))
        elif isinstance(item, list) and item and isinstance(item[0], dict):
            lines += ["  " * indent + f"{key}:"] + [readable(entry, indent + 1) for entry in item]
        elif item not in (None, "", [], {}):
            text = ", ".join(map(str, item)) if isinstance(item, list) else str(item)
            lines.append("  " * indent + f"{key}: {text}")
    return "\n".join(lines)


def ask_passphrase(key: Path, variable: str) -> str | None:
    """Of an encrypted key: from the environment's `variable`, or at the terminal; None where there is nobody to ask."""
    given = os.environ.get(variable)
    if given is None and sys.stdin is not None and sys.stdin.isatty():
        given = click.prompt(f"passphrase of {printable(str(key))}", hide_input=True, err=True)
    return given


@contextmanager
def progress() -> Iterator[Report]:
    """Yields report(what, done, total), for the standard error: one moving line on a terminal, lines elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield progress_lines()
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    text = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[count]}", markup=False)
    columns = (
        SpinnerColumn(),
        text[0],
        BarColumn(),
        text[1],
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, count="")

        def report(what: str, done: int = 0, total: int = 0) -> None:
            current = bar.tasks[0]
            if current.total != (total or None) or done < current.completed:
                bar.reset(task, total=total or None)
            count = f"{done}/{total}" if total else ""
            bar.update(task, completed=done, description=printable(what)[:100], count=count)

        yield report


def progress_lines(write: Callable[[str], None] | None = None, clock: Callable[[], float] = time.monotonic) -> Report:
    """A report that writes lines: each new message, and of counted work a tenth, or some seconds, at a time."""
    out = write or (lambda text: say(text, err=True))
    what_now, started, first, shown = "", 0.0, 0, 0.0
    told = math.inf  # of the work that is counted; none yet

    def report(what: str, done: int = 0, total: int = 0) -> None:
        nonlocal what_now, started, first, shown, told
        now = clock()
        if not total:
            if what != what_now:
                out(what)
            what_now, told = what, math.inf
            return
        if what != what_now or done < told:
            what_now, started, first, shown, told = what, now, done, now, done
            return
        tenth = 10 * done // total > 10 * told // total
        if now - shown < (TENTH_SECONDS if tenth else max(LINE_SECONDS, (now - started) / 10)):
            return
        shown, told = now, done
        left = (now - started) / max(done - first, 1) * (total - done)
        out(f"{what}: {done} of {total}" + (f", about {duration(left)} left" if done < total else ""))

    return report
