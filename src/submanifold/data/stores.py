"""Named bytes in a folder, a zip or an LMDB: where encoded images lie."""

from __future__ import annotations

import hashlib
import os
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from stat import S_ISREG
from typing import NamedTuple, TypeVar

import lmdb
import numpy as np

from submanifold.common.errors import UserError
from submanifold.common.processes import cores, process_pool

T = TypeVar("T")

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")

# No picture that PIL holds safe comes near this one; a member of a zip may unpack to any size.
MAX_BYTES = 2**28
PACKED_BY = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

DATABASE = "data.mdb"
NO_FILE = "not a file"
READ_ALREADY = "a link to a folder that is read already"

# Nanoseconds.
WORTH_KEEPING = 10**9

# More than this is sampled for the fingerprint, by so many blocks of so many bytes.
WHOLE_BYTES, WHOLE_FILES = 2**32, 250_000
BLOCKS, BLOCK = 4096, 2**14


@dataclass(frozen=True)
class Store:
    """Encoded images under sorted names.

    Attributes:
        names: Function: all images, sorted.
        read: Function of a name: its bytes, as stored; safe to call from several threads.
        fingerprint: Function: an identity of the content, whatever its place and its times.
        close: Function that lets go of open files.
        skipped: `{"name", "reason"}` of each member that is never read.
        others: Counts of files that are not images of a known format, by suffix.
    """

    names: Callable[[], list[str]]
    read: Callable[[str], bytes]
    fingerprint: Callable[[], str]
    close: Callable[[], None] = lambda: None
    skipped: list[dict[str, str]] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)


def open_store(path: Path) -> Store:
    """The images in a folder, a zip or an LMDB.

    Raises:
        UserError: If nothing lies there, or something that cannot be read.
    """
    if not path.exists():
        raise UserError(
            f"path={path} does not exist (looked from {Path.cwd()}); give a folder, a zip or "
            "an LMDB folder of images as path"
        )
    if not path.is_dir() and not path.is_file():
        raise UserError(
            f"path={path} is neither a file nor a folder, but a pipe, a socket or a device; give a "
            "folder, a zip or an LMDB folder of images as path"
        )
    if (path / DATABASE).is_file():
        return _open_lmdb(path)
    return _open_folder(path) if path.is_dir() else _open_zip(path)


def _open_folder(path: Path) -> Store:
    files = scan(path)
    return Store(
        names=lambda: files.names,
        read=lambda name: read_file(path / name),
        fingerprint=lambda: f"folder:{digest_files(path, files)}",
        skipped=files.skipped,
        others=files.others,
    )


def _open_zip(path: Path) -> Store:
    """Of a zip, read in place: nothing is ever extracted to disk."""
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # zipfile raises many kinds on a broken file
        raise UserError(
            f"path={path} is not a readable zip ({error}); give a whole zip or a folder of images "
            "as path"
        ) from None
    members = {info.filename: info for info in archive.infolist()
               if info.filename and not info.is_dir()}  # fmt: skip
    safe, unsafe, others = [], [], Counter[str]()
    for name in sorted(members):
        # The Windows flavour also splits at "/", so it sees both systems' ways out of a folder.
        inside = PureWindowsPath(name)
        if inside.drive or inside.root or ".." in inside.parts:
            unsafe.append({"name": name, "reason": "unsafe path"})
        elif any(map(_is_hidden, inside.parts)):
            continue
        elif name.lower().endswith(SUFFIXES):
            safe.append(name)
        else:
            others[_suffix(name)] += 1

    if not safe and any(PureWindowsPath(name).name == DATABASE for name in members):
        archive.close()
        raise UserError(
            f"path={path} is a zip of an LMDB, which cannot be read in place: unpack it (unzip "
            f"{path.name}), and give the folder that holds {DATABASE} as path"
        )

    def read(name: str) -> bytes:
        return read_member(archive, members[name])

    def fingerprint() -> str:  # the central directory tells: names, sizes and CRCs
        rows = (f"{name}\0{info.file_size}\0{info.CRC}" for name, info in sorted(members.items()))
        return f"zip:{path.stat().st_size}:{digest(rows)}"

    return Store(lambda: safe, read, fingerprint, archive.close, unsafe, others)


def _open_lmdb(path: Path) -> Store:
    """Of an LMDB, whose values are images, as LSUN ships them; nothing is written beside it."""
    try:
        database = lmdb.open(str(path), readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
        raise UserError(
            f"path={path} is not a readable LMDB ({error}); give the folder that holds a whole "
            f"{DATABASE} as path"
        ) from None

    def names() -> list[str]:
        with database.begin() as reader:
            # latin-1 maps every byte to one character and back.
            return sorted(key.decode("latin-1") for key in reader.cursor().iternext(values=False))

    def read(name: str) -> bytes:
        with database.begin() as reader:
            return reader.get(name.encode("latin-1")) or b""

    def fingerprint() -> str:  # a commit changes at least the pages at the file's start
        return f"lmdb:{digest_files(path, files_of(path))}"

    return Store(names, read, fingerprint, database.close)


def read_file(path: Path) -> bytes:
    """Read the file of an image.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is larger than 256 MiB, or no file: who reads a pipe may wait for ever.
    """
    stat = path.stat()
    if not S_ISREG(stat.st_mode):
        raise ValueError(NO_FILE)
    if stat.st_size > MAX_BYTES:
        raise ValueError(f"{stat.st_size} bytes, more than the {MAX_BYTES} an image may have")
    return path.read_bytes()


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Unpack a member of a zip, which takes no more memory than it says.

    Raises:
        OSError, zipfile.BadZipFile, zlib.error: If it is broken.
        ValueError: If it unpacks to more than 256 MiB, or is packed by another method than deflate,
            whose output zipfile does not limit.
    """
    if member.file_size > MAX_BYTES:
        raise ValueError(f"unpacks to {member.file_size} bytes, more than {MAX_BYTES}")
    if member.compress_type not in PACKED_BY:
        raise ValueError(f"is packed by method {member.compress_type}, not by deflate")
    with archive.open(member) as file:
        return file.read(member.file_size)  # read() would unpack up to 2 GiB before it looks


class Stamp(NamedTuple):
    """What changes when a file is written: bytes, nanoseconds, number."""

    size: int
    mtime: int
    ctime: int
    inode: int


# Files whose stamps are numbers of Python before they are packed; files after which other processes
# look at the rest, and how many folders each is given at a time.
PACKED, MANY, SHARED = 4096, 20_000, 32
STAMP = np.dtype([("size", "i8"), ("mtime", "i8"), ("ctime", "i8"), ("inode", "u8")])


@dataclass(frozen=True)
class Files:
    """The files that hold images, as they were at a moment: a hundred bytes for each.

    Attributes:
        names: Sorted, relative, with forward slashes.
        stamps: A :class:`Stamp` of each, (n,) of the type :data:`STAMP`.
        began: When the look at them began, in nanoseconds since 1970.
        skipped: `{"name", "reason"}` of what has the name of an image, but is no file, and of links
            to folders that are not followed.
        others: Counts of files with other suffixes.
    """

    names: list[str]
    stamps: np.ndarray
    began: int
    skipped: list[dict[str, str]] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    @property
    def digest(self) -> str:
        """Another one when a file is written, renamed, added or removed."""
        return digest([*self.names, hashlib.sha256(self.stamps.tobytes()).hexdigest()])


def files_of(path: Path) -> Files:
    """The files that hold what :func:`open_store` opens.

    Raises:
        OSError: If they cannot be listed.
    """
    began = time.time_ns()
    if (path / DATABASE).is_file():
        return Files([DATABASE], _one(path / DATABASE), began)
    return scan(path) if path.is_dir() else Files([""], _one(path), began)


def _one(path: Path) -> np.ndarray:
    return np.array([stamp(path.stat())], STAMP)


def scan(path: Path) -> Files:
    """The images in a tree. Each is looked at: a file's time changes without its folder's.

    A link to a folder is followed, unless that folder is in a tree that is read already, or holds
    one: so that no image is found twice, and no cycle entered.

    A scan that took longer than a second is used again by this process for as long as it took: so
    that one command looks once at millions of files. What changes meanwhile is seen by the next.

    Raises:
        OSError: If a folder cannot be listed.
    """
    global _last_scan
    path, now = path.absolute(), time.time_ns()
    last, ended = _last_scan.get(path, (None, 0))
    if last is not None and now - ended < ended - last.began > WORTH_KEEPING:
        return last
    files = _scan(path)
    _last_scan = {path: (files, time.time_ns())}
    return files


_last_scan: dict[Path, tuple[Files, int]] = {}


def _scan(path: Path) -> Files:
    began = time.time_ns()
    looks = _walk(path, [""])
    root = path.resolve()
    read, above, skipped = {root}, set(root.parents), []
    links = [link for look in looks for link in look.links]
    while links:
        followed = []
        for link in sorted(links):  # whichever was found first, the same of two is followed
            folder = (path / link).resolve()
            if folder in above or read & {folder, *folder.parents}:
                skipped.append({"name": link, "reason": READ_ALREADY})
                continue
            read.add(folder)
            above |= set(folder.parents)
            followed.append(f"{link}/")
        found = _walk(path, followed) if followed else []
        links = [link for look in found for link in look.links]
        looks += found
    names = [name for look in looks for name in look.names]
    stamps = np.concatenate([look.stamps for look in looks])
    skipped += [each for look in looks for each in look.skipped]
    others = sum((look.others for look in looks), Counter[str]())
    del looks
    order = sorted(range(len(names)), key=names.__getitem__)
    skipped.sort(key=lambda item: item["name"])
    return Files([names[i] for i in order], stamps[order], began, skipped, others)


def _walk(path: Path, folders: list[str]) -> list[Look]:
    """Look into folders and all below them, with other processes once there is much to look at."""
    looks = [_look(path, folders)]
    if looks[0].folders:
        with process_pool("look at files", cores()) as executor:

            def share(folders: list[str]) -> Iterator[Future[Look]]:
                for start in range(0, len(folders), SHARED):
                    yield executor.submit(_look, path, folders[start : start + SHARED])

            waiting = set(share(looks[0].folders))
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for look in (future.result() for future in done):
                    looks.append(look)
                    waiting |= set(share(look.folders))
    return looks


class Look(NamedTuple):
    """What was found in some folders, links to folders, and folders that were not looked into."""

    names: list[str]
    stamps: np.ndarray
    skipped: list[dict[str, str]]
    others: Counter[str]
    links: list[str]
    folders: list[str]


def _look(path: Path, folders: list[str]) -> Look:
    """Look into folders and those below, until very many files are found."""
    names: list[str] = []
    stats: list[tuple[int, ...]] = []
    blocks: list[np.ndarray] = []
    skipped: list[dict[str, str]] = []
    others: Counter[str] = Counter()
    links: list[str] = []
    folders = list(folders)
    while folders and len(names) < MANY:
        above = folders.pop()
        with os.scandir(path / above) as entries:
            for entry in entries:
                if _is_hidden(entry.name):
                    continue
                name = above + entry.name
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{name}/")
                elif _is_link_to_folder(entry):
                    links.append(name)
                elif name.lower().endswith(SUFFIXES):
                    try:
                        stat = entry.stat()
                    except OSError as error:  # most often a link to nothing
                        skipped.append({"name": name, "reason": str(error.strerror)})
                        continue
                    if not S_ISREG(stat.st_mode):
                        skipped.append({"name": name, "reason": NO_FILE})
                        continue
                    names.append(name)
                    stats.append((stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino))
                    if len(stats) == PACKED:
                        blocks.append(np.array(stats, STAMP))
                        stats.clear()
                else:
                    others[_suffix(name)] += 1
    stamps = np.concatenate([*blocks, np.array(stats, STAMP)])
    return Look(names, stamps, skipped, others, links, folders)


def _is_link_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_symlink() and entry.is_dir()
    except OSError:  # it leads to itself
        return False


def _suffix(name: str) -> str:
    return PureWindowsPath(name).suffix.lower() or "no suffix"


def digest_files(folder: Path, files: Files) -> str:
    """Digest of names, sizes and contents.

    Of more than 4 GiB or 250,000 files, only 4,096 evenly spread blocks of 16 KiB are read, which
    takes seconds; the digest then begins with ``sampled:``.
    """
    names, ends = files.names, np.cumsum(files.stamps["size"])
    total = int(ends[-1]) if names else 0
    if total <= WHOLE_BYTES and len(names) <= WHOLE_FILES:
        return digest(f"{name}\0{_digest_file(folder / name)}" for name in names)
    sizes = files.stamps["size"].tolist()
    rows = [f"{name}\0{size}" for name, size in zip(names, sizes, strict=True)]
    for start in np.linspace(0, max(0, total - BLOCK), BLOCKS).astype(np.int64):
        i = np.searchsorted(ends[:-1], start, side="right")
        rows.append(_digest_file(folder / names[i], int(start - ends[i] + sizes[i]), BLOCK))
    return f"sampled:{digest(rows)}"


def digest(rows: Iterable[str]) -> str:
    """Digest of some lines."""
    lines = hashlib.sha256()
    for row in rows:
        lines.update(row.encode("utf-8", "surrogateescape") + b"\n")
    return lines.hexdigest()[:32]


def _digest_file(path: Path, start: int = 0, size: int | None = None) -> str:
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(start)
            content = hashlib.sha256(file.read(size or 2**20))
            while not size and (block := file.read(2**20)):
                content.update(block)
    except OSError as error:  # a broken image among good ones
        return f"unreadable {error.errno}"
    return content.hexdigest()


def stamp(stat: os.stat_result) -> Stamp:
    """What of a file's state tells that it is the same."""
    return Stamp(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


def content_of(path: Path) -> str:
    """The fingerprint of the store at a path."""
    with closing(open_store(path)) as store:
        return store.fingerprint()


def of_content(read: Callable[[Path], T], path: Path) -> T:
    """What `read` finds at a path; not read again while it is a file of that size and time.

    The index of CelebA's zip takes a second, and every one of many experiments asks for it.
    """
    return _read_once(read, path, stamp(path.stat())) if path.is_file() else read(path)


@lru_cache(maxsize=16)
def _read_once(read: Callable[[Path], T], path: Path, stamp: Stamp) -> T:
    return read(path)


def _is_hidden(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"
