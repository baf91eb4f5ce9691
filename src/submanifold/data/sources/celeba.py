"""CelebA: the aligned images, the official partition, and their download."""

from __future__ import annotations

import logging
import shutil
import zipfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import pooch

from submanifold.common.errors import UserError
from submanifold.common.files import locked
from submanifold.common.progress import ProgressBar
from submanifold.data.sources.base import Source, SourceType
from submanifold.data.sources.stores import STORES, open_files, read_member
from submanifold.data.splits import SPLITS

if TYPE_CHECKING:
    from submanifold.data.settings import ImageSettings

log = logging.getLogger(__name__)

IMAGES, PARTITION = "img_align_celeba", "list_eval_partition.txt"
ARCHIVE = f"{IMAGES}.zip"
CODES = dict(zip("012", SPLITS, strict=True))
HOME_PAGE = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"


def _open(settings: ImageSettings, raw_folder: Path) -> Source:
    images = _locate(settings, raw_folder) or _download(settings, raw_folder / "celeba")
    content = _read_partition(images) if settings.split == "official" else None
    source = open_files(settings, images, _parse_partition(content) if content else None)
    if settings.split == "official" and not content:
        source.note = (
            f"split=official: expected {PARTITION} next to or inside of {images}, got none; using "
            "a random split instead"
        )
        log.warning("%s", source.note)
    return source


def _files(settings: ImageSettings, raw_folder: Path) -> list[Path] | None:
    if (images := _locate(settings, raw_folder)) is None:
        return None
    partition = _find_partition(images) if settings.split == "official" else None
    return [images, partition] if partition else [images]


def _locate(settings: ImageSettings, raw_folder: Path) -> Path | None:
    """The official zip or the extracted folder, or the user's path; None for a download."""
    folder = settings.file if settings.path else raw_folder / "celeba"
    places = [parent / name for parent in (folder, folder / "Img") for name in (ARCHIVE, IMAGES)]
    default = folder if settings.path else None
    return next((place for place in places if place.is_file() or place.is_dir()), default)


def _find_partition(images: Path) -> Path | None:
    """The official partition next to the images, inside, or in `Eval/`."""
    folders = images, images.parent, images.parent / "Eval", images.parent.parent / "Eval"
    return next((path for folder in folders if (path := folder / PARTITION).is_file()), None)


def _read_partition(images: Path) -> bytes | None:
    """Content of the official partition, which may also be in the zip."""
    if path := _find_partition(images):
        return path.read_bytes()
    if images.is_file() and zipfile.is_zipfile(images):
        with zipfile.ZipFile(images) as archive:
            for member in archive.infolist():
                if PurePosixPath(member.filename).name == PARTITION:
                    return read_member(archive, member)
    return None


def _parse_partition(content: bytes) -> dict[str, str]:
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


def _download(settings: ImageSettings, folder: Path) -> Path:
    """Download the official zip, or verify the one that was downloaded before."""
    downloads = folder / "download"  # apart from a zip of the user, which its time identifies
    with locked(folder, "the download of CelebA"):
        try:
            if settings.url:
                with ProgressBar("downloading CelebA", "bytes") as meter:
                    fetch = pooch.HTTPDownloader(progressbar=meter, chunk_size=2**20)
                    pooch.retrieve(
                        settings.url, settings.hash, ARCHIVE, downloads, downloader=fetch
                    )
            else:
                from torchvision.datasets import CelebA, utils  # which load slowly

                for file_id, md5, name in CelebA.file_list:
                    if name in (ARCHIVE, PARTITION):
                        utils.download_file_from_google_drive(file_id, downloads, name, md5)
        except Exception as error:  # each kind of download raises other errors
            shutil.rmtree(downloads, ignore_errors=True)
            address = settings.url or "torchvision's address"
            raise UserError(
                f"source=celeba: expected a download from {address}, got {error}. Download "
                f"{ARCHIVE} by hand from {HOME_PAGE} and set path to it (or put it in {folder}), "
                "or set url and hash to a mirror."
            ) from error
    return downloads / ARCHIVE


CELEBA = SourceType(
    open=_open,
    files=_files,
    path=STORES,
    image_files=True,
    official_split=True,
    crop="celeba",
    url=True,
)
