"""Files of class names, as `export --classes` takes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ditedge.class_names import read_class_names
from tests.test_cli import ditedge


@pytest.mark.parametrize(
    ("text", "suffix"),
    [
        ("\ufeffboot\r\n1990\r\nbag, sack", ".txt"),
        ('["boot", "1990", "bag, sack"]', ".json"),
        ('\ufeff{"0": "boot", "1": "1990", "2": "bag, sack"}', ".json"),
        ('{"2": ["n3", "bag, sack"], "0": ["n1", "boot"], "1": ["n2", "1990"]}', ".json"),
        ('{"id2label": {"0": "boot", "1": "1990", "2": "bag, sack"}, "model_type": "dit"}', ".json"),
    ],
)
def test_class_names_in_the_forms_that_people_keep_them(tmp_path: Path, text: str, suffix: str) -> None:
    path = tmp_path / f"names{suffix}"
    path.write_text(text, encoding="utf-8", newline="")
    assert read_class_names(path) == ("boot", "1990", "bag, sack")


CLASS_FILES = ['{"0": "a", "2": "b"}', '{"a": "b"}', '{"0": 1}', "[" * 100_000, "3", " " * (17 << 20)]
CLASS_FILES += ['{"id2label": 3}', '{"id2label": [1]}', '{"id2label": null}', '["\\ud800"]', '{"0": "a", "0": "b"}']


@pytest.mark.parametrize("text", CLASS_FILES)
def test_class_files_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "names.json").write_text(text)
    result = ditedge("export", "--ckpt", "x.pt", "--classes", tmp_path / "names.json")
    assert result.exit_code == 2 and "list of class names" in result.stderr
