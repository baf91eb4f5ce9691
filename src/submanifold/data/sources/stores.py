"""Encoded images by name in a folder, a zip or an LMDB, and fingerprints of their content."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import struct
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from stat import S_ISREG

import lmdb
import numpy as np

from submanifold.common.errors import UserError
from submanifold.common.files import read_json, write_json
from submanifold.data.images import MAX_BYTES, NOT_A_FILE, SUFFIXES, read_file

log = logging.getLogger(__name__)

DATABASE = "data.mdb"
STORES = "a folder, a zip or an LMDB folder of images"

STAMP = np.dtype([("size", "i8"), ("mtime", "i8"), ("ctime", "i8"), ("inode", "u8")])
PACK = struct.Struct("=qqqQ").pack
REUSED_AFTER = 10**9
"""Nanoseconds that a scan must have taken to be reused."""
SETTLED = 2 * 10**9
"""Nanoseconds after which a second write of a file changes its times on every filesystem."""

# Content beyond these limits is sampled: this number of evenly spaced blocks of this many bytes.
HASHED_BYTES, HASHED_FILES = 2**32, 250_000
BLOCKS, BLOCK_BYTES = 4096, 2**14

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
    root, names, stamps = path.resolve(), list[str](), bytearray()
    visited, ancestors = {root}, set(root.parents)
    skipped, others = list[dict[str, str]](), Counter[str]()
    folders, links = [""], list[str]()
    while folders:
        parent = folders.pop()
        with os.scandir(path / parent) as entries:
            for entry in entries:
                name = parent + entry.name
                if is_hidden(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{name}/")
                elif entry.is_symlink() and os.path.isdir(entry):
                    links.append(name)
                elif not name.lower().endswith(SUFFIXES):
                    others[suffix(name)] += 1
                elif isinstance(found := _stamp_or_reason(entry), str):
                    skipped.append({"name": name, "reason": found})
                else:
                    names.append(name)
                    stamps += PACK(*found)
        if not folders:
            for link in sorted(links):
                target = (path / link).resolve()
                if target in ancestors or visited & {target, *target.parents}:
                    reason = "a link to a folder that is read already"
                    skipped.append({"name": link, "reason": reason})
                else:
                    visited.add(target)
                    ancestors |= set(target.parents)
                    folders.append(f"{link}/")
            links = []
    order = sorted(range(len(names)), key=names.__getitem__)
    skipped.sort(key=lambda each: each["name"])
    sorted_stamps = np.frombuffer(stamps, STAMP)[order]
    files = Files([names[i] for i in order], sorted_stamps, now, skipped, others)
    _last_scan = {path: (files, time.time_ns())}
    return files


_last_scan: dict[Path, tuple[Files, int]] = {}


def _stamp_or_reason(entry: os.DirEntry[str]) -> Stamp | str:
    """The stamp of a regular file, or why there is none."""
    try:
        stat = entry.stat()
    except OSError as error:  # usually a broken link
        return str(error.strerror)
    return stamp(stat) if S_ISREG(stat.st_mode) else NOT_A_FILE


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


@dataclass(frozen=True)
class Store:
    """Encoded images by name.

    Attributes:
        names: Function that returns the sorted names.
        read: Function of a name that returns the stored bytes; thread-safe.
        fingerprint: Function that returns an identity of the content, the same for a copy.
        close: Function that closes open files.
        skipped: `{"name", "reason"}` of members that are never read.
        others: Numbers of files in other formats, by suffix.
    """

    names: Callable[[], list[str]]
    read: Callable[[str], bytes]
    fingerprint: Callable[[], str]
    close: Callable[[], None] = lambda: None
    skipped: list[dict[str, str]] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)


def open_store(path: Path) -> Store:
    """Open a folder, a zip or an LMDB of images, or raise a UserError."""
    if path.is_file():
        return _open_zip(path)
    if not path.is_dir():
        found = "a pipe, socket or device" if path.exists() else "a path that does not exist"
        raise UserError(
            f"path={path}: expected {STORES}, got {found} (current folder: {Path.cwd()}). Correct "
            "it."
        )
    if (path / DATABASE).is_file():
        return _open_lmdb(path)
    files = scan(path)
    return Store(
        names=lambda: files.names,
        read=lambda name: read_file(path / name),
        fingerprint=lambda: f"folder:{digest_files(path, files)}",
        skipped=files.skipped,
        others=files.others,
    )


def _open_zip(path: Path) -> Store:
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # zipfile raises many kinds of errors for a broken file
        fix = "Fetch it again" if suffix(path.name) == ".zip" else "A table needs dataset=table"
        raise UserError(
            f"path={path}: expected {STORES}, got a file that is not a readable zip ({error}). "
            f"{fix}."
        ) from None
    members = {info.filename: info for info in archive.infolist()
               if info.filename and not info.is_dir()}  # fmt: skip
    names, unsafe, others = [], [], Counter[str]()
    for name in sorted(members):
        inside = PureWindowsPath(name)  # splits at / and \: safe on both systems
        if inside.drive or inside.root or ".." in inside.parts:
            unsafe.append({"name": name, "reason": "unsafe path"})
        elif any(map(is_hidden, inside.parts)):
            continue
        elif name.lower().endswith(SUFFIXES):
            names.append(name)
        else:
            others[suffix(name)] += 1

    def fingerprint() -> str:  # of the central directory: names, sizes and CRCs
        lines = (f"{name}\0{each.file_size}\0{each.CRC}" for name, each in sorted(members.items()))
        return f"zip:{path.stat().st_size}:{digest(lines)}"

    def read(name: str) -> bytes:
        return read_member(archive, members[name])

    return Store(lambda: names, read, fingerprint, archive.close, unsafe, others)


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Unpack a member of a zip, in no more memory than its declared size of at most 256 MiB."""
    if member.file_size > MAX_BYTES:
        raise ValueError(f"{member.file_size} bytes exceed the limit of {MAX_BYTES}")
    with archive.open(member) as file:
        return file.read(member.file_size)  # read() would unpack up to 2 GiB before it checks


def _open_lmdb(path: Path) -> Store:
    try:
        database = lmdb.open(str(path), readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
        raise UserError(
            f"path={path}: expected {STORES}, got a {DATABASE} that is not a readable LMDB "
            f"({error}). Fetch it again."
        ) from None

    def names() -> list[str]:  # latin-1 maps each byte to one character
        with database.begin() as reader:
            return sorted(key.decode("latin-1") for key in reader.cursor().iternext(values=False))

    def read(name: str) -> bytes:
        with database.begin() as reader:
            return reader.get(name.encode("latin-1")) or b""

    def fingerprint() -> str:  # each commit changes the pages at the start of the file
        return f"lmdb:{digest_files(path, files_of(path))}"

    return Store(names, read, fingerprint, database.close)


def files_of(path: Path) -> Files:
    """The files of a store."""
    if path.is_dir() and not (path / DATABASE).is_file():
        return scan(path)
    began, name = time.time_ns(), DATABASE if path.is_dir() else ""
    return Files([name], np.array([stamp((path / name).stat())], STAMP), began)


def fingerprint_content(path: Path) -> str:
    """Fingerprint of the store at a path."""
    with contextlib.closing(open_store(path)) as store:
        return store.fingerprint()


def fingerprint_store(
    path: Path,
    record: Path | None,
    suffix: str = "",
    content_of: Callable[[Path], str] = fingerprint_content,
) -> str:
    """Fingerprint of a store's content: changes with any byte, and is the same for a copy.

    The result is recorded (in a JSON file) with the sizes, times and inodes of the files, which are
    read again only if one of these has changed. A very large store is sampled; if its files were
    written since then, its fingerprint changes even if the samples do not. A path that does not
    exist has its recorded fingerprint, or one of the path itself.

    Args:
        path: The store, or a file.
        record: The JSON file; None records nothing.
        suffix: Text that is appended.
        content_of: Function that returns the fingerprint of the content at a path.

    Raises:
        UserError, OSError: If it cannot be read.
    """
    last = (None if record is None else read_json(record)) or {}
    if not path.exists():
        if not last:
            return f"missing:{path.absolute()}"
        log.info("path=%s does not exist; using its last fingerprint", path)
        return str(last["fingerprint"])
    files = files_of(path)
    seen = digest([*files.names, hashlib.sha256(files.stamps.tobytes()).hexdigest()])
    settled = bool((files.stamps["ctime"] < files.began - SETTLED).all())
    content = last.get("content", "")
    if last.get("files") != seen or not last.get("settled"):
        known, content = content, content_of(path)
        if ":sampled:" in content and known.startswith(content):
            content = known if last.get("files") == seen else f"{content}+{seen}"
    now = {"path": str(path), "fingerprint": content + suffix, "content": content, "files": seen,
           "settled": settled}  # fmt: skip
    if record is not None and now != last:
        with contextlib.suppress(OSError):
            write_json(record, now)
    return content + suffix


def digest_files(folder: Path, files: Files) -> str:
    """Hash of the names and contents of files.

    Of more than 4 GiB or 250,000 files only names, sizes and 4,096 evenly spaced blocks of 16 KiB
    are read, which takes seconds; the result then begins with ``sampled:``.
    """
    names, ends = files.names, np.cumsum(files.stamps["size"])
    total = int(ends[-1]) if names else 0
    if total <= HASHED_BYTES and len(names) <= HASHED_FILES:
        return digest(f"{name}\0{_digest_file(folder / name)}" for name in names)
    sizes = files.stamps["size"].tolist()
    lines = [f"{name}\0{size}" for name, size in zip(names, sizes, strict=True)]
    for start in np.linspace(0, max(0, total - BLOCK_BYTES), BLOCKS).astype(np.int64):
        i = np.searchsorted(ends[:-1], start, side="right")
        offset = int(start - ends[i] + sizes[i])
        lines.append(_digest_file(folder / names[i], offset, BLOCK_BYTES))
    return f"sampled:{digest(lines)}"


def _digest_file(path: Path, start: int = 0, size: int | None = None) -> str:
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(start)
            content = hashlib.sha256(file.read(size or 2**20))
            while not size and (block := file.read(2**20)):
                content.update(block)
    except OSError as error:  # one broken image among good ones
        return f"unreadable {error.errno}"
    return content.hexdigest()
