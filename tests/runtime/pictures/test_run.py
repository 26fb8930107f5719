"""`run`: arrays as labels, classes by name, and pictures in every format, made again from their own files."""

from __future__ import annotations

import io
import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from ditedge.runtime import Session, generate, open_bundle
from ditedge.runtime.errors import RequestError
from ditedge.runtime.loop.noise import standard_normal
from ditedge.runtime.pictures.images import open_picture, read_metadata, write_picture
from ditedge.runtime.pictures.request import RunRequest
from ditedge.runtime.pictures.run import run_bundle
from ditedge.runtime.samplers.settings import SamplerSettings
from tests.test_cli import ditedge

STEPS = ["--sampler", "ddim", "--steps", 2]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).copy()


def test_arrays_are_labels_and_seeds(golden_bundle) -> None:
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    program = bundle.program(sampler="ddim", steps=1)
    with Session(bundle) as session:

        def images(labels, seeds, away_from=None) -> np.ndarray:
            return generate(bundle, labels, seeds, away_from=away_from, program=program, session=session)

        wanted = images([1, 2], [3, 4], [5, 6])
        for labels, seeds, away in (
            (np.array([1, 2]), np.array([3, 4], np.int32), np.array([5, 6], np.uint8)),
            ([np.int64(1), np.uint8(2)], [np.int16(3), np.uint64(4)], (5, 6)),
        ):
            assert np.array_equal(images(labels, seeds, away), wanted)
        for labels, seeds, words in (
            ([1.5], [3], "label 1.5 is not a whole number"),
            (np.array([1.0]), [3], "label 1.0 is not a whole number"),
            ([1], ["3"], "seed '3' is not a whole number"),
            (1, [3], "labels must be a list of whole numbers"),
            ("1", [3], "labels must be a list"),
            ([None], [3], "None among"),
            ([1], [2**64], "seed 18446744073709551616 is not between"),
            (np.empty(0, np.int64), np.empty(0, np.int64), "at least one"),
        ):
            with pytest.raises(RequestError, match=words):
                images(labels, seeds)
    assert np.array_equal(standard_normal(np.int32(7), 0, 4), standard_normal(7, 0, 4))


def test_classes_by_exact_name_then_number_then_name(golden_bundle) -> None:
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    names = ["boot", "1990", "Bag, Sack", "7", "BOOT", "x", "x", "a", "b", "c"]
    bundle = replace(bundle, manifest=bundle.manifest.model_copy(update={"labels": names}))
    found = {text: bundle.label(text) for text in ("boot", "BOOT", "1990", "7", "5", "sack", " Bag, sack")}
    assert found == {"boot": 0, "BOOT": 4, "1990": 1, "7": 3, "5": 5, "sack": 2, " Bag, sack": 2}
    for text, words in (("Boot", "several meanings"), ("x", "several meanings"), ("9" * 5000, "0 to 9")):
        with pytest.raises(RequestError, match=words):
            bundle.label(text)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.JPEG", "a.webp", "deep/er/a.png", "deep/folder"])
def test_pictures_of_every_format_are_made_again(golden_bundle, tmp_path: Path, name: str) -> None:
    bundle, first = golden_bundle("gray1_cfg"), tmp_path / name
    result = ditedge("run", "--engine", bundle, "--count", 3, "--seed", 9, *STEPS, "-o", first)
    assert result.exit_code == 0, result.output
    if first.is_dir():
        assert len(list(first.iterdir())) == 3
        first = sorted(first.iterdir())[0]
    kind = {".png": "PNG", ".webp": "WEBP"}.get(first.suffix.lower(), "JPEG")
    with Image.open(first) as image:
        assert image.format == kind and image.size[1] == (18 if "folder" not in name else 8)
    assert read_metadata(first)["program"] == "ddim-2"
    again = tmp_path / f"again{first.suffix}"
    result = ditedge("run", "--engine", bundle, "--like", first, "-o", again)
    assert result.exit_code == 0 and again.read_bytes() == first.read_bytes(), result.output


def test_formats_without_loss_keep_every_pixel(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for name in ("a.png", "a.webp"):
        write_picture(tmp_path / name, picture, {"a": 1})
        assert np.array_equal(pixels(tmp_path / name), picture) and read_metadata(tmp_path / name) == {"a": 1}
    write_picture(tmp_path / "a.jpg", picture, {"text": "x" * 60_000})
    assert np.abs(pixels(tmp_path / "a.jpg").astype(int) - picture).mean() < 12
    with pytest.raises(RequestError, match="write a .png"):
        write_picture(tmp_path / "b.jpg", picture, {"text": "x" * 70_000})
    assert not (tmp_path / "b.jpg").exists()


def test_standard_output_and_npz(golden_bundle, tmp_path: Path) -> None:
    bundle = golden_bundle("gray1_cfg")
    arguments = ["run", "--engine", bundle, "--count", 3, *STEPS]
    assert ditedge(*arguments, "-o", tmp_path / "a.png").exit_code == 0
    piped = ditedge(*arguments, "-o", "-")
    assert piped.exit_code == 0 and piped.stdout_bytes == (tmp_path / "a.png").read_bytes()
    assert "3 image(s)" in piped.stderr and not (tmp_path / "-").exists()
    latents = ["--save-latents", tmp_path / "l.npz", "--save-trajectory", tmp_path / "t.npz"]
    assert ditedge(*arguments, "-o", tmp_path / "a.npz", *latents).exit_code == 0
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["images"].shape == (3, 8, 8, 1) and arrays["y"].tolist() == [0, 1, 2]
        assert json.loads(str(arrays["ditedge"]))["seeds"] == [0, 1, 2]
    with np.load(tmp_path / "l.npz") as l, np.load(tmp_path / "t.npz") as t:
        assert np.array_equal(t["x"][-1], l["latents"]) and len(t["timesteps"]) == 2


def test_programs_as_files(golden_bundle, tmp_path: Path) -> None:
    """A run saves its program; another runs it; a picture of it is made again with the same file and no other."""
    bundle, file = golden_bundle("gray1_cfg"), tmp_path / "deep" / "p.json"
    saved = ditedge("run", "--engine", bundle, "--class", 1, "--sampler", "unipc", "--steps", 3, "--save-program", file,
                    "-o", tmp_path / "a.png")  # fmt: skip
    assert saved.exit_code == 0 and f"wrote {file}" in saved.output
    by_file = ["run", "--engine", bundle, "--program", file]
    assert ditedge(*by_file, "--class", 1, "-o", tmp_path / "b.png").exit_code == 0
    assert np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))
    assert read_metadata(tmp_path / "b.png")["program_file"] == "p.json"
    again = ditedge(*by_file, "--like", tmp_path / "b.png", "-o", tmp_path / "c.png")
    assert again.exit_code == 0 and (tmp_path / "c.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    like = ["run", "--engine", bundle, "-o", tmp_path / "d.png", "--like"]
    other = tmp_path / "other.json"
    other.write_text(file.read_text() + "\n")
    for arguments, words in (
        ([tmp_path / "b.png"], "give that file by --program"),
        ([tmp_path / "b.png", "--program", other], "is another"),
        ([tmp_path / "a.png", "--program", file], "leave --program out"),
    ):
        result = ditedge(*like, *arguments)
        assert result.exit_code == 2 and words in result.stderr, result.output
    assert not (tmp_path / "d.png").exists()


@pytest.mark.parametrize(("options", "sampler"), [([], "ddim"), (["--sampler", "ddpm"], "ddpm"), (["--variance", "fixed-small"], "ddpm")])  # fmt: skip
def test_respacing_ddim_alone_means_ddim(golden_bundle, tmp_path: Path, options: list, sampler: str) -> None:
    run = ["run", "--engine", golden_bundle("gray1_cfg"), "--respacing", "ddim5", "-o", tmp_path / "a.png", "--json"]
    assert json.loads(ditedge(*run, *options).stdout)["made"]["sampler"] == sampler


def test_without_a_decoder_a_run_ends_in_latents_and_a_rough_picture(
    golden_bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = golden_bundle("latent4_learned_sigma")
    monkeypatch.chdir(tmp_path)
    result = ditedge("run", "--engine", bundle, "--class", 1, "--steps", 2)
    assert result.exit_code == 0 and "add-decoder" in result.output, result.output
    latents = load_file(f"{bundle.name}.safetensors")["latents"]
    with Session(open_bundle(bundle)) as session:
        assert np.array_equal(pixels(tmp_path / f"{bundle.name}.png"), session.preview(latents)[0])
    assert read_metadata(tmp_path / f"{bundle.name}.png")["rough"] is True
    summary = run_bundle(
        RunRequest(bundle, classes=("1",), settings=SamplerSettings(steps=2), out=tmp_path / "asked.jpg")
    )
    assert summary["rough"] and summary["written"] == [str(tmp_path / "asked.jpg")]
    summary = run_bundle(
        RunRequest(bundle, classes=("1",), settings=SamplerSettings(steps=2), save_latents=tmp_path / "l.npz")
    )
    assert not summary["rough"] and summary["written"] == [str(tmp_path / "l.npz")]


def test_more_pictures_than_memory_are_refused_before_the_work(
    golden_bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 steps of 8 x 8 float32 and two pictures of 64 bytes: 5,248 bytes an image, on a machine of 1 MB."""
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PHYS_PAGES": 250, "SC_PAGE_SIZE": 4000}[name])
    run = ["run", "--engine", golden_bundle("gray1_cfg"), "--save-trajectory", tmp_path / "t.npz"]
    result = ditedge(*run, "-o", tmp_path / "a.png", "--count", 191)
    assert result.exit_code == 2 and "give a smaller --count, such as 95" in result.stderr, result.output
    assert list(tmp_path.iterdir()) == []
    assert ditedge(*run, "-o", tmp_path / "a.png", "--count", 2).exit_code == 0


# --- pictures from anywhere -----------------------------------------------------------------------------------------


def png(path: Path, text: str, width: int = 8, height: int = 8) -> Path:
    """A PNG with this metadata that says it has this size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = chunk(b"tEXt", b"ditedge\0" + text.encode()) + chunk(b"IDAT", zlib.compress(bytes(72)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"made": "x"}, "cannot be used (made:"),
        ({"made": {"sampler": "ddim", "steps": "many"}}, "settings that make no sense"),
        ({"made": {"sampler": "ddim", "steps": 10**30}}, "steps"),
        ({"made": {"sampler": "ddim", "steps": 2, "guidance_interval": [1]}}, "make no sense"),
        ({"made": {"sampler": "ddim", "steps": 2, "guidance_interval": {"a": 1}}}, "make no sense"),
        ({"made": {"sampler": ["ddim"], "steps": 2}}, "make no sense"),
        ({"made": {"sampler": "ddim", "steps": 2, "eta": "1"}}, "make no sense"),
        ({"made": {"sampler": "ddim", "steps": True}}, "make no sense"),
        ({"made": {"sampler": "ddim", "respacing": "9" * 5000}}, "respacing"),
        ({"seeds": [float("inf")]}, "seeds: a number that is not finite"),
        ({"seeds": [2**64]}, "cannot be used (seeds.0:"),
        ({"labels": []}, "cannot be used (labels:"),
        ({"labels": [1.5]}, "cannot be used (labels.0:"),
        ({"labels": [1, 2]}, "2 labels and 1 seeds"),
        ({"guidance": float("nan")}, "guidance: a number that is not finite"),
        ({"bundle_sha256": None}, "cannot be used (bundle_sha256:"),
    ],
)
def test_metadata_from_anywhere_is_checked(golden_bundle, tmp_path: Path, change: dict, words: str) -> None:
    bundle = golden_bundle("gray1_cfg")
    good = {"bundle_sha256": open_bundle(bundle).sha256, "labels": [1], "seeds": [2], "away_from": None}
    good |= {"guidance": 4.0, "made": {"sampler": "ddim", "steps": 2}}
    like = ["run", "--engine", bundle, "-o", tmp_path / "a.png", "--like"]
    assert ditedge(*like, png(tmp_path / "good.png", json.dumps(good))).exit_code == 0
    result = ditedge(*like, png(tmp_path / "bad.png", json.dumps(good | change)))
    assert result.exit_code == 2 and words in result.stderr, result.output
    assert len(result.stderr.splitlines()) == 1 and len(result.stderr) < 1200


def test_pictures_that_are_none(golden_bundle, tmp_path: Path) -> None:
    like = ["run", "--engine", golden_bundle("gray1_cfg"), "-o", tmp_path / "a.png", "--like"]
    (tmp_path / "postscript.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")
    stream = io.BytesIO()
    Image.new("L", (8, 8)).save(stream, format="TIFF")
    (tmp_path / "tiff.png").write_bytes(stream.getvalue())
    for path, words in (
        (png(tmp_path / "large.png", "{}", 20_000, 20_000), "pixels, which are not opened"),
        (png(tmp_path / "deep.png", "[" * 100_000), "nested more than 32 deep"),
        (tmp_path / "postscript.png", "not a readable picture (PNG"),
        (tmp_path / "tiff.png", "not a readable picture (PNG"),
        (tmp_path, "Is a directory"),
        (tmp_path / "nowhere.png", "No such file"),
    ):
        result = ditedge(*like, path)
        assert result.exit_code == 2 and words in result.stderr, result.output
        with pytest.raises(RequestError):
            read_metadata(path)
    with open_picture(png(tmp_path / "good.png", "{}")) as image:
        assert image.format == "PNG"


def test_damage_that_pillow_only_warns_of(tmp_path: Path) -> None:
    """It is said as a sentence when it matters, and nothing is printed (warnings are errors here)."""
    path = tmp_path / "a.jpg"
    for exif in (b"Exif\0\0II*\0\x08\0\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x0e\0\x02\0\0\xff\xff\0\0\0\x1a"):
        Image.new("L", (8, 8)).save(path, exif=exif)
        with pytest.raises(RequestError, match=r"a.jpg: has no ditedge metadata|not a readable picture"):
            read_metadata(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RequestError, match=r"a.jpg: not a readable picture"), open_picture(path) as image:
        image.load()
