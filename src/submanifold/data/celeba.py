"""CelebA's own files: where they lie, the official partition, and how to get them."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from pathlib import Path, PurePosixPath

import pooch

from submanifold.common.errors import UserError
from submanifold.common.files import locked, read_json, sync_and_rename, write_json
from submanifold.common.progress import ProgressBar
from submanifold.data.settings import PARTS, ImageSettings
from submanifold.data.stores import content_of, of_content, read_member

IMAGES = "img_align_celeba"
ARCHIVE = f"{IMAGES}.zip"
PARTITION = "list_eval_partition.txt"
RECEIPT = "downloaded.json"
HOME_PAGE = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
DRIVE = {
    PARTITION: ("0B7EVK8r0v71pY0NSMzRuSXJEVkk", "d32c9cbf5e040fd4025c592c306e6668"),
    ARCHIVE: ("0B7EVK8r0v71pZjFTYXZWM3FlRnM", "00d2c5bc6d35e252742224ab0c1e8fcb"),
}
"""Each file's number in Google's drive and MD5, as in torchvision, which takes a second to load."""


def find_images(path: Path) -> Path | None:
    """The official zip or the extracted folder at or inside a path, or None."""
    inside = [folder / name for folder in (path, path / "Img") for name in (ARCHIVE, IMAGES)]
    if path.is_file() or any(path.glob("*.[jJ][pP][gG]")):
        inside.append(path)
    return next((each for each in inside if each.is_file() or each.is_dir()), None)


def find_partition(images: Path) -> bytes | None:
    """The official partition file's bytes: beside the images, inside them, or in `Eval/`."""
    for folder in (images, images.parent, images.parent / "Eval", images.parent.parent / "Eval"):
        if (folder / PARTITION).is_file():
            return (folder / PARTITION).read_bytes()
    return of_content(_partition_inside, images)


def _partition_inside(images: Path) -> bytes | None:
    if not images.is_file() or not zipfile.is_zipfile(images):
        return None
    with zipfile.ZipFile(images) as archive:
        members = archive.infolist()
        found = (each for each in members if PurePosixPath(each.filename).name == PARTITION)
        member = next(found, None)
        return read_member(archive, member) if member else None


def read_partition(content: bytes) -> dict[str, str]:
    """File name -> train, valid or test, from lines such as `000001.jpg 0`.

    Raises:
        UserError: At the first line that is something else.
    """
    parts = {}
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), start=1):
        match line.split():
            case []:
                continue
            case [name, "0" | "1" | "2" as code]:
                parts[name] = PARTS[int(code)]
            case _:
                raise UserError(
                    f"split=official, but line {number} of {PARTITION} is {line[:60]!r}, not a "
                    "file name and 0, 1 or 2; fetch the official file again, or set split=random"
                )
    return parts


def fingerprint_download(settings: ImageSettings, folder: Path) -> str | None:
    """The identity of data that was, or would be, downloaded into a folder.

    It is the same before and after the download, so that what was computed from the data in the
    first run is found again in the second. None if the folder holds files of another origin.
    """
    images = find_images(folder)
    if images is None:
        origin, digest = _origin(settings), None if settings.url else DRIVE[PARTITION][1]
    else:
        receipt, partition = read_json(folder / RECEIPT), find_partition(images)
        if receipt is None or receipt.get("content") != of_content(content_of, images):
            return None
        origin, digest = receipt["origin"], fingerprint_partition(partition) if partition else None
    return f"download:{origin}" + (f"+{digest}" if settings.split == "official" and digest else "")


def fingerprint_partition(content: bytes) -> str:
    """MD5 of the partition file, the checksum torchvision knows it by."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def download(settings: ImageSettings, folder: Path) -> Path:
    """Fetch the official zip into a folder: all of it, checked, or nothing.

    From `url` when given, checked against `hash`, else the zip and the partition file from where
    torchvision knows them.

    Returns:
        The zip's path.

    Raises:
        UserError: If the network, the server or the checksum says no; with the way by hand.
    """
    with locked(folder, "the download of CelebA"):
        # another run may have downloaded it meanwhile
        return find_images(folder) or _download(settings, folder)


def _download(settings: ImageSettings, folder: Path) -> Path:
    # Files take their place only when all are whole; a killed download leaves no half zip there.
    waiting = folder / ".download"
    shutil.rmtree(waiting, ignore_errors=True)
    waiting.mkdir()
    try:
        if settings.url:
            with ProgressBar("downloading CelebA", "bytes") as meter:
                fetch = pooch.HTTPDownloader(progressbar=meter, chunk_size=2**20)
                pooch.retrieve(settings.url, settings.hash, ARCHIVE, waiting, downloader=fetch)
        else:
            from torchvision.datasets.utils import download_file_from_google_drive

            for name, (file_id, md5) in DRIVE.items():
                download_file_from_google_drive(file_id, waiting, name, md5)
        if not zipfile.is_zipfile(waiting / ARCHIVE):
            raise ValueError("what came is not a zip")
        receipt = {"origin": _origin(settings), "content": content_of(waiting / ARCHIVE)}
        write_json(waiting / RECEIPT, receipt)
        for file in sorted(waiting.iterdir(), key=lambda file: file.name == ARCHIVE):
            sync_and_rename(file, folder / file.name)
    except Exception as error:  # each transport has its own kinds
        address = settings.url or "the address torchvision knows"
        raise UserError(
            f"source=celeba: could not download CelebA from {address}: {error}. Fetch {ARCHIVE} by "
            f"hand from {HOME_PAGE} and set path to the zip (or put it in {folder}), or set url "
            "and hash to a mirror"
        ) from error
    finally:
        shutil.rmtree(waiting, ignore_errors=True)
    return folder / ARCHIVE


def _origin(settings: ImageSettings) -> str:
    return settings.hash or f"md5:{DRIVE[ARCHIVE][1]}"
