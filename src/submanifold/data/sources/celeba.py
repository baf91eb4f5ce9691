"""CelebA: the aligned images, the official partition, and their download."""

from __future__ import annotations

import hashlib
import logging
import shutil
import zipfile
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import pooch

from submanifold.common.errors import UserError
from submanifold.common.files import locked, read_json, sync_and_rename, write_json
from submanifold.common.progress import ProgressBar
from submanifold.data.sources.base import Source, SourceType
from submanifold.data.sources.files import fingerprint_files, open_files, with_groups
from submanifold.data.sources.stores import (
    STORES,
    Stamp,
    fingerprint_content,
    read_member,
    stamp,
)
from submanifold.data.splits import SPLITS

if TYPE_CHECKING:
    from submanifold.data.settings import ImageSettings

log = logging.getLogger(__name__)

IMAGES = "img_align_celeba"
ARCHIVE = f"{IMAGES}.zip"
PARTITION = "list_eval_partition.txt"
CODES = dict(zip("012", SPLITS, strict=True))
RECEIPT = "downloaded.json"
HOME_PAGE = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
DRIVE = {
    PARTITION: ("0B7EVK8r0v71pY0NSMzRuSXJEVkk", "d32c9cbf5e040fd4025c592c306e6668"),
    ARCHIVE: ("0B7EVK8r0v71pZjFTYXZWM3FlRnM", "00d2c5bc6d35e252742224ab0c1e8fcb"),
}
"""Google Drive's id and the MD5 of each file, copied from torchvision, which loads slowly."""


def _open(settings: ImageSettings, raw_folder: Path) -> Source:
    path = _locate(settings, raw_folder) or _download(settings, raw_folder / "celeba")
    if settings.split == "random":
        return open_files(settings, path)
    if content := _find_partition(path):
        return open_files(settings, path, _read_partition(content))
    source = open_files(settings, path)
    source.note = (
        f"split=official: expected {PARTITION} next to or inside of {path}, got none; using a "
        "random split instead"
    )
    log.warning("%s", source.note)
    return source


def _fingerprint(settings: ImageSettings, raw_folder: Path) -> str:
    if settings.path is None and (known := _fingerprint_download(settings, raw_folder / "celeba")):
        return with_groups(settings, known)
    path = _locate(settings, raw_folder)
    assert path is not None, "the download has a fingerprint"
    return fingerprint_files(settings, path, raw_folder, partial(_suffix, settings, path))


def _fingerprint_download(settings: ImageSettings, folder: Path) -> str | None:
    """Fingerprint of the download, the same before and after it; None if files are not from it."""
    images = _find_images(folder)
    if images is None:
        official = settings.split == "official" and not settings.url
        md5 = DRIVE[PARTITION][1]
        return f"download:{_origin(settings)}" + (f"+{md5}" if official else "")
    receipt = read_json(folder / RECEIPT)
    content = _content(images, stamp(images.stat())) if images.is_file() else None
    if receipt is None or receipt.get("content") != content:
        return None
    return f"download:{receipt['origin']}{_suffix(settings, images)}"


def _suffix(settings: ImageSettings, images: Path) -> str:
    """Identity of the official partition, if the split is official."""
    content = _find_partition(images) if settings.split == "official" else None
    return f"+{hashlib.md5(content, usedforsecurity=False).hexdigest()}" if content else ""


def _locate(settings: ImageSettings, raw_folder: Path) -> Path | None:
    if settings.path is None:
        return _find_images(raw_folder / "celeba")
    path = Path(settings.path).expanduser()
    return _find_images(path) or path


def _find_images(path: Path) -> Path | None:
    """The official zip or the extracted folder at or inside a path, or None."""
    inside = [folder / name for folder in (path, path / "Img") for name in (ARCHIVE, IMAGES)]
    if path.is_file() or any(path.glob("*.[jJ][pP][gG]")):
        inside.append(path)
    return next((each for each in inside if each.is_file() or each.is_dir()), None)


def _find_partition(images: Path) -> bytes | None:
    """Content of the official partition file: next to the images, inside, or in `Eval/`."""
    for folder in (images, images.parent, images.parent / "Eval", images.parent.parent / "Eval"):
        if (folder / PARTITION).is_file():
            return (folder / PARTITION).read_bytes()
    return _partition_inside(images, stamp(images.stat())) if images.is_file() else None


@lru_cache(maxsize=16)  # reading the zip's directory takes a second
def _partition_inside(images: Path, stamp: Stamp) -> bytes | None:
    if not zipfile.is_zipfile(images):
        return None
    with zipfile.ZipFile(images) as archive:
        members = archive.infolist()
        found = (each for each in members if PurePosixPath(each.filename).name == PARTITION)
        member = next(found, None)
        return read_member(archive, member) if member else None


def _read_partition(content: bytes) -> dict[str, str]:
    """Map file names to train, valid or test, from lines such as `000001.jpg 0`."""
    splits = {}
    for line in filter(None, content.decode("utf-8", "replace").splitlines()):
        parts = line.split()
        if len(parts) != 2 or parts[1] not in CODES:
            raise UserError(
                f"{PARTITION}: expected a file name and 0, 1 or 2 on each line, got {line[:60]}. "
                "Fetch the official file again, or set split=random."
            )
        splits[parts[0]] = CODES[parts[1]]
    return splits


@lru_cache(maxsize=16)
def _content(images: Path, stamp: Stamp) -> str:
    return fingerprint_content(images)


def _origin(settings: ImageSettings) -> str:
    return settings.hash or f"md5:{DRIVE[ARCHIVE][1]}"


def _download(settings: ImageSettings, folder: Path) -> Path:
    """Download the official zip into a folder, verified and complete, or not at all."""
    with locked(folder, "the download of CelebA"):
        if images := _find_images(folder):  # downloaded by another run in the meantime
            return images
        partial = folder / ".download"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            _fetch(settings, partial)
            content = fingerprint_content(partial / ARCHIVE)
            write_json(partial / RECEIPT, {"origin": _origin(settings), "content": content})
            for name in (RECEIPT, PARTITION, ARCHIVE):  # complete once the zip is there
                if (partial / name).exists():
                    sync_and_rename(partial / name, folder / name)
        except Exception as error:  # each kind of download raises other errors
            address = settings.url or "torchvision's address"
            raise UserError(
                f"source=celeba: expected a download from {address}, got {error}. Download "
                f"{ARCHIVE} by hand from {HOME_PAGE} and set path to it (or put it in {folder}), "
                "or set url and hash to a mirror."
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder / ARCHIVE


def _fetch(settings: ImageSettings, folder: Path) -> None:
    if settings.url:
        with ProgressBar("downloading CelebA", "bytes") as meter:
            fetch = pooch.HTTPDownloader(progressbar=meter, chunk_size=2**20)
            pooch.retrieve(settings.url, settings.hash, ARCHIVE, folder, downloader=fetch)
    else:
        from torchvision.datasets.utils import download_file_from_google_drive

        for name, (file_id, md5) in DRIVE.items():
            download_file_from_google_drive(file_id, folder, name, md5)


CELEBA = SourceType(
    open=_open,
    fingerprint=_fingerprint,
    must_download=lambda settings, raw_folder: _locate(settings, raw_folder) is None,
    path=STORES,
    image_files=True,
    official_split=True,
    crop="celeba",
    url=True,
)
