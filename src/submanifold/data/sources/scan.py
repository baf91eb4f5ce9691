"""Listing of the image files in a folder, with the sizes and times that show a change."""

import hashlib
import os
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache, partial, wraps
from pathlib import Path, PureWindowsPath
from stat import S_ISREG
from typing import NamedTuple, TypeVar

import numpy as np

from submanifold.common.processes import cores, process_pool
from submanifold.data.images import NOT_A_FILE, SUFFIXES

T = TypeVar("T")

ALREADY_READ = "a link to a folder that is read already"
# After this many files the rest is listed by other processes, this many folders at a time.
FILES_ALONE, FOLDERS_PER_TASK = 20_000, 32
REUSED_AFTER = 10**9
"""Nanoseconds that a scan must have taken to be reused."""

STAMP = np.dtype([("size", "i8"), ("mtime", "i8"), ("ctime", "i8"), ("inode", "u8")])
PACK = struct.Struct("=qqqQ").pack

Stamp = tuple[int, int, int, int]


def stamp(stat: os.stat_result) -> Stamp:
    """What changes when a file is written: bytes, times in nanoseconds, inode number."""
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


@dataclass(frozen=True)
class Files:
    """Image files at one moment; about a hundred bytes of memory each.

    Attributes:
        names: Sorted relative names, with forward slashes.
        stamps: A stamp of each, (n,) of dtype :data:`STAMP`.
        began: Start of the scan, nanoseconds since 1970.
        skipped: `{"name", "reason"}` of entries with the name of an image that are not files, and
            of links to folders that were not followed.
        others: Numbers of files with other suffixes.
    """

    names: list[str]
    stamps: np.ndarray
    began: int
    skipped: list[dict[str, str]] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    @property
    def digest(self) -> str:
        """Hash that changes if a file is written, renamed, added or removed."""
        return digest([*self.names, hashlib.sha256(self.stamps.tobytes()).hexdigest()])


def scan(path: Path) -> Files:
    """List the images in a folder and all folders below it; hidden files are ignored.

    Links to folders are followed, except to folders that contain, or are inside of, a folder that
    is read already: no image is listed twice, and cycles end. A scan that took more than a second
    is reused by this process for as long as it took.

    Raises:
        OSError: If a folder cannot be listed.
    """
    global _last_scan
    path, now = path.absolute(), time.time_ns()
    last, ended = _last_scan.get(path, (None, 0))
    if last is not None and now - ended < ended - last.began > REUSED_AFTER:
        return last
    files = _scan(path)
    _last_scan = {path: (files, time.time_ns())}
    return files


_last_scan: dict[Path, tuple[Files, int]] = {}


def _scan(path: Path) -> Files:
    began, root = time.time_ns(), path.resolve()
    visited, ancestors, skipped = {root}, set(root.parents), []
    listings: list[Listing] = []
    folders = [""]
    while folders:
        found, folders = _list_all(path, folders), []
        listings += found
        for link in sorted(link for each in found for link in each.links):
            target = (path / link).resolve()
            if target in ancestors or visited & {target, *target.parents}:
                skipped.append({"name": link, "reason": ALREADY_READ})
            else:
                visited.add(target)
                ancestors |= set(target.parents)
                folders.append(f"{link}/")
    names = [name for each in listings for name in each.names]
    stamps = np.frombuffer(b"".join(each.stamps for each in listings), STAMP)
    order = sorted(range(len(names)), key=names.__getitem__)
    skipped += [each for listing in listings for each in listing.skipped]
    skipped.sort(key=lambda each: each["name"])
    others = sum((each.others for each in listings), Counter[str]())
    return Files([names[i] for i in order], stamps[order], began, skipped, others)


class Listing(NamedTuple):
    """Files in some folders, links to folders, and folders that are yet to be listed."""

    names: list[str]
    stamps: bytearray
    skipped: list[dict[str, str]]
    others: Counter[str]
    links: list[str]
    folders: list[str]


def _list_all(path: Path, folders: list[str]) -> list[Listing]:
    """List folders and all below them; other processes help if there are many files."""
    listings = [_list(path, folders)]
    folders = listings[0].folders
    if folders:
        with process_pool("list files", cores()) as executor:
            while folders:
                starts = range(0, len(folders), FOLDERS_PER_TASK)
                tasks = [folders[start : start + FOLDERS_PER_TASK] for start in starts]
                found = list(executor.map(partial(_list, path), tasks))
                listings += found
                folders = [folder for each in found for folder in each.folders]
    return listings


def _list(path: Path, folders: list[str]) -> Listing:
    found = Listing([], bytearray(), [], Counter(), [], list(folders))
    while found.folders and len(found.names) < FILES_ALONE:
        parent = found.folders.pop()
        with os.scandir(path / parent) as entries:
            for entry in entries:
                if not is_hidden(entry.name):
                    _add(found, parent + entry.name, entry)
    return found


def _add(found: Listing, name: str, entry: os.DirEntry[str]) -> None:
    if entry.is_dir(follow_symlinks=False):
        found.folders.append(f"{name}/")
    elif entry.is_symlink() and os.path.isdir(entry):
        found.links.append(name)
    elif not name.lower().endswith(SUFFIXES):
        found.others[suffix(name)] += 1
    else:
        try:
            stat = entry.stat()
        except OSError as error:  # usually a broken link
            found.skipped.append({"name": name, "reason": str(error.strerror)})
            return
        if S_ISREG(stat.st_mode):
            found.names.append(name)
            found.stamps.extend(PACK(*stamp(stat)))
        else:
            found.skipped.append({"name": name, "reason": NOT_A_FILE})


def is_hidden(part: str) -> bool:
    """Whether a component of a path is hidden, or what macOS adds to zips."""
    return part.startswith(".") or part == "__MACOSX"


def suffix(name: str) -> str:
    """Suffix of a file in lower case."""
    return PureWindowsPath(name).suffix.lower() or "no suffix"


def digest(lines: Iterable[str]) -> str:
    """Hash of lines of text, 32 hexadecimal digits."""
    result = hashlib.sha256()
    for line in lines:
        result.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return result.hexdigest()[:32]


def cached_by_stamp(function: Callable[[Path], T]) -> Callable[[Path], T]:
    """Cache a function of a path as long as the path is a file with the same stamp."""

    @lru_cache(maxsize=16)
    def cached(path: Path, stamp: Stamp) -> T:
        return function(path)

    @wraps(function)
    def wrapper(path: Path) -> T:
        return cached(path, stamp(path.stat())) if path.is_file() else function(path)

    return wrapper
