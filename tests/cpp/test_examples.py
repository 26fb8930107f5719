"""The example programs, by their command lines."""

from __future__ import annotations

import json
import os
import re
import subprocess
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image

from ditedge.runtime import generate, open_bundle
from tests.conftest import ROOT


def test_examples(built: Path, golden_bundle, onnxruntime_library: Path, tmp_path: Path) -> None:
    """The command line, the C program and the benchmark make what Python makes."""
    folder = golden_bundle("gray1_cfg", labels=True)
    environment = os.environ | {"DITEDGE_ONNXRUNTIME": str(onnxruntime_library)}

    def run(*command: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True)

    expected = generate(open_bundle(folder), [8, 9], [7, 8])
    png = run(
        built / "ditedge-run", "--bundle", folder, "--class", "Bag;ankle boot", "--seed", 7, "-o", tmp_path / "a.png"
    )
    assert png.returncode == 0 and "step 20/20" in png.stderr, png.stderr
    assert np.mean(np.array(Image.open(tmp_path / "a.png")) == expected[..., 0].reshape(16, 8)) >= 0.999
    c = run(built / "ditedge-minimal", folder, "Bag", 7, tmp_path / "a.pgm")
    assert c.returncode == 0, c.stderr
    assert np.abs(np.array(Image.open(tmp_path / "a.pgm")).astype(int) - expected[0, ..., 0]).max() <= 1
    assert run(built / "ditedge-minimal", folder, "Nothing", 7, tmp_path / "b.pgm").returncode == 1
    bench = json.loads(run(built / "ditedge-bench", "--bundle", folder, "--program", "ddim-25", "--repeats", 2).stdout)
    assert bench["ms_per_step"] > 0 and bench["peak_mib"] > 1
    for example in ("ditedge-run", "ditedge-bench"):
        helped = run(built / example, "--help")
        assert helped.returncode == 0 and "example" in helped.stdout
    assert run(built / "ditedge-minimal", folder, "Bag", "-7", tmp_path / "b.pgm").returncode == 1


# What ditedge-run is given beside a bundle and class 1, and how its sentence begins.
WRONG_ARGUMENTS = [
    (["--seed"], "--seed needs a value"),
    (["--what", "1"], "unknown option --what"),
    (["--\033]0;x\007"], "unknown option --?]0;x?"),
    (["--class", "2"], "--class is given twice"),
    (["--threads", "99999999999"], "--threads 99999999999 is more than 2147483647"),
    (["--threads", "-1"], "--threads -1 is not a whole number"),
    (["--threads", "2x"], "--threads 2x is not a whole number"),
    (["--threads", ""], "--threads needs a value"),
    (["--device", "2147483648"], "--device 2147483648 is more than"),
    (["--batch", "99999999999"], "--batch 99999999999 is more than 4096"),
    (["--batch", "0"], "batch is not between 1 and 4096"),
    (["--seed", "18446744073709551616"], "--seed 18446744073709551616 is more than 18446744073709551615"),
    (["--seed", "9" * 5000], "--seed 999"),
    (["--seed", " -1"], "--seed  -1 is not a whole number"),
    (["--guidance", "nan"], "--guidance nan is not a finite number"),
    (["--guidance", "1e999"], "--guidance 1e999 is not a finite number"),
    (["--guidance", "1e300"], "guidance 1e+300 is not a number up to 3e38"),
    (["--program", "nope"], "no program 'nope' in the bundle; it has "),
    (["--program-file", "/nowhere"], "cannot read /nowhere: No such file or directory"),
    (["-o", "/nowhere/a.png"], "cannot write /nowhere/a.png: No such file"),
    (["-o", "/"], "cannot write /: Is a directory"),
    (["--latents", "/etc/passwd/a"], "cannot write /etc/passwd/a: Not a directory"),
    (["-o", "/dev/full"], "cannot write /dev/full: No space left"),
]


def test_wrong_arguments(built: Path, golden_bundle, onnxruntime_library: Path) -> None:
    """One sentence and exit code 2; nothing that was typed commands the terminal."""
    bundle = ["--bundle", golden_bundle("gray1_cfg", labels=True)]
    cases = [([*bundle, "--class", "1", *arguments], words) for arguments, words in WRONG_ARGUMENTS]
    cases += [
        (bundle, "--bundle and --class are needed"),
        (["--bundle", "/no", "--class", "1"], "/no is not a bundle: No such"),
    ]
    cases.append(([*bundle, "--class", "1;2", "--seed", "18446744073709551615"], "--seed is too large: image i has"))
    for arguments, words in cases:
        command = [built / "ditedge-run", *map(str, arguments)]
        environment = os.environ | {"DITEDGE_ONNXRUNTIME": str(onnxruntime_library)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 2 and f"error: {words}" in done.stderr, (arguments, done.stderr)
        assert "step 1/" not in done.stderr or "full" in words, arguments  # before the sampling
        assert not re.search(r"[\0-\x09\x0b\x0c\x0e-\x1f\x7f]", done.stderr), arguments


def test_programs_as_files_and_where_pictures_go(
    built: Path, golden_bundle, onnxruntime_library: Path, tmp_path: Path
) -> None:
    """A program's file gives what its name does; no link is followed, no device replaced, no file of others touched."""
    folder = golden_bundle("gray1_cfg")
    environment = os.environ | {"DITEDGE_ONNXRUNTIME": str(onnxruntime_library)}

    def latents(*arguments: object) -> bytes:
        command = [built / "ditedge-run", "--bundle", folder, "--class", "1", "--latents", tmp_path / "l", *arguments]
        subprocess.run([*map(str, command)], env=environment, check=True, capture_output=True)
        return (tmp_path / "l").read_bytes()

    named = latents("--program", "ddim-25")
    assert latents("--program-file", folder / "programs" / "ddim-25.json") == named
    (tmp_path / "l").unlink()
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "l.part").symlink_to(tmp_path / "mine")
    assert latents("--program", "ddim-25") == named
    assert (tmp_path / "mine").read_text() == "mine" and (tmp_path / "l.part").is_symlink()
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "l").stat().st_mode & 0o777 == 0o666 & ~mask
    assert {path.name for path in tmp_path.iterdir()} == {"l", "l.part", "mine"}
    (tmp_path / "l").unlink()
    (tmp_path / "l").symlink_to(tmp_path / "mine")  # a link that was given is kept, and what it names is written
    assert latents("--program", "ddim-25") == named == (tmp_path / "mine").read_bytes()
    assert (tmp_path / "l").is_symlink()
    os.mkfifo(tmp_path / "pipe")
    command = [built / "ditedge-run", "--bundle", folder, "--class", "1", "--program", "ddim-25"]
    for relative in ("new", "./new", "../" + tmp_path.name + "/new", "l"):
        subprocess.run(
            [*command, "--latents", relative], cwd=tmp_path, env=environment, check=True, capture_output=True
        )
        assert (tmp_path / relative).read_bytes() == named
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE) as reader:
        subprocess.run([*command, "--latents", tmp_path / "pipe"], env=environment, check=True, capture_output=True)
        assert reader.communicate()[0] == named


def test_the_program_in_the_documentation(
    built: Path, golden_bundle, onnxruntime_library: Path, tmp_path: Path
) -> None:
    text = (ROOT / "docs" / "embedding.md").read_text()
    program = text.split("```cpp\n")[1].split("```")[0]
    (tmp_path / "application.cpp").write_text(textwrap.dedent(program))
    flags = ["-std=c++17", f"-I{ROOT / 'runtime/cpp/include'}", f"-L{built}", f"-Wl,-rpath,{built}", "-lditedge"]
    subprocess.run(["c++", "application.cpp", "-o", "application", *flags], cwd=tmp_path, check=True)
    (tmp_path / "build" / "demo").mkdir(parents=True)
    (tmp_path / "build" / "demo" / "fashion").symlink_to(golden_bundle("gray1_cfg", labels=True))
    environment = os.environ | {"DITEDGE_ONNXRUNTIME": str(onnxruntime_library)}
    subprocess.run(["./application"], cwd=tmp_path, env=environment, check=True)
