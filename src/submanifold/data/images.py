"""Sources of images, made by what the settings say; each image a uint8 array of fixed shape."""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from submanifold.common.errors import UserError
from submanifold.data import celeba
from submanifold.data.fingerprints import fingerprint_path
from submanifold.data.groups import check_split, fingerprint_groups, group_images
from submanifold.data.photos import FINGERPRINT, photo_patches
from submanifold.data.settings import LABELLED, DataSettings, ImageSettings, SyntheticSettings
from submanifold.data.source import Source
from submanifold.data.standard import chosen, fingerprint_standard, read_standard
from submanifold.data.stores import DATABASE, SUFFIXES, digest, open_store, read_file

log = logging.getLogger(__name__)

# Those of the suffixes. PIL goes by the content, and has formats that start other programs.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF")


def decode(
    content: bytes, size: int, channels: int, crop: str = "square", margin: int = 0
) -> np.ndarray:
    """Encoded image -> uint8 array (channels, size, size).

    Upright by its EXIF orientation; the first frame of several; else as :func:`frame`.

    Raises:
        OSError, ValueError, ...: If the bytes are no whole image, or one whose header says that it
            has more pixels than PIL holds safe (89 million). PIL's plugins raise many kinds.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        # PIL's own words hold a memory address, which no two manifests would share.
        raise ValueError("not an image") from None
    pixels, most = image.width * image.height, Image.MAX_IMAGE_PIXELS
    if most and pixels > most:
        raise ValueError(f"{pixels} pixels, more than the {most} PIL holds safe")
    ImageOps.exif_transpose(image, in_place=True)
    return frame(image, size, channels, crop, margin)


def frame(
    image: Image.Image, size: int, channels: int, crop: str = "square", margin: int = 0
) -> np.ndarray:
    """Picture -> uint8 array (channels, size, size).

    Transparent pixels over white; 16-bit grey scaled to 8 bits. The crop is centred: `square` has
    side min(w, h), `celeba` round(148/178 min(w, h)). It is resized to what the margin of black
    pixels leaves of the size.

    Raises:
        ValueError: If its pixels have no known range.
    """
    side = min(image.width, image.height)
    side = max(1, round(148 / 178 * side)) if crop == "celeba" else side
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    image = image.crop((left, top, left + side, top + side))
    image = _to_mode(image, "RGB" if channels == 3 else "L")
    inner = size - 2 * margin
    image = image.resize((inner, inner), Image.Resampling.BILINEAR)
    pixels = np.asarray(image).reshape(inner, inner, channels).transpose(2, 0, 1)
    return np.pad(pixels, ((0, 0), (margin, margin), (margin, margin))) if margin else pixels


def _frame_pixels(pixels: np.ndarray, **form: Any) -> np.ndarray:
    return frame(Image.fromarray(pixels), **form)


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode.startswith("I"):
        # PIL would clip at 255 instead of scaling.
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
    """Read pictures as a model was trained on them: ``load_pictures(paths, **settings.facts)``.

    Returns:
        uint8 (N, channels, size, size).

    Raises:
        UserError: Naming the first file that is no whole picture.
    """

    def load(path: Path) -> np.ndarray:
        try:
            return decode(read_file(path), size, channels, crop, margin)
        except Exception as error:  # PIL's plugins raise nearly every kind on a broken file
            raise UserError(f"path={path} cannot be read as a picture: {error}") from error

    pictures = [load(Path(path)) for path in paths]
    return np.array(pictures, np.uint8).reshape(len(pictures), channels, size, size)


def open_source(settings: ImageSettings, raw_folder: Path) -> Source:
    """The source the settings name, downloaded first if it must be.

    Raises:
        UserError: If there is nothing to read images from.
    """
    if settings.source == "photos":
        return photo_patches(settings)
    if settings.source in LABELLED:
        return _labelled(settings, raw_folder)
    path = _locate(settings, raw_folder)
    if path is None:
        path = celeba.download(settings, raw_folder / "celeba")
    store, crop = open_store(path), settings.crop_rule
    source = Source(
        names=store.names(),
        read=store.read,
        decode=partial(decode, **settings.form),
        parts=None,
        rule="random",
        crop=crop,
        skipped=store.skipped,
        others=store.others,
        close=store.close,
    )
    content = celeba.find_partition(path) if settings.split == "official" else None
    if content is not None:
        partition = celeba.read_partition(content)
        listed = {name: partition.get(name.rsplit("/", 1)[-1]) for name in source.names}
        source.rule, source.parts = "official", {n: part for n, part in listed.items() if part}
        source.names, reason = list(source.parts), f"not in {celeba.PARTITION}"
        unlisted = (name for name, part in listed.items() if part is None)
        source.skipped += [{"name": name, "reason": reason} for name in unlisted]
    elif settings.split == "official":
        source.note = (
            f"split=official, but {celeba.PARTITION} lies neither beside nor inside {path}: a "
            "random split by the seed took its place"
        )
        log.warning("%s", source.note)
    if not source.names:
        raise UserError(
            f"path={path}: no images found in it; files with {', '.join(SUFFIXES)} count, in any "
            "folder below it (hidden ones are passed over), or the values of an LMDB, of which the "
            f"folder that holds {DATABASE} is the path"
            + (f" and only those listed in {celeba.PARTITION}" if source.parts is not None else "")
        )
    if settings.groups is not None:
        source.groups = group_images(settings.groups, source.names)
        if source.parts is None:
            source.rule = "groups"
        else:
            check_split(source.groups, source.parts)
    return source


def must_download(settings: ImageSettings, raw_folder: Path) -> bool:
    """Whether :func:`open_source` may have to download the source first."""
    if settings.path is not None or settings.source == "photos":
        return False
    return settings.source in LABELLED or _locate(settings, raw_folder) is None


def _labelled(settings: ImageSettings, raw_folder: Path) -> Source:
    """A standard data set; of its training images a part, by the seed, is for validation."""
    parts = read_standard(settings.source, settings.path, raw_folder)
    parts = chosen(parts, settings.labels, settings.other_labels)
    names = {part: [f"{part}/{n:06d}" for n in range(len(each.images))]
             for part, each in parts.items()}  # fmt: skip
    labels: dict[str, Any] = {}
    for part, each in parts.items():
        labels |= zip(names[part], each.labels.tolist(), strict=True)
    official = settings.split == "official"
    part_of = {name: part for part, each in names.items() for name in each}
    if official and "valid" not in parts:
        counts, train = settings.counts, names["train"]
        valid = counts.valid or max(1, len(train) // 10)
        if valid >= len(train):
            raise UserError(
                f"counts.valid={valid} leaves no training images: there are {len(train)} for both; "
                "set it lower"
            )
        order = np.random.default_rng(settings.seed).permutation(len(train))
        part_of |= {train[n]: "valid" for n in order[:valid].tolist()}

    def read(name: str) -> np.ndarray:
        part, _, number = name.partition("/")
        return parts[part].images[int(number)]

    return Source(
        names=sorted(labels),
        read=read,
        decode=partial(_frame_pixels, **settings.form),
        parts=part_of if official else None,
        rule=settings.split,
        crop=settings.crop_rule,
        labels=labels,
    )


def fingerprint(settings: DataSettings, raw_folder: Path) -> str:
    """An identity of the source's content, for cache keys; no image is decoded, no network asked.

    It changes with any byte and is the same for a copy (:func:`fingerprint_path`). A CelebA that
    will be downloaded has the one it will have then. `raw_folder` holds downloads, and what is
    known about sources.

    Raises:
        UserError: If what is there cannot be read.
    """
    found = _fingerprint(settings, raw_folder)
    if isinstance(settings, SyntheticSettings) or settings.groups is None:
        return found
    return f"{found}+groups:{fingerprint_groups(settings.groups)}"


def _fingerprint(settings: DataSettings, raw_folder: Path) -> str:
    if isinstance(settings, SyntheticSettings):
        return settings.source
    if settings.source == "photos":
        return FINGERPRINT
    if settings.source in LABELLED:
        try:
            return fingerprint_standard(settings.source, settings.path)
        except OSError as error:
            raise UserError(
                f"path={settings.path} cannot be read as {settings.source} ({error}); give the "
                "folder of its files, or leave path out to download them"
            ) from error
    if settings.path is None:
        known = celeba.fingerprint_download(settings, raw_folder / "celeba")
        if known is not None:
            return known
    path = _locate(settings, raw_folder)
    assert path is not None, "no download is pending"
    given = f"{Path(settings.path or path).expanduser().absolute()} {settings.split}"
    record = raw_folder / ".fingerprints" / f"{digest([given])}.json"
    try:
        content = celeba.find_partition(path) if settings.split == "official" else None
        suffix = f"+{celeba.fingerprint_partition(content)}" if content else ""
        return fingerprint_path(path, record, suffix)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(
            f"path={path} cannot be read ({error}); give a folder, a zip or an LMDB folder of "
            "images that this user may read"
        ) from error


def _locate(settings: ImageSettings, raw_folder: Path) -> Path | None:
    if settings.path is None:
        return celeba.find_images(raw_folder / "celeba")
    path = Path(settings.path).expanduser()
    return (celeba.find_images(path) if settings.source == "celeba" else None) or path
