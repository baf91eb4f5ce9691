"""Decoding of image files to uint8 arrays of one shape."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from submanifold.common.errors import UserError, unexpected

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")
# PIL detects the format from the content; some of its other formats start external programs.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF")


def decode(
    content: bytes, size: int, channels: int, crop: str = "square", margin: int = 0
) -> np.ndarray:
    """Decode an image file to a uint8 array (channels, size, size), its first frame turned by EXIF.

    A broken image, or a header that claims more pixels than PIL's limit (89 million), raises an
    OSError, a ValueError, or another one of the many kinds of errors of PIL's plugins.
    """
    return crop_and_resize(_open(content), size, channels, crop, margin)


def _open(content: bytes) -> Image.Image:
    try:
        image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:  # its message has a memory address, which changes
        raise ValueError("not an image") from None
    pixels, limit = image.width * image.height, Image.MAX_IMAGE_PIXELS
    if limit and pixels > limit:
        raise ValueError(f"{pixels} pixels exceed PIL's limit of {limit}")
    ImageOps.exif_transpose(image, in_place=True)
    return image


def crop_and_resize(
    image: Image.Image | np.ndarray, size: int, channels: int, crop: str = "square", margin: int = 0
) -> np.ndarray:
    """Convert an image, or pixels as stored by PIL, to a uint8 array (channels, size, size).

    Transparent pixels are composited on white; 16-bit grey is scaled to 8 bits.

    Args:
        image: The image; its pixels must not be floating-point.
        size: Side of the result, pixels.
        channels: 3 (RGB) or 1 (grey).
        crop: Side of the centre crop: `square` is min(w, h), `celeba` round(148/178 min(w, h)).
        margin: Black pixels on each side, within the size.
    """
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    side = min(image.size)
    side = max(1, round(148 / 178 * side)) if crop == "celeba" else side
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    image = image.crop((left, top, left + side, top + side))
    inner = size - 2 * margin
    image = _convert(image, "RGB" if channels == 3 else "L")
    image = image.resize((inner, inner), Image.Resampling.BILINEAR)
    pixels = np.asarray(image).reshape(inner, inner, channels).transpose(2, 0, 1)
    return np.pad(pixels, ((0, 0), (margin, margin), (margin, margin))) if margin else pixels


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode.startswith("I"):  # PIL would clip at 255 instead of scaling
        grey = (np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)
        return Image.fromarray(grey).convert(mode)
    if "transparency" in image.info or image.mode[-1] in "Aa":
        above = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", above.size, "white"), above)
    return image.convert(mode)


def load_pictures(
    paths: Iterable[str | Path],
    size: int,
    channels: int,
    crop: str = "square",
    margin: int = 0,
    **_: Any,
) -> np.ndarray:
    """Read image files as a model's training images: ``load_pictures(paths, **model.data)``.

    The result is uint8 (N, channels, size, size). A UserError names the first file that cannot be
    read.
    """
    if isinstance(paths, str | Path):
        raise unexpected("paths", "a list of files", paths, f"Pass [{str(paths)!r}]")
    pictures = []
    for path in paths:
        try:
            pictures.append(decode(Path(path).read_bytes(), size, channels, crop, margin))
        except Exception as error:  # PIL's plugins raise many kinds of errors
            raise UserError(f"{path}: expected an image file, got {error}. Replace it.") from error
    return np.array(pictures, np.uint8).reshape(len(pictures), channels, size, size)
