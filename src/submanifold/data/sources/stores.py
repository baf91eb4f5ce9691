"""Images in a folder, a zip or an LMDB, also CelebA's, and the identity of files."""

import hashlib
import os
import re
import shutil
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from submanifold.common.errors import UserError, import_extra, unexpected
from submanifold.common.files import hash_file, locked
from submanifold.data.fields import ImageFields
from submanifold.data.images import SUFFIXES
from submanifold.data.sources.base import Source, SourceType
from submanifold.data.splits import SPLITS, check_groups, group_images

DATABASE = "data.mdb"
STORES = "a folder, a zip or an LMDB folder of images"
MAX_SIZE = 2**28  #: Bytes of a file in a zip: those of an image with Pillow's limit of pixels.
HIDDEN = re.compile(r"(^|[/\\])(\.|__MACOSX([/\\]|$))")
"""In the name of a file that is hidden, or that macOS adds to zips."""
REPORTING, OUTPUT = "08_reporting", re.compile(r"0[2-8]_|mlartifacts$|runs$")
"""Names of folders of outputs, next to that of the reports."""
CELEBA_IMAGES, PARTITION = "img_align_celeba", "list_eval_partition.txt"
CELEBA_ZIP = f"{CELEBA_IMAGES}.zip"
CELEBA_PAGE = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"


def open_store(path: Path) -> Source:
    """Open a folder, a zip or an LMDB of images, or raise a UserError."""
    try:
        if path.is_file():
            archive = zipfile.ZipFile(path)
            sizes = {
                entry.filename: entry.file_size
                for entry in archive.infolist()
                if entry.filename[-1:] not in ("", "/")
            }
            source = Source([], archive.read, close=archive.close)
            _add_images(source, sorted(sizes))
            large = [name for name in source.names if sizes[name] > MAX_SIZE]
            source.names = sorted({*source.names} - {*large})
            source.skipped |= dict.fromkeys(large, f"larger than {MAX_SIZE:,} bytes")
            return source
        if (path / DATABASE).is_file():
            return _open_lmdb(path)
        if path.is_dir():
            return open_folder(path)
        problem = "no such file or folder"
    except UserError:  # a missing extra
        raise
    except Exception as error:  # zipfile and lmdb raise many kinds of errors for a broken file
        problem = f"one that cannot be read ({error})"
    fix = "Correct it or fetch it again; a table needs dataset=table"
    raise unexpected(f"path={path}", STORES, f"{problem} (current folder: {Path.cwd()})", fix)


def open_folder(path: Path) -> Source:
    """List the images in a folder and in those below it, each once: links may form cycles.

    Figures and other outputs of runs are left out, so that a project's own folder can be read.
    """

    def fail(error: OSError) -> None:
        raise error

    source, visited = Source([], lambda name: (path / name).read_bytes()), set[str]()
    start = len(os.path.join(path, ""))
    for folder, folders, files in os.walk(path, onerror=fail, followlinks=True):
        if (target := os.path.realpath(folder)) in visited:
            source.skipped[folder[start:]] = "a link to a folder that is read already"
            folders.clear()
            continue
        visited.add(target)
        is_of_runs = REPORTING in folders
        folders[:] = sorted(
            name
            for name in folders
            if not HIDDEN.match(name) and not (is_of_runs and OUTPUT.match(name))
        )
        _add_images(source, (os.path.join(folder, name)[start:] for name in files))
    special = {name for name in source.names if not os.path.isfile(os.path.join(path, name))}
    source.names = sorted({*source.names} - special)
    source.skipped |= dict.fromkeys(sorted(special), "not a file")
    return source


def _add_images(source: Source, files: Iterable[str]) -> None:
    for name in files:
        if HIDDEN.search(name):
            continue
        if name.lower().endswith(SUFFIXES):
            source.names.append(name)
        else:
            source.other_files[os.path.splitext(name)[1].lower()] += 1


def _open_lmdb(path: Path) -> Source:
    lmdb = import_extra("lmdb", "lsun")
    # torchvision's LSUN writes the keys to the current folder, and reads them from a file there
    # that another database may have written
    database = lmdb.open(str(path), readonly=True, lock=False, readahead=False)

    def read(name: str) -> bytes:
        with database.begin() as reader:
            return reader.get(name.encode("latin-1")) or b""

    with database.begin() as reader:  # latin-1 maps each byte to one character
        names = [key.decode("latin-1") for key in reader.cursor().iternext(values=False)]
    return Source(names, read, close=database.close)


def identify(*paths: Path) -> str:
    """Identity of files by their bytes, and of the files in folders by sizes and times of change.

    Names count, places do not. Many images, or a database of some gigabytes, take long to read.
    """
    digest = hashlib.sha256()
    for path in paths:
        if path.is_dir():
            names = [DATABASE] if (path / DATABASE).is_file() else open_folder(path).names
            stats = (os.stat(os.path.join(path, name)) for name in names)
            states = [f"{stat.st_size} {stat.st_mtime_ns}" for stat in stats]
        elif path.exists():
            names, states = [path.name], [hash_file(path)]
        else:
            names, states = [str(path)], ["missing"]
        for name, state in zip(names, states, strict=True):
            digest.update(f"{name} {state}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def open_files(
    settings: ImageFields, path: Path, official: Mapping[str, str] | None = None
) -> Source:
    """Open the images at a path; with an official split of file names, others are skipped."""
    source = open_store(path)
    if official is not None:
        listed = {name: official.get(name.rpartition("/")[2]) for name in source.names}
        source.splits = {name: split for name, split in listed.items() if split}
        source.split_rule, source.names = "official", [*source.splits]
        others = [name for name, split in listed.items() if not split]
        source.skipped |= dict.fromkeys(others, "not in the official partition")
    if not source.names:
        raise UserError(
            f"path={path}: expected images{'' if official is None else ' of the official split'} "
            f"({', '.join(SUFFIXES)}; hidden files are ignored), got none. Set path to a folder of "
            f"images, a zip of images, or the unpacked folder that contains an LMDB's {DATABASE}."
        )
    if settings.groups is not None:
        source.groups = group_images(settings.groups, source.names)
        if source.splits is None:
            source.split_rule = "groups"
        else:
            check_groups((source.groups[name], source.splits[name]) for name in source.names)
    return source


def _open_celeba(settings: ImageFields, raw_folder: Path) -> Source:
    images, *partition = _celeba_files(settings, raw_folder) or _download_celeba(raw_folder)
    is_official = settings.split == "official"
    official = _read_partition(partition[0]) if partition and is_official else None
    source = open_files(settings, images, official)
    if is_official and official is None:
        problem = f"expected {PARTITION} next to {images}, got none"
        source.note = f"split=official: {problem}; using a random split instead"
    return source


def _celeba_files(settings: ImageFields, raw_folder: Path) -> list[Path] | None:
    """The zip or folder of images, and the official partition if it is used; None to download."""
    folder = settings.file if settings.path else raw_folder / "celeba"
    parents = [folder, folder / "Img"]
    places = [parent / name for parent in parents for name in (CELEBA_ZIP, CELEBA_IMAGES)]
    images = next(filter(Path.exists, places), folder if settings.path else None)
    if images is None:
        return None
    folders = images, images.parent, images.parent / "Eval", images.parent.parent / "Eval"
    partitions = [folder / PARTITION for folder in folders if settings.split == "official"]
    return [images, *filter(Path.is_file, partitions)][:2]


def _read_partition(path: Path) -> dict[str, str]:
    """Map file names to train, valid or test, from lines such as `000001.jpg 0`."""
    try:
        lines = (line.split() for line in path.read_text().splitlines() if line.strip())
        return {name: SPLITS[int(code)] for name, code in lines}
    except (ValueError, IndexError) as error:
        expected = "a file name and 0, 1 or 2 on each line"
        fix = "Fetch the official file again, or set split=random"
        raise unexpected(path, expected, f"an error: {error}", fix) from error


def _download_celeba(raw_folder: Path) -> list[Path]:
    """Download the official zip and partition, or verify those that were downloaded before."""
    from torchvision.datasets import CelebA, utils  # which load slowly

    import_extra("gdown", "celeba")
    # apart from a zip of the user, which its time identifies
    folder = raw_folder / "celeba" / "download"
    with locked(folder.parent, "the download of CelebA"):
        try:
            for file_id, md5, name in CelebA.file_list:
                if name in (CELEBA_ZIP, PARTITION):
                    utils.download_file_from_google_drive(file_id, folder, name, md5)
        except Exception as error:  # each kind of download raises other errors
            shutil.rmtree(folder, ignore_errors=True)
            expected = "a download from its home page"
            fix = f"Download {CELEBA_ZIP} by hand from {CELEBA_PAGE}, and set data.path to it"
            raise unexpected("source=celeba", expected, error, fix) from error
    return [folder / CELEBA_ZIP, folder / PARTITION]


IMAGE_FILES = SourceType(
    open=lambda settings, raw_folder: open_files(settings, settings.file),
    path=STORES,
    path_required=True,
    image_files=True,
)
CELEBA = SourceType(_open_celeba, _celeba_files, STORES, image_files=True, official_split=True)
