"""The file that a search lives in: Optuna's journal, one writer at a time, whole lines after any end of a process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...runtime.errors import RequestError, first_line
from ...runtime.leftovers import try_lock

JOURNAL = "search.jsonl"


class _Ours:
    """The lock of Optuna's journal. The whole file is this process's (flock), so there is nothing to wait for, and no
    lock of a killed process that is waited for.
    """

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


@contextmanager
def opened_storage(path: Path) -> Iterator[Any]:
    """Yields Optuna's storage in the file `path`, made where there is none. Raises RequestError."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise RequestError(f"cannot write {path}: {error.strerror or error}") from None
    try:
        if os.name == "posix" and not try_lock(handle):
            raise RequestError(f"{path} is in use by another process: wait for it to end, or give another --out")
        _end_at_a_line(handle)
        try:
            _check_begins_as_one(path)
            storage = JournalStorage(JournalFileBackend(str(path), lock_obj=_Ours()))  # type: ignore[arg-type]
        except Exception as error:  # whatever a damaged line makes of it
            raise RequestError(f"{path} is not the journal of a search ({first_line(error)}): remove it") from None
        yield storage
    finally:
        os.close(handle)


def _check_begins_as_one(path: Path) -> None:
    """Raises ValueError: Optuna itself reads a file of one foreign line as an empty journal."""
    with path.open("rb") as file:
        line = file.readline()
    if line and "op_code" not in json.loads(line):
        raise ValueError("its first line is another file's")


def _end_at_a_line(handle: int) -> None:
    """A process that was killed while it wrote left part of a line: what it meant is not known, and is dropped."""
    size = os.fstat(handle).st_size
    end, block = size, 1 << 16
    while end > 0:
        start = max(0, end - block)
        found = os.pread(handle, end - start, start).rfind(b"\n")
        if found >= 0:
            end = start + found + 1
            break
        end = start
    if end < size:
        os.ftruncate(handle, end)


def remembered(study: Any, key: str, make: Callable[[], Any]) -> Any:
    """What JSON holds of `make()`, made once in the life of a study."""
    if key not in study.user_attrs:
        study.set_user_attr(key, make())
    return study.user_attrs[key]


def check_same(study: Any, settings: Mapping[str, Any], folder: Path) -> None:
    """Raises RequestError where the study in `folder` was begun with other settings."""
    before = remembered(study, "settings", lambda: dict(settings))
    for name, value in settings.items():
        if before.get(name) != value:
            raise RequestError(
                f"{folder} holds a search with {name} {_short(before.get(name))}, this one has {_short(value)}: give "
                "another --out, or remove it"
            )


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
