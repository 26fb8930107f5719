"""Fashion-MNIST (Xiao et al., 2017, MIT licence) as tensors, from Debian's package `dataset-fashion-mnist`."""

from __future__ import annotations

import gzip
import subprocess
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

PACKAGE = "dataset-fashion-mnist"
PACKAGE_FOLDER = Path("/usr/share/datasets/fashion-mnist")
IMAGE_SIZE = 32
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def fetch() -> Path:
    """The folder of the Debian package, which is installed first when it is missing (needs root)."""
    if not PACKAGE_FOLDER.is_dir():
        command = ["apt-get", "install", "-y", PACKAGE]
        print(f"{PACKAGE_FOLDER} is missing, running: {' '.join(command)}")
        if subprocess.run(command).returncode != 0:
            raise SystemExit(
                f"could not install {PACKAGE}: install it by hand, or give the IDX files with --data FOLDER"
            )
    return PACKAGE_FOLDER


def read_idx(path: Path) -> Tensor:
    """A gzipped IDX file of bytes -> uint8 tensor of its shape."""
    raw = gzip.decompress(path.read_bytes())
    dimensions = raw[3]
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
    return torch.frombuffer(bytearray(raw[4 + 4 * dimensions :]), dtype=torch.uint8).view(shape)


def load(split: str, folder: Path | None = None) -> tuple[Tensor, Tensor]:
    """split "train" (60,000) or "test" (10,000) -> images [N, 1, 32, 32] uint8 (28x28, padded), labels [N] int64."""
    folder = folder or fetch()
    stem = {"train": "train", "test": "t10k"}[split]
    images = read_idx(folder / f"{stem}-images-idx3-ubyte.gz")[:, None]
    labels = read_idx(folder / f"{stem}-labels-idx1-ubyte.gz").long()
    margin = (IMAGE_SIZE - images.shape[-1]) // 2
    return F.pad(images, [margin] * 4), labels


def to_model_range(images: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1
