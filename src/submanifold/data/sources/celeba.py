"""CelebA: the aligned images, the official partition, and their download."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pooch

from submanifold.common.errors import UserError
from submanifold.common.files import locked
from submanifold.common.progress import ProgressBar
from submanifold.data.sources.base import Source, SourceType
from submanifold.data.sources.stores import STORES, open_files
from submanifold.data.splits import SPLITS

if TYPE_CHECKING:
    from submanifold.data.settings import ImageSettings

IMAGES, PARTITION = "img_align_celeba", "list_eval_partition.txt"
ARCHIVE = f"{IMAGES}.zip"
HOME_PAGE = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"


def _open(settings: ImageSettings, raw_folder: Path) -> Source:
    images = _locate(settings, raw_folder) or _download(settings, raw_folder / "celeba")
    partition = _find_partition(settings, images)
    source = open_files(settings, images, _read_partition(partition) if partition else None)
    if settings.split == "official" and not partition:
        source.note = (
            f"split=official: expected {PARTITION} next to {images}, got none; using a random "
            "split instead"
        )
    return source


def _files(settings: ImageSettings, raw_folder: Path) -> list[Path] | None:
    if (images := _locate(settings, raw_folder)) is None:
        return None
    partition = _find_partition(settings, images)
    return [images, partition] if partition else [images]


def _locate(settings: ImageSettings, raw_folder: Path) -> Path | None:
    """The official zip or the extracted folder, or the user's path; None for a download."""
    folder = settings.file if settings.path else raw_folder / "celeba"
    places = [parent / name for parent in (folder, folder / "Img") for name in (ARCHIVE, IMAGES)]
    return next(filter(Path.exists, places), folder if settings.path else None)


def _find_partition(settings: ImageSettings, images: Path) -> Path | None:
    """The official partition next to the images, inside, or in `Eval/`, if it is used."""
    folders = images, images.parent, images.parent / "Eval", images.parent.parent / "Eval"
    places = [folder / PARTITION for folder in folders] if settings.split == "official" else []
    return next(filter(Path.is_file, places), None)


def _read_partition(path: Path) -> dict[str, str]:
    """Map file names to train, valid or test, from lines such as `000001.jpg 0`."""
    try:
        lines = (line.split() for line in path.read_text().splitlines() if line.strip())
        return {name: SPLITS[int(code)] for name, code in lines}
    except (ValueError, IndexError) as error:
        raise UserError(
            f"{path}: expected a file name and 0, 1 or 2 on each line, got an error: {error}. "
            "Fetch the official file again, or set split=random."
        ) from error


def _download(settings: ImageSettings, folder: Path) -> Path:
    """Download the official zip, or verify the one that was downloaded before."""
    from torchvision.datasets import CelebA, utils  # which load slowly

    downloads = folder / "download"  # apart from a zip of the user, which its time identifies
    with locked(folder, "the download of CelebA"):
        try:
            if settings.url:
                with ProgressBar("downloading CelebA", "bytes") as bar:
                    pooch.retrieve(
                        settings.url, settings.hash, ARCHIVE, downloads,
                        downloader=pooch.HTTPDownloader(progressbar=bar, chunk_size=2**20),
                    )  # fmt: skip
            for file_id, md5, name in () if settings.url else CelebA.file_list:
                if name in (ARCHIVE, PARTITION):
                    utils.download_file_from_google_drive(file_id, downloads, name, md5)
        except Exception as error:  # each kind of download raises other errors
            shutil.rmtree(downloads, ignore_errors=True)
            raise UserError(
                f"source=celeba: expected a download from {settings.url or 'its home page'}, got "
                f"{error}. Download {ARCHIVE} by hand from {HOME_PAGE} and set path to it, or set "
                "url and hash to a mirror."
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
