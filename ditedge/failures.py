"""What ends a command: one sentence and an exit code for everything that a user, a file or the machine can do.

A DitedgeError says it itself. Errors of the operating system, of memory and of imports become a sentence here, so that
no other place has to know them all. What is left is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import click

from ditedge.interrupt import importing, interrupted, interruption_sentence
from ditedge.runtime.errors import Cancelled, DitedgeError

from .terminal import printable, say

REMEDIES = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EDQUOT: "free some space, or write to another disk",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "remove the link that points to itself",
    errno.EACCES: "change its permissions, or run as a user who may",
    errno.EPERM: "change its permissions, or run as a user who may",
    errno.EROFS: "write to another place",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a file stands where a folder is needed",
    errno.EISDIR: "a folder stands where a file is needed",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENOMEM: "close other programs, or ask for less at a time",
}
MEMORY = "give a smaller --batch or --count, or close other programs"
LINES_SHOWN = 1000  # characters of a message


class UserError(click.ClickException):
    """Something the user can mend, on its way out: one line, exit code 2."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(_short(printable(" ".join(message.split()))))


class Commands(click.Group):
    """Turns what a user can mend into one line; everything else is a bug and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, BrokenPipeError):
            raise  # click leaves quietly: who reads our output has had enough of it
        except (KeyboardInterrupt, Cancelled) as error:
            code = getattr(error, "code", 130)
        except Exception as error:
            code = interrupted() or _leave_with_sentence(error)
        say(interruption_sentence(), err=True)
        ctx.exit(code)


def _leave_with_sentence(error: Exception) -> NoReturn:
    """Raises what click shows as one line for what a user can mend; anything else is a bug and is raised as it is."""
    if isinstance(error, click.UsageError):  # click quotes the arguments, which may come from the names of files
        raise click.UsageError(_short(printable(error.format_message())), error.ctx) from None
    if isinstance(error, DitedgeError):
        raise UserError(str(error)) from None
    sentence = sentence_for(error)
    if sentence is None:
        raise error
    _give_up_output(error)
    raise UserError(sentence) from None


@contextmanager
def importing_extra(extra: str) -> Iterator[None]:
    """Around imports of optional packages. Raises UserError for one that is not installed; a failed load is another
    matter (`sentence_for`)."""
    try:
        with importing():
            yield
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in sys.modules or importlib.util.find_spec(package) is not None:
            raise ImportError(f"its part {error.name} is missing", name=package) from None
        raise UserError(f"{package} is not installed: pip install 'ditedge[{extra}]' on a workstation") from None


def sentence_for(error: BaseException) -> str | None:
    """What happened, to which file, and what to do; None for what only a mistake of ours can cause."""
    if isinstance(error, MemoryError) or _is_out_of_memory(error):
        told = str(error).split("\n")[0]
        return f"out of memory{f' ({told})' if told else ''}: {MEMORY}"
    if isinstance(error, ModuleNotFoundError):
        return None  # a package that is optional is named where it is imported
    if isinstance(error, ImportError):
        name, reason = error.name or "a library", str(error).split("\n")[0]
        return f"{name} is installed but cannot be loaded: {reason}"
    if isinstance(error, RuntimeError):  # pathlib before Python 3.13
        return f"{error}: {REMEDIES[errno.ELOOP]}" if str(error).startswith("Symlink loop") else None
    return os_error_sentence(error) if isinstance(error, OSError) else None


def os_error_sentence(error: OSError) -> str:
    """An operating system's refusal with its path and the remedy."""
    if error.filename is None and not _working_folder_exists():
        return "the folder that this command was started in is gone: change to another one"
    path, reason = error.filename2 or error.filename, error.strerror or str(error)
    if "temporary directory" in reason:
        return f"{reason}: free some space there, or set TMPDIR to a folder that can be written"
    what = "cannot write the output" if path is None or isinstance(path, int) else f"cannot use {os.fsdecode(path)}"
    remedy = REMEDIES.get(error.errno or 0)
    return f"{what}: {reason}" + (f"; {remedy}" if remedy else "")


def _is_out_of_memory(error: BaseException) -> bool:
    """torch raises RuntimeError, extensions that cannot be mapped ImportError or OSError."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM and error.filename is None
    text = str(error)
    signs = ("can't allocate memory", "not enough memory", "bad_alloc", "Cannot allocate memory")
    return any(sign in text for sign in signs)


def _working_folder_exists() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def _give_up_output(error: BaseException) -> None:
    """After a write to the standard output failed, what is still buffered must not fail again when Python ends."""
    if isinstance(error, OSError) and error.filename is None:
        with suppress(OSError, ValueError):  # a test's output has no descriptor
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _short(message: str) -> str:
    """The message with words of hundreds of letters cut, and itself cut: a number may have thousands of digits."""
    words = [word if len(word) <= 400 else f"{word[:80]}...({len(word)} characters)" for word in message.split(" ")]
    text = " ".join(words)
    return text if len(text) <= LINES_SHOWN else f"{text[:LINES_SHOWN]} ..."
