"""Packs what tests/gpu/gpu_check.py needs on a GPU machine without a network, beside this checkout: `make gpu-pack`.

The float32 demo bundle and the wheels of a few packages, for another Python than this one, into the ignored folder
.gpu; with --training the images that examples/train.py learns from instead of the bundle. That machine needs a copy of
the checkout with it, and numpy, safetensors and torch installed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ditedge.runtime import open_bundle  # noqa: E402
from ditedge.runtime.errors import DitedgeError, RequestError  # noqa: E402

PACKAGES = ("annotated-types", "pydantic", "pydantic-core", "typing-extensions", "typing-inspection")
LIBRARIES = ("libditedge.so", "libditedge-gpu-double.so")
FOR_TRAINING = ("markdown-it-py", "mdurl", "pygments", "rich")
DATA = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
TRAINED_ON = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
MOST_BYTES = 60 << 20  # of checkout and folder together
INSTALL = "python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target /tmp/site {folder}/*.whl &&"
CHECK = "  PYTHONPATH=/tmp/site python3 tests/gpu/gpu_check.py"
TRAIN = """\
  PYTHONPATH=/tmp/site python3 examples/train.py --data {folder} --out ${{OUT:-runs/fashion}} --device cuda \\
    --minutes 8 --steps 100000 --batch-size 256 --hidden-size 256 --depth 8 --num-heads 4 --patch-size 2"""


def copy_bundle(bundle: Path, out: Path) -> None:
    """What its manifest names, and no plan. Raises DitedgeError for what is not a bundle of this version."""
    opened = open_bundle(bundle)
    for name in ("manifest.json", *opened.manifest.files):
        if (bundle / name).is_file():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(bundle / name, out / name)


def copy_libraries(out: Path) -> str:
    """libditedge and the double that tests/cpp/plans built -> a sentence, where they are missing."""
    folder = ROOT / "build" / "cpp"
    found = [folder / name for name in LIBRARIES if (folder / name).exists()]
    if len(found) < len(LIBRARIES):
        return f"without the C++ loop: {' and '.join(LIBRARIES)} are not in {folder}"
    out.mkdir(parents=True)
    for path in found:
        shutil.copy2(path, out / path.name)
    return ""


def copy_images(data: Path, out: Path) -> None:
    """Raises RequestError where they are missing."""
    for name in TRAINED_ON:
        if not (data / name).is_file():
            raise RequestError(f"{data / name} is missing: install dataset-fashion-mnist, or give its folder as --data")
        out.mkdir(parents=True, exist_ok=True)
        shutil.copy2(data / name, out / name)


def download_wheels(out: Path, python: str, constraints: Path, packages: tuple[str, ...] = PACKAGES) -> None:
    """The pinned versions of packages. Raises RequestError with pip's words."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    result = subprocess.run(
        [*command, "-c", str(constraints), "-d", str(out), *packages], capture_output=True, text=True
    )
    if result.returncode:
        raise RequestError(f"the wheels for Python {python} cannot be had: {result.stderr.strip().splitlines()[-1]}")


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def bytes_of_checkout() -> int:
    """Of every file that git does not ignore. Raises RequestError where git has no say."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise RequestError(f"{ROOT} is no git checkout: what has to travel cannot be told") from None
    names = [ROOT / name for name in listed.stdout.split("\0") if name]
    return sum(path.stat().st_size for path in names if path.is_file())


def check_size(packed: int, checkout: int, most: int = MOST_BYTES) -> str:
    """-> a sentence. Raises RequestError when it is too much to carry."""
    said = f"{packed / 2**20:.1f} MiB packed, {checkout / 2**20:.1f} MiB of checkout"
    if packed + checkout >= most:
        raise RequestError(f"{said}: together more than {most >> 20} MiB")
    return said


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bundle", type=Path, default=ROOT / "build" / "demo" / "fashion")
    parser.add_argument("--out", type=Path, default=ROOT / ".gpu")
    parser.add_argument("--python", default="3.12", help="version of that machine's Python (Linux, x86-64)")
    parser.add_argument("--training", action="store_true", help="images instead of the bundle, for examples/train.py")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the gzipped IDX files of Fashion-MNIST")
    given = parser.parse_args(argv)
    try:
        shutil.rmtree(given.out, ignore_errors=True)
        if given.training:
            copy_images(given.data, given.out)
        else:
            copy_bundle(given.bundle, given.out / "fashion")
            said = copy_libraries(given.out / "cpp")
            if said:
                print(said)
        packages = (*PACKAGES, *(FOR_TRAINING if given.training else ()))
        download_wheels(given.out, given.python, ROOT / "constraints.txt", packages)
        print(f"{given.out}: {check_size(bytes_in(given.out), bytes_of_checkout())}")
    except DitedgeError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    folder = given.out.relative_to(ROOT) if given.out.is_relative_to(ROOT) else given.out
    minutes = "nine" if given.training else "six"
    print(f"in a copy of this checkout, {folder} included, on the machine with the GPU ({minutes} minutes at most):\n")
    print("\n".join((INSTALL, TRAIN if given.training else CHECK)).format(folder=folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
