"""CelebA's own files: where they lie, the official partition, and how to get them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from pathlib import Path

import pooch
from torchvision.datasets import CelebA
from torchvision.datasets.utils import download_file_from_google_drive

from submanifold.data.settings import ImageSettings
from submanifold.data.stores import of_content
from submanifold.errors import UserError
from submanifold.progress import Meter

IMAGES = "img_align_celeba"
ARCHIVE = f"{IMAGES}.zip"
PARTITION = "list_eval_partition.txt"
RECEIPT = "downloaded.json"
HOME_PAGE = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
CODES = {"0": "train", "1": "valid", "2": "test"}
DRIVE = {name: (file_id, md5) for file_id, md5, name in CelebA.file_list}


def find_images(path: Path) -> Path | None:
    """The official zip or the extracted folder at or inside a path, or None."""
    inside = (path / ARCHIVE, path / IMAGES, path / "Img" / ARCHIVE, path / "Img" / IMAGES)
    for candidate in inside:
        if candidate.exists():
            return candidate
    if path.is_file() or (path.is_dir() and next(path.glob("*.[jJ][pP][gG]"), None)):
        return path
    return None


def find_partition(images: Path) -> bytes | None:
    """The official partition file's bytes: beside the images, inside them, or in `Eval/`."""
    for folder in (images, images.parent, images.parent / "Eval", images.parent.parent / "Eval"):
        if (folder / PARTITION).is_file():
            return (folder / PARTITION).read_bytes()
    return of_content(_partition_inside, images)


def _partition_inside(images: Path) -> bytes | None:
    if zipfile.is_zipfile(images):
        with zipfile.ZipFile(images) as archive:
            for name in archive.namelist():
                if name.rsplit("/", 1)[-1] == PARTITION:
                    return archive.read(name)
    return None


def read_partition(content: bytes) -> dict[str, str]:
    """File name -> train, valid or test, from lines such as `000001.jpg 0`.

    Raises:
        UserError: At the first line that is something else.
    """
    parts = {}
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), start=1):
        if not line.strip():
            continue
        name, _, code = line.strip().partition(" ")
        if code.strip() not in CODES:
            raise UserError(
                f"line {number} of {PARTITION} is {line[:60]!r}, not a file name and 0, 1 or 2; "
                "fetch the official file again, or set data.split=random"
            )
        parts[name] = CODES[code.strip()]
    return parts


def fingerprint_download(settings: ImageSettings, folder: Path) -> str | None:
    """The identity of data that was, or would be, downloaded into a folder.

    It is the same before and after the download, so that what was computed from the data in the
    first run is found again in the second. None if the folder holds files of another origin.
    """
    images = find_images(folder)
    partition = find_partition(images) if images else None
    if images is None:
        identity = _origin(settings)
        digest = DRIVE[PARTITION][1] if settings.url is None else None
    elif (folder / RECEIPT).is_file():
        receipt = json.loads((folder / RECEIPT).read_text())
        if receipt["size"] != images.stat().st_size:
            return None
        identity = receipt["origin"]
        digest = fingerprint_partition(partition) if partition else None
    else:
        return None
    official = settings.split == "official" and digest
    return f"download:{identity}" + (f"+{digest}" if official else "")


def fingerprint_partition(content: bytes) -> str:
    """MD5 of the partition file, the checksum torchvision knows it by."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def download(settings: ImageSettings, folder: Path) -> Path:
    """Fetch the official zip into a folder: all of it, checked, or nothing.

    From `data.url` when given (checked against `data.hash`), else the zip and the partition file
    from where torchvision knows them.

    Returns:
        The zip's path.

    Raises:
        UserError: If the network, the server or the checksum says no; with the way by hand.
    """
    # Files take their place only when all are whole; a killed download leaves no half zip there.
    waiting = folder / ".download"
    shutil.rmtree(waiting, ignore_errors=True)
    waiting.mkdir(parents=True)
    try:
        if settings.url:
            _from_url(settings.url, settings.hash, waiting)
        else:
            for name in (PARTITION, ARCHIVE):
                file_id, md5 = DRIVE[name]
                download_file_from_google_drive(file_id, waiting, name, md5)
        if not zipfile.is_zipfile(waiting / ARCHIVE):
            raise ValueError("what came is not a zip")
        receipt = {"origin": _origin(settings), "size": (waiting / ARCHIVE).stat().st_size}
        (waiting / RECEIPT).write_text(json.dumps(receipt))
        for file in sorted(waiting.iterdir(), key=lambda file: file.name == ARCHIVE):
            os.replace(file, folder / file.name)
    except Exception as error:  # each transport has its own kinds
        place = settings.url or "the address torchvision knows"
        raise UserError(
            f"could not download CelebA from {place}: {error}. Fetch {ARCHIVE} by hand from "
            f"{HOME_PAGE} and set data.path to the zip (or put it in {folder}), or set data.url "
            "and data.hash to a mirror"
        ) from error
    finally:
        shutil.rmtree(waiting, ignore_errors=True)
    return folder / ARCHIVE


def _from_url(url: str, checksum: str | None, folder: Path) -> None:
    with Meter("downloading CelebA", "bytes") as meter:
        fetch = pooch.HTTPDownloader(progressbar=meter, chunk_size=2**20)
        pooch.retrieve(url, known_hash=checksum, fname=ARCHIVE, path=folder, downloader=fetch)


def _origin(settings: ImageSettings) -> str:
    return settings.hash or settings.url or f"md5:{DRIVE[ARCHIVE][1]}"
