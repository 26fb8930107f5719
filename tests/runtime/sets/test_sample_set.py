"""A set of samples is the same bytes in one piece, after a kill, and in shards."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ditedge.runtime import generate, open_bundle
from ditedge.runtime.errors import RequestError
from ditedge.runtime.samplers.settings import SamplerSettings
from ditedge.runtime.sets.places import Arrays
from ditedge.runtime.sets.plan import Shard, shard_of
from ditedge.runtime.sets.request import MergeRequest, SampleSetRequest
from ditedge.runtime.sets.sample import Done, merge, sample_set
from tests.conftest import ROOT
from tests.test_cli import ditedge

COUNT, BATCH, STEPS = 22, 4, 2
FAST = {"count": COUNT, "batch": BATCH, "seed": 100, "settings": SamplerSettings(sampler="ddim", steps=STEPS)}


@pytest.fixture(scope="module")
def gray(golden_bundle) -> Path:
    return golden_bundle("gray1_cfg", labels=True)


def made(bundle: Path, out: Path, **options: Any) -> Done:
    return sample_set(SampleSetRequest(bundle, out=out, **{**FAST, **options}))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / "labels.csv").read_text())))


def test_image_i_is_the_one_of_its_seed(gray: Path, tmp_path: Path) -> None:
    done = made(gray, tmp_path / "a")
    assert (done.sampled, done.kept, done.missing) == (COUNT, 0, 0) and done.whole == tmp_path / "a" / "labels.csv"
    listed = rows(tmp_path / "a")
    assert [row["seed"] for row in listed] == [str(100 + i) for i in range(COUNT)] and len(listed) == COUNT
    assert len({row["label"] for row in listed}) > 4
    bundle = open_bundle(gray)
    program = bundle.program(sampler="ddim", steps=STEPS)
    expected = generate(bundle, [int(row["label"]) for row in listed], range(100, 100 + COUNT), program=program)
    for row, pixels in zip(listed, expected, strict=True):
        with Image.open(tmp_path / "a" / row["file"]) as image:
            assert np.array_equal(np.asarray(image), pixels[..., 0])
            said = json.loads(image.info["ditedge"])
        assert said["seeds"] == [int(row["seed"])] and said["classes"] == [row["class"]]


def test_a_file_of_the_set_is_that_of_run(gray: Path, tmp_path: Path) -> None:
    made(gray, tmp_path / "a")
    row = rows(tmp_path / "a")[5]
    options = ["--class", row["label"], "--seed", row["seed"], "--sampler", "ddim", "--steps", STEPS]
    assert ditedge("run", "--engine", gray, *options, "-o", tmp_path / "r.png").exit_code == 0
    assert (tmp_path / "r.png").read_bytes() == (tmp_path / "a" / row["file"]).read_bytes()


@pytest.mark.parametrize("form", ["png", "npz"])
def test_gaps_and_damage_are_mended(gray: Path, tmp_path: Path, form: str) -> None:
    whole = made(gray, tmp_path / "whole", format=form)
    part = tmp_path / "part"
    made(gray, part, format=form, shard="1/2")
    damaged = part / "000001.png" if form == "png" else part / "parts" / "00000000.npz"
    data = bytearray(damaged.read_bytes())
    data[len(data) * 3 // 4] ^= 255
    damaged.write_bytes(data)
    (part / "000009.png" if form == "png" else part / "parts" / "00000002.npz").unlink()
    again = made(gray, part, format=form)
    assert (again.kept, again.sampled) == (4, COUNT - 4) and again.sha256 == whole.sha256
    assert content(part) == content(tmp_path / "whole")
    assert made(gray, part, format=form).sampled == 0


@pytest.mark.parametrize("options", [{"format": "png"}, {"format": "npz"}, {"layout": "class", "balanced": True}])
def test_shards_merged_are_the_whole(gray: Path, tmp_path: Path, options: dict) -> None:
    whole = made(gray, tmp_path / "whole", **options)
    shards = tuple(tmp_path / f"shard-{i}" for i in range(1, 5))
    for i, shard in enumerate(shards, 1):
        done = made(gray, shard, **options, shard=f"{i}/4")
        assert done.whole is None and done.missing == COUNT - done.sampled > 0
    early = merge(MergeRequest(tmp_path / "merged", shards[:3]))
    assert early.whole is None and early.missing == 4  # of six batches, shard 4 has one
    late = merge(MergeRequest(tmp_path / "merged", shards))
    assert late.sha256 == whole.sha256 and content(tmp_path / "merged") == content(tmp_path / "whole")
    assert merge(MergeRequest(shards[0], shards)).sha256 == whole.sha256  # into one of them


def test_balanced_sets_and_folders_of_classes(gray: Path, tmp_path: Path) -> None:
    made(gray, tmp_path / "a", balanced=True, layout="class")
    listed = rows(tmp_path / "a")
    assert [row["label"] for row in listed] == [str(i % 10) for i in range(COUNT)]
    assert listed[13]["file"] == "3/000013.png" and listed[13]["class"] == "Dress"


def test_arrays_are_what_the_evaluator_reads(gray: Path, golden_bundle, tmp_path: Path) -> None:
    made(gray, tmp_path / "a", format="npz", balanced=True)
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"set.json", "samples.npz"}
    with np.load(tmp_path / "a" / "samples.npz") as arrays:
        assert list(arrays) == ["arr_0", "arr_1"]
        images, labels = arrays["arr_0"], arrays["arr_1"]
    assert (images.shape, images.dtype) == ((COUNT, 8, 8, 3), np.uint8)
    assert labels.dtype == np.int64 and labels.tolist() == [i % 10 for i in range(COUNT)]
    program = open_bundle(gray).program(sampler="ddim", steps=STEPS)
    expected = generate(open_bundle(gray), labels, range(100, 100 + COUNT), program=program)
    assert np.array_equal(images, np.repeat(expected, 3, axis=-1))
    colours = golden_bundle("pixel3_no_null_class")
    made(colours, tmp_path / "b", format="npz", guidance=1.0)
    with np.load(tmp_path / "b" / "samples.npz") as arrays:
        assert arrays["arr_0"].shape == (COUNT, 16, 16, 3)
    with zipfile.ZipFile(tmp_path / "b" / "samples.npz") as archive:
        assert {info.date_time[0] for info in archive.infolist()} == {1980}


def test_what_does_not_fit(gray: Path, golden_bundle, tmp_path: Path) -> None:
    made(gray, tmp_path / "a", count=2)
    for complaint, options in {
        "another set: its seed is 100, not 5": {"count": 2, "seed": 5},
        "another set: its count is 2, not 3": {"count": 3},
        "another set: its batch is 4, not 2": {"count": 2, "batch": 2},
        "another set: its guidance is 4.0, not 1.0": {"count": 2, "guidance": 1.0},
        "is not i/n": {"shard": "0/4"},
        "--layout class is for --format png": {"layout": "class", "format": "npz"},
        "seed 18446744073709551616 is not between": {"seed": 2**64 - 21},
    }.items():
        with pytest.raises(RequestError, match=complaint):
            made(gray, tmp_path / "a", **options)
    with pytest.raises(RequestError, match="needs a null class"):
        made(golden_bundle("pixel3_no_null_class"), tmp_path / "b", guidance=2.0)
    with pytest.raises(RequestError, match="has no decoder"):
        made(golden_bundle("latent4_learned_sigma"), tmp_path / "b")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(RequestError, match="is not empty and has no set.json"):
        made(gray, tmp_path / "full")
    with pytest.raises(RequestError, match="has no set.json: it is no folder of"):
        merge(MergeRequest(tmp_path / "m", (tmp_path / "full",)))
    made(gray, tmp_path / "c", count=2, seed=1)
    with pytest.raises(RequestError, match="c is another set: its seed is 1, not 100"):
        merge(MergeRequest(tmp_path / "m", (tmp_path / "a", tmp_path / "c")))
    with pytest.raises(RequestError, match="there is nothing to merge"):
        merge(MergeRequest(tmp_path / "m", ()))
    assert shard_of("3/8") == Shard(3, 8)


@pytest.mark.parametrize("form", ["png", "npz"])
def test_shards_that_fill_one_folder_at_the_same_time(gray: Path, tmp_path: Path, form: str) -> None:
    """The second is made while the first samples, and ends before: who ends last makes the set whole."""
    whole = made(gray, tmp_path / "whole", format=form)
    others: list[Done] = []

    def meanwhile(what: str, done: int, total: int) -> None:
        if what == "sampling" and not others:
            others.append(made(gray, tmp_path / "both", format=form, shard="2/2"))

    last = sample_set(
        SampleSetRequest(gray, out=tmp_path / "both", **{**FAST, "format": form, "shard": "1/2"}), meanwhile
    )
    assert others[0].whole is None and last.missing == 0 and last.sha256 == whole.sha256
    assert content(tmp_path / "both") == content(tmp_path / "whole")


def test_shards_that_end_in_the_same_moment(gray: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both join the parts, and one removes them while the other reads."""
    whole = made(gray, tmp_path / "whole", format="npz")
    for i in (1, 2):
        monkeypatch.setattr("ditedge.runtime.sets.sample._came_meanwhile", lambda *_: False)  # neither saw the other
        made(gray, tmp_path / "both", format="npz", shard=f"{i}/2")
    place = Arrays(tmp_path / "both", whole.plan)
    began = []

    def meanwhile(what: str, done: int, total: int) -> None:
        if not began:
            began.append(done)
            place.finish()

    assert place.finish(meanwhile) == tmp_path / "both" / "samples.npz"
    assert content(tmp_path / "both") == content(tmp_path / "whole")
    (tmp_path / "both" / "samples.npz").write_bytes(b"damaged")
    with pytest.raises(RequestError, match="is damaged: run the same command again"):
        place.finish()


def test_the_commands(gray: Path, tmp_path: Path) -> None:
    options = ["--engine", gray, "--count", 6, "--batch", 2, "--steps", 2, "--json"]
    for i in (1, 2):
        result = ditedge("sample-set", *options, "--shard", f"{i}/2", "--out", tmp_path / f"p{i}")
        assert result.exit_code == 0 and json.loads(result.stdout)["missing"] == (2 if i == 1 else 4)
    folders = ["--shard", tmp_path / "p1", "--shard", tmp_path / "p2", "--out", tmp_path / "m"]
    result = ditedge("merge", *folders)
    assert result.exit_code == 0 and "6 of 6 images" in result.stdout and "sha256 " in result.stdout
    whole = json.loads(ditedge("sample-set", *options, "--out", tmp_path / "w").stdout)
    assert whole["sha256"] in result.stdout and whole["written"] == [str(tmp_path / "w" / "labels.csv")]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["png", "npz"])
def test_2000_images_of_the_demo(demo_bundle: Path, tmp_path: Path, form: str) -> None:
    """In one piece with one thread and with two; killed five times and gone on with; and as four shards."""
    options = ["--engine", demo_bundle, "--count", "2000", "--steps", "2", "--sampler", "ddim", "--format", form]

    def command(out: Path, *more: str) -> list[str]:
        return [
            str(part)
            for part in (sys.executable, ROOT / "cli.py", "sample-set", *options, "--json", "--out", out, *more)
        ]

    def sha256(out: Path, *more: str) -> str:
        ran = subprocess.run(command(out, *more), capture_output=True, text=True, check=True)
        return json.loads(ran.stdout)["sha256"]

    whole = sha256(tmp_path / "whole", "--threads", "1")
    if len(os.sched_getaffinity(0)) > 1:
        assert sha256(tmp_path / "threads", "--threads", "2") == whole
    for i in range(5):
        process = subprocess.Popen(command(tmp_path / "killed", "--threads", "1"), stderr=subprocess.DEVNULL)
        written = tmp_path / "killed" / ("parts" if form == "npz" else ".")
        more = len(list(written.glob("0*"))) + (5 if form == "npz" else 77) if written.exists() else 1
        while process.poll() is None and len(list(written.glob("0*")) if written.exists() else []) < more:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() in (-signal.SIGKILL, 0), i
    assert sha256(tmp_path / "killed", "--threads", "1") == whole
    left = [path for path in (tmp_path / "killed").rglob("*") if path.name.startswith(".")]
    assert left == []
    shards = []
    for i in range(1, 5):
        sha256(tmp_path / f"s{i}", "--shard", f"{i}/4", "--threads", "1")
        shards += ["--shard", str(tmp_path / f"s{i}")]
    merged = ditedge("merge", *shards, "--out", tmp_path / "merged", "--json")
    assert json.loads(merged.stdout)["sha256"] == whole
