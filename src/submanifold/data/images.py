"""Sources of images: each lists names and turns one into a uint8 array of fixed shape."""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import lmdb
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision.transforms.v2 import functional

from submanifold.data import celeba
from submanifold.data.photos import FINGERPRINT, Photos
from submanifold.data.settings import DataSettings, ImageSettings, SyntheticSettings
from submanifold.data.stores import SUFFIXES, Store, of_content, open_store
from submanifold.errors import UserError

log = logging.getLogger(__name__)

CROPS: dict[str, Callable[[int, int], int]] = {
    "square": min,
    "celeba": lambda width, height: round(148 / 178 * min(width, height)),
}


class Source(Protocol):
    """What every source of images offers.

    Attributes:
        rule: The split rule: `cells`, `official` or `random`.
        crop: What of a picture is kept.
        note: What the user should know about the split, or None.
        skipped: `{"name", "reason"}` of what is never read.
    """

    rule: str
    crop: str
    note: str | None
    skipped: list[dict[str, str]]

    def names(self) -> list[str]:
        """All images, sorted."""

    def parts(self) -> Mapping[str, str] | None:
        """The split each name belongs to, or None: any may go anywhere."""

    def image(self, name: str) -> np.ndarray:
        """One image, uint8 (channels, size, size); raises whatever a broken file makes it raise."""

    def close(self) -> None:
        """Let go of open files."""


class Files:
    """Images from files: centre crop, then resize with antialiasing.

    Args:
        store: Where the encoded images lie.
        settings: `size`, `channels` and `crop` are used.
        partition: File name without folders -> split; None for a random split.
        note: Passed on to the manifest.
    """

    def __init__(
        self,
        store: Store,
        settings: ImageSettings,
        partition: Mapping[str, str] | None = None,
        note: str | None = None,
    ) -> None:
        own = "celeba" if settings.source == "celeba" else "square"
        self.crop = own if settings.crop == "auto" else settings.crop
        self.rule = "random" if partition is None else "official"
        self.note = note
        self.skipped = list(store.skipped)
        self._store, self._settings = store, settings
        self._names = store.names()
        self._parts: dict[str, str] | None = None
        if partition is not None:
            listed = {name: partition.get(name.rsplit("/", 1)[-1]) for name in self._names}
            self._parts = {name: part for name, part in listed.items() if part}
            strangers = (name for name, part in listed.items() if part is None)
            reason = f"not in {celeba.PARTITION}"
            self.skipped += [{"name": name, "reason": reason} for name in strangers]
            self._names = list(self._parts)

    def names(self) -> list[str]:
        """All images, sorted."""
        return self._names

    def parts(self) -> Mapping[str, str] | None:
        """The official split of each name, or None."""
        return self._parts

    def image(self, name: str) -> np.ndarray:
        """One image, uint8 (channels, size, size)."""
        content = self._store.read(name)
        return decode(content, self._settings.size, self._settings.channels, self.crop)

    def close(self) -> None:
        """Close the store."""
        self._store.close()


def decode(content: bytes, size: int, channels: int, crop: str = "square") -> np.ndarray:
    """Encoded image -> uint8 array (channels, size, size).

    Upright by its EXIF orientation; the first frame of several; transparent pixels over white;
    16-bit grey scaled to 8 bits. The crop is centred: `square` has side min(w, h), `celeba`
    round(148/178 min(w, h)).

    Raises:
        OSError, ValueError, ...: If the bytes are no whole image. PIL's plugins raise many kinds.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        # PIL's own words hold a memory address, which no two manifests would share.
        raise ValueError("not an image") from None
    pixels = image.width * image.height
    if Image.MAX_IMAGE_PIXELS and pixels > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"{pixels} pixels, more than the {Image.MAX_IMAGE_PIXELS} PIL holds safe")
    ImageOps.exif_transpose(image, in_place=True)
    side = max(1, CROPS[crop](image.width, image.height))
    image = functional.center_crop(image, [side, side])
    image = _to_mode(image, "RGB" if channels == 3 else "L")
    image = functional.resize(image, [size, size], antialias=True)
    return np.asarray(image).reshape(size, size, channels).transpose(2, 0, 1)


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


def open_source(settings: ImageSettings, raw_folder: Path) -> Source:
    """The source the settings name, downloaded first if it must be.

    Raises:
        UserError: If there is nothing to read images from.
    """
    if settings.source == "photos":
        return Photos(settings)
    path = _locate(settings, raw_folder)
    if path is None:
        path = celeba.download(settings, raw_folder / "celeba")
    store = open_store(path)
    partition, note = _partition(settings, path)
    source = Files(store, settings, partition, note)
    if not source.names():
        raise UserError(
            f"no images found in data.path={path}; files with {', '.join(SUFFIXES)} count, in any "
            "folder below it (hidden ones are passed over)"
            + (f" and only those listed in {celeba.PARTITION}" if partition is not None else "")
        )
    return source


def fingerprint(settings: DataSettings, raw_folder: Path) -> str:
    """A cheap identity of the source's content, for cache keys.

    Sizes, names and a zip's own checksums; no image is decoded, no network asked, no file time
    used. Never raises: data that does not exist is `missing`, data that cannot be read
    `unreadable`. A CelebA that will be downloaded already has the identity it will have then.
    """
    if isinstance(settings, SyntheticSettings):
        return settings.source
    if settings.source == "photos":
        return FINGERPRINT
    try:
        return _fingerprint(settings, raw_folder)
    except (UserError, OSError, ValueError, KeyError, lmdb.Error, zipfile.BadZipFile):
        return "unreadable"


def _fingerprint(settings: ImageSettings, raw_folder: Path) -> str:
    if settings.path is None:
        known = celeba.fingerprint_download(settings, raw_folder / "celeba")
        if known is not None:
            return known
    path = _locate(settings, raw_folder)
    if path is None or not path.exists():
        return "missing"
    identity = of_content(_identity, path)
    if settings.source == "celeba" and settings.split == "official":
        content = celeba.find_partition(path)
        identity += f"+{celeba.fingerprint_partition(content)}" if content else ""
    return identity


def _identity(path: Path) -> str:
    store = open_store(path)
    identity = store.fingerprint()
    store.close()
    return identity


def _locate(settings: ImageSettings, raw_folder: Path) -> Path | None:
    if settings.path is None:
        return celeba.find_images(raw_folder / "celeba")
    path = Path(settings.path).expanduser()
    if settings.source == "celeba":
        return celeba.find_images(path) or path
    return path


def _partition(settings: ImageSettings, path: Path) -> tuple[Mapping[str, str] | None, str | None]:
    if settings.split == "random":
        return None, None
    content = celeba.find_partition(path) if settings.source == "celeba" else None
    if content is not None:
        return celeba.read_partition(content), None
    missing = (
        f"{celeba.PARTITION} lies neither beside nor inside {path}"
        if settings.source == "celeba"
        else f"data.source={settings.source} has no official partition"
    )
    note = f"data.split=official, but {missing}: a random split by the seed took its place"
    log.warning("%s", note)
    return None, note
