"""Images in a folder, a zip or an LMDB, and the identity of files."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING

import lmdb

from submanifold.common.errors import UserError
from submanifold.data.images import MAX_BYTES, NOT_A_FILE, SUFFIXES, read_file
from submanifold.data.sources.base import Source, SourceType
from submanifold.data.splits import check_groups, group_images

if TYPE_CHECKING:
    from submanifold.data.settings import ImageSettings

DATABASE = "data.mdb"
STORES = "a folder, a zip or an LMDB folder of images"


def open_store(path: Path) -> Source:
    """Open a folder, a zip or an LMDB of images, or raise a UserError."""
    try:
        if path.is_file():
            return _open_zip(path)
        if (path / DATABASE).is_file():
            return _open_lmdb(path)
        if path.is_dir():
            return open_folder(path)
        problem = "a pipe, socket or device" if path.exists() else "a path that does not exist"
    except Exception as error:  # zipfile and lmdb raise many kinds of errors for a broken file
        problem = f"one that cannot be read ({error})"
    raise UserError(
        f"path={path}: expected {STORES}, got {problem} (current folder: {Path.cwd()}). Correct it "
        "or fetch it again; a table needs dataset=table."
    )


def open_folder(path: Path) -> Source:
    """List the images in a folder and all folders below it; hidden files are ignored.

    Raises:
        OSError: If a folder cannot be listed.
    """
    source = Source([], lambda name: read_file(path / name))
    start = len(os.path.join(path, ""))
    for file in _files_below(path, source.skipped):
        if not _is_image(file, source):
            continue
        if os.path.isfile(file):
            source.names.append(file[start:])
        else:
            source.skipped.append({"name": file[start:], "reason": NOT_A_FILE})
    source.names.sort()
    return source


def _is_image(name: str, source: Source) -> bool:
    """Whether a file has the suffix of an image; otherwise it is counted."""
    is_image = name.lower().endswith(SUFFIXES)
    if not is_image:
        source.other_files[PureWindowsPath(name).suffix.lower() or "no suffix"] += 1
    return is_image


def _files_below(root: Path, skipped: list[dict[str, str]]) -> Iterator[str]:
    """Files that are not hidden; a folder with several links is read once, and cycles end."""

    def fail(error: OSError) -> None:
        raise error

    visited = set[str]()
    for folder, folders, files in os.walk(root, onerror=fail, followlinks=True):
        if (target := os.path.realpath(folder)) in visited:
            reason = "a link to a folder that is read already"
            skipped.append({"name": os.path.relpath(folder, root), "reason": reason})
            folders.clear()
            continue
        visited.add(target)
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        yield from (os.path.join(folder, name) for name in sorted(files) if not is_hidden(name))


def is_hidden(part: str) -> bool:
    """Whether a component of a path is hidden, or what macOS adds to zips."""
    return part.startswith(".") or part == "__MACOSX"


def _open_zip(path: Path) -> Source:
    archive = zipfile.ZipFile(path)

    def read(name: str) -> bytes:
        size = archive.getinfo(name).file_size
        if size > MAX_BYTES:
            raise ValueError(f"{size} bytes exceed the limit of {MAX_BYTES}")
        with archive.open(name) as file:
            return file.read(size)  # read() would unpack up to 2 GiB before it checks

    source = Source([], read, close=archive.close)
    for name in sorted({name for name in archive.namelist() if name and name[-1] != "/"}):
        if not any(map(is_hidden, PureWindowsPath(name).parts)) and _is_image(name, source):
            source.names.append(name)
    return source


def _open_lmdb(path: Path) -> Source:
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
    """Identity of files and folders of images: names, sizes and times of change; not the location.

    Raises:
        OSError: If a folder cannot be listed.
    """
    digest = hashlib.sha256()
    for path in paths:
        file = path / DATABASE if (path / DATABASE).is_file() else path
        if not file.exists():
            digest.update(f"missing {file}".encode())
            continue
        for name in open_folder(file).names if file.is_dir() else [""]:
            stat = os.stat(os.path.join(file, name) if name else file)
            stamp = f"{name or file.name} {stat.st_size} {stat.st_mtime_ns}\n"
            digest.update(stamp.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def open_files(
    settings: ImageSettings, path: Path, official: Mapping[str, str] | None = None
) -> Source:
    """Open the images in a folder, a zip or an LMDB.

    With an official split of file names (without folders), other images are skipped.
    """
    source = open_store(path)
    if official is not None:
        listed = {name: official.get(name.rpartition("/")[2]) for name in source.names}
        source.splits = {name: split for name, split in listed.items() if split}
        source.split_rule, source.names = "official", [*source.splits]
        reason = "not in the official partition"
        source.skipped += [{"name": name, "reason": reason} for name in listed if not listed[name]]
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


FILES = SourceType(
    open=lambda settings, raw_folder: open_files(settings, settings.file),
    path=STORES,
    path_required=True,
    image_files=True,
)
