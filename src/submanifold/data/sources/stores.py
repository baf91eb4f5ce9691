"""Encoded images by name in a folder, a zip or an LMDB: stores, their identity, and sources."""

from __future__ import annotations

import hashlib
import os
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from stat import S_ISREG
from typing import TYPE_CHECKING

import lmdb

from submanifold.common.errors import UserError
from submanifold.data.images import MAX_BYTES, NOT_A_FILE, SUFFIXES, decode, read_file
from submanifold.data.sources.base import Source, SourceType
from submanifold.data.splits import check_groups, group_images

if TYPE_CHECKING:
    from submanifold.data.settings import ImageSettings

DATABASE = "data.mdb"
STORES = "a folder, a zip or an LMDB folder of images"


@dataclass
class Store:
    """Encoded images by name.

    Attributes:
        names: Sorted names; of files in a folder relative to it, with forward slashes.
        read: Function of a name that returns the stored bytes; thread-safe.
        close: Function that closes open files.
        skipped: `{"name", "reason"}` of members that are never read.
        others: Numbers of files in other formats, by suffix.
        identity: Of a folder, a hash of the names, sizes and times of change of its images.
    """

    names: list[str]
    read: Callable[[str], bytes]
    close: Callable[[], None] = lambda: None
    skipped: list[dict[str, str]] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    identity: str = ""

    def is_image(self, name: str) -> bool:
        """Whether a member has the suffix of an image; otherwise it is counted."""
        if is_image := name.lower().endswith(SUFFIXES):
            return is_image
        self.others[PureWindowsPath(name).suffix.lower() or "no suffix"] += 1
        return False


def open_store(path: Path) -> Store:
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


def open_folder(path: Path) -> Store:
    """List the images in a folder and all folders below it; hidden files are ignored.

    A list that took more than a second is reused by this process for as long as it took.

    Raises:
        OSError: If a folder cannot be listed.
    """
    began = time.monotonic()
    last, listed, ended = _last.get(path.absolute(), (None, 0.0, 0.0))
    if last is not None and began - ended < ended - listed > 1:
        return last
    store = Store([], lambda name: read_file(path / name))
    start, digest = len(os.path.join(path, "")), hashlib.sha256()
    for file in _files_below(path, store.skipped):
        name = file[start:]
        if not store.is_image(name):
            continue
        try:
            stat = os.stat(file)
            reason = None if S_ISREG(stat.st_mode) else NOT_A_FILE
        except OSError as error:  # usually a broken link
            reason = str(error.strerror)
        if reason:
            store.skipped.append({"name": name, "reason": reason})
            continue
        store.names.append(name)
        digest.update(_identity(name, stat).encode("utf-8", "surrogateescape"))
    store.names.sort()
    store.skipped.sort(key=lambda skipped: skipped["name"])
    store.identity = digest.hexdigest()
    _last.clear()
    _last[path.absolute()] = store, began, time.monotonic()
    return store


_last: dict[Path, tuple[Store, float, float]] = {}


def _files_below(root: Path, skipped: list[dict[str, str]]) -> Iterator[str]:
    """Files that are not hidden, in an order that depends on their names only.

    Links to folders are followed at the end, except to folders that contain, or are inside of, a
    folder that is read already: no image is listed twice, and cycles end.
    """

    def fail(error: OSError) -> None:
        raise error

    visited, ancestors, starts = {root.resolve()}, {*root.resolve().parents}, [str(root)]
    for start in starts:
        links = []
        for folder, folders, files in os.walk(start, onerror=fail):
            folders[:] = sorted(name for name in folders if not is_hidden(name))
            paths = (os.path.join(folder, name) for name in folders)
            links += [path for path in paths if os.path.islink(path)]
            yield from (os.path.join(folder, name) for name in sorted(files) if not is_hidden(name))
        for link in sorted(links):
            target = Path(link).resolve()
            if target in ancestors or visited & {target, *target.parents}:
                reason = "a link to a folder that is read already"
                skipped.append({"name": os.path.relpath(link, root), "reason": reason})
            else:
                visited.add(target)
                ancestors |= {*target.parents}
                starts.append(link)


def is_hidden(part: str) -> bool:
    """Whether a component of a path is hidden, or what macOS adds to zips."""
    return part.startswith(".") or part == "__MACOSX"


def _open_zip(path: Path) -> Store:
    archive = zipfile.ZipFile(path)
    store = Store([], lambda name: read_member(archive, archive.getinfo(name)), archive.close)
    for name in sorted({name for name in archive.namelist() if name and name[-1] != "/"}):
        if not any(map(is_hidden, PureWindowsPath(name).parts)) and store.is_image(name):
            store.names.append(name)
    return store


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Unpack a member of a zip, in no more memory than its declared size of at most 256 MiB."""
    if member.file_size > MAX_BYTES:
        raise ValueError(f"{member.file_size} bytes exceed the limit of {MAX_BYTES}")
    with archive.open(member) as file:
        return file.read(member.file_size)  # read() would unpack up to 2 GiB before it checks


def _open_lmdb(path: Path) -> Store:
    # torchvision's LSUN writes the keys to the current folder, and reads them from a file there
    # that another database may have written
    database = lmdb.open(str(path), readonly=True, lock=False, readahead=False)

    def read(name: str) -> bytes:
        with database.begin() as reader:
            return reader.get(name.encode("latin-1")) or b""

    with database.begin() as reader:  # latin-1 maps each byte to one character
        names = [key.decode("latin-1") for key in reader.cursor().iternext(values=False)]
    return Store(names, read, database.close)


def identify(*paths: Path) -> str:
    """Identity of files and folders of images: names, sizes and times of change; not the location.

    Raises:
        OSError: If a folder cannot be listed.
    """
    digest = hashlib.sha256()
    for path in paths:
        file = path / DATABASE if (path / DATABASE).is_file() else path
        if file.is_dir():
            identity = open_folder(file).identity
        else:
            identity = _identity(file.name, file.stat()) if file.exists() else f"missing {file}"
        digest.update(identity.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def _identity(name: str, stat: os.stat_result) -> str:
    return f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n"


def open_files(
    settings: ImageSettings, path: Path, official: Mapping[str, str] | None = None
) -> Source:
    """Open the images in a folder, a zip or an LMDB.

    With an official split of file names (without folders), other images are skipped.
    """
    store = open_store(path)
    names, skipped, splits = store.names, [*store.skipped], None
    if official is not None:
        listed = {name: official.get(name.rpartition("/")[2]) for name in names}
        splits = {name: split for name, split in listed.items() if split}
        names = list(splits)
        reason = "not in the official partition"
        skipped += [{"name": name, "reason": reason} for name in listed if name not in splits]
    if not names:
        raise UserError(
            f"path={path}: expected images{'' if official is None else ' of the official split'} "
            f"({', '.join(SUFFIXES)}; hidden files are ignored), got none. Set path to a folder of "
            f"images, a zip of images, or the unpacked folder that contains an LMDB's {DATABASE}."
        )
    groups = None if settings.groups is None else group_images(settings.groups, names)
    if groups and splits:
        check_groups(groups, splits)
    return Source(
        names=names,
        image=lambda name: decode(store.read(name), **settings.form),
        splits=splits,
        split_rule="official" if splits else "groups" if groups else "random",
        groups=groups,
        skipped=skipped,
        other_files=store.others,
        close=store.close,
    )


FILES = SourceType(
    open=lambda settings, raw_folder: open_files(settings, settings.file),
    files=lambda settings, raw_folder: [settings.file],
    path=STORES,
    path_required=True,
    image_files=True,
)
