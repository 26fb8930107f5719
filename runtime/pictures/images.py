"""Pictures that remember how they were made, so that one can be made again from its own file."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DitedgeError, RequestError, first_line
from ..files import written_atomically
from ..json_files import parse_json

if TYPE_CHECKING:
    from PIL import Image

METADATA_KEY = "ditedge"  # of a PNG's text
IMAGE_DESCRIPTION = 0x010E  # Exif tag, of JPEG and WebP
JPEG_METADATA = 64_000  # bytes: a segment has 65,533
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # that are written
READ_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")


def grid(images: np.ndarray, columns: int | None = None, gap: int = 2) -> np.ndarray:
    """uint8 [n, h, w, c] -> one uint8 [H, W, c] picture, rows filled first; None is the squarest grid."""
    count, height, width, channels = images.shape
    columns = columns or int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    picture = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, dtype=np.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        picture[top : top + height, left : left + width] = image
    return picture


def write_picture(path: Path, image: np.ndarray, metadata: dict[str, Any]) -> None:
    """image uint8 [h, w, 1 or 3] -> .png, .jpg or .webp, atomically, with `metadata` as JSON in it.

    Raises RequestError for another suffix, and where the format cannot hold so much metadata.
    """
    data = picture_bytes(picture_format(path), image, metadata)
    with written_atomically(path) as temporary:
        temporary.write_bytes(data)


def picture_format(path: Path) -> str:
    """ "PNG", "JPEG" or "WEBP". Raises RequestError for another suffix."""
    if path.suffix.lower() not in FORMATS:
        raise RequestError(f"cannot write {path}: pictures are {', '.join(FORMATS)}")
    return FORMATS[path.suffix.lower()]


def picture_bytes(kind: str, image: np.ndarray, metadata: dict[str, Any]) -> bytes:
    """The picture as a file. PNG and WebP keep every pixel; JPEG has quality 95."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    text = json.dumps(metadata)
    check_metadata_fits(kind, metadata)
    given: dict[str, dict[str, Any]] = {
        "PNG": {},
        "JPEG": {"quality": 95, "subsampling": 0},
        "WEBP": {"lossless": True},
    }
    options = dict(given[kind])
    if kind == "PNG":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_text(METADATA_KEY, text)
    else:
        options["exif"] = Image.Exif()
        options["exif"][IMAGE_DESCRIPTION] = text
    stream = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(stream, format=kind, **options)
    return stream.getvalue()


def check_metadata_fits(kind: str, metadata: dict[str, Any]) -> None:
    """Raises RequestError when a JPEG cannot hold it: it has 64 kB, which some 500 images of a grid fill."""
    size = len(json.dumps(metadata))
    if kind == "JPEG" and size > JPEG_METADATA:
        raise RequestError(
            f"a JPEG holds {JPEG_METADATA} bytes of metadata, and so many images have {size}: write a .png, or a folder"
        )


@contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """A picture file, by its content, as one of the formats above and as nothing else, for the time of a `with`.

    Pillow knows formats that run other programs (PostScript: Ghostscript), and takes them under any name. It raises and
    warns of whatever it likes where a file is damaged, when it is opened or later when its pixels are read.
    Raises RequestError, also for a picture of so many pixels that it must be meant to fill the memory.
    """
    import warnings

    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=READ_FORMATS) as image:
                yield image
    except DitedgeError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise RequestError(f"{path}: more than {Image.MAX_IMAGE_PIXELS} pixels, which are not opened") from None
    except UnidentifiedImageError:
        raise RequestError(f"{path}: not a readable picture ({', '.join(READ_FORMATS)})") from None
    except Exception as error:
        raise RequestError(f"{path}: not a readable picture ({first_line(error)})") from None


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a picture that `write_picture` made. Raises RequestError when it has none."""
    with open_picture(path) as image:
        text = image.info.get(METADATA_KEY) or image.getexif().get(IMAGE_DESCRIPTION)
    data = parse_json(text.encode("utf-8", "surrogatepass"), path, RequestError) if isinstance(text, str) else None
    if not isinstance(data, dict):
        raise RequestError(f"{path}: has no ditedge metadata: it was not made by `run`, or was re-saved since")
    return data
