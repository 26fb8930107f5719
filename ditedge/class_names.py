"""Lists of class names, in the forms that people keep them in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ditedge.runtime.errors import RequestError
from ditedge.runtime.json_files import MAX_CONFIG_BYTES, parse_json

from .failures import UserError, os_error_sentence


def read_class_names(path: Path) -> tuple[str, ...]:
    """One name a line, a JSON list, or a JSON object {"0": name}: its value may be a list that ends in the name.

    The last is what Keras publishes of ImageNet ({"0": ["n01440764", "tench"]}); a model's config.json of transformers
    holds the object as "id2label". Raises UserError.
    """
    what = f"{path}: not a readable list of class names"
    try:
        with path.open("rb") as file:  # also a pipe
            raw = file.read(MAX_CONFIG_BYTES + 1)
        if len(raw) > MAX_CONFIG_BYTES:
            raise UserError(f"{what}: larger than {MAX_CONFIG_BYTES >> 20} MB")
        text = raw.decode("utf-8-sig")  # Windows' editors begin a file with a byte order mark
        if path.suffix == ".json":
            names = _from_json(parse_json(text.encode(), what, RequestError))
        else:
            names = [line.strip() for line in text.splitlines()]
    except OSError as error:
        raise UserError(f"{what}: {os_error_sentence(error)}") from None
    except (ValueError, RequestError) as error:
        raise UserError(str(error) if isinstance(error, RequestError) else f"{what} ({error})") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f'{path}: not a list of class names: one a line, a JSON list, or {{"0": name, ...}}')
    return tuple(name for name in names if name)


def _from_json(data: Any) -> Any:
    """The list that an object of numbered names stands for; anything else as it is. Raises ValueError for a gap."""
    if isinstance(data, dict):
        data = data.get("id2label", data)
    if not isinstance(data, dict):
        return data
    named = {int(key): value[-1] if isinstance(value, list) and value else value for key, value in data.items()}
    if sorted(named) != list(range(len(named))):
        raise ValueError(f"the classes are not numbered 0 to {len(named) - 1} without a gap")
    return [named[number] for number in range(len(named))]
