"""A folder of pictures that `ditedge run -o FOLDER/` made from prompts -> one picture, each with its words below.

    python examples/captioned_grid.py build/demo/text -o build/demo/text.png

The words are read from the pictures themselves: their metadata says how each was made.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ditedge.runtime.pictures.images import read_metadata  # noqa: E402

SCALE, MARGIN, LINE = 3, 10, 13  # pixels
LINES = 2  # of words under a picture


def captioned(folder: Path, columns: int) -> Image.Image:
    """Cells of one width, the widest picture's; pictures and words in the middle of each."""
    files = sorted(folder.glob("*.png"))
    if not files:
        raise SystemExit(f"{folder}: no PNG files")
    pictures = [Image.open(file).convert("L") for file in files]
    pictures = [each.resize([SCALE * side for side in each.size], Image.Resampling.NEAREST) for each in pictures]
    width = max(picture.width for picture in pictures) + MARGIN
    height = max(picture.height for picture in pictures) + LINES * LINE + MARGIN
    page = Image.new("L", (columns * width, -(-len(files) // columns) * height), 255)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(10)
    for i, (file, picture) in enumerate(zip(files, pictures, strict=True)):
        left, top = i % columns * width, i // columns * height
        page.paste(picture, (left + (width - picture.width) // 2, top + MARGIN // 2))
        for n, line in enumerate(textwrap.wrap(words_of(file), width // 5)[:LINES]):
            place = (left + width / 2, top + picture.height + MARGIN // 2 + n * LINE + 2)
            draw.text(place, line, fill=0, font=font, anchor="ma")
    return page


def words_of(file: Path) -> str:
    """The prompt in a picture's metadata."""
    prompts = read_metadata(file).get("prompts") or [{}]
    return str(prompts[0].get("text") or "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--columns", type=int, default=4)
    arguments = parser.parse_args()
    captioned(arguments.folder, arguments.columns).save(arguments.out, optimize=True)
    print(arguments.out)
