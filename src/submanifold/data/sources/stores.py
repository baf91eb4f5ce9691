"""Encoded images by name, in a folder, a zip or an LMDB."""

from __future__ import annotations

import hashlib
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

import lmdb
import numpy as np

from submanifold.common.errors import UserError
from submanifold.data.images import MAX_BYTES, SUFFIXES, read_file
from submanifold.data.sources.scan import STAMP, Files, digest, is_hidden, scan, stamp, suffix

DATABASE = "data.mdb"
STORES = "a folder, a zip or an LMDB folder of images"

# Content beyond these limits is sampled: this many evenly spaced blocks of so many bytes.
HASHED_BYTES, HASHED_FILES = 2**32, 250_000
BLOCKS, BLOCK_BYTES = 4096, 2**14


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
    if not path.exists():
        raise UserError(
            f"path={path}: expected {STORES}, got a path that does not exist (current folder: "
            f"{Path.cwd()}). Correct it."
        )
    if not path.is_dir() and not path.is_file():
        raise UserError(f"path={path}: expected {STORES}, got a pipe, socket or device. Correct it")
    if (path / DATABASE).is_file():
        return _open_lmdb(path)
    return _open_folder(path) if path.is_dir() else _open_zip(path)


def _open_folder(path: Path) -> Store:
    files = scan(path)
    return Store(
        names=lambda: files.names,
        read=lambda name: read_file(path / name),
        fingerprint=lambda: f"folder:{_digest_files(path, files)}",
        skipped=files.skipped,
        others=files.others,
    )


def _open_zip(path: Path) -> Store:
    """Open a zip, which is read in place and never extracted."""
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # zipfile raises many kinds of errors for a broken file
        raise UserError(
            f"path={path}: expected {STORES}, got a file that is not a readable zip ({error}). "
            "Fetch it again."
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
    if not names and any(PureWindowsPath(name).name == DATABASE for name in members):
        archive.close()
        raise UserError(
            f"path={path}: expected {STORES}, got a zip of an LMDB, which cannot be read in place. "
            f"Run `unzip {path.name}` and set path to the folder that contains {DATABASE}."
        )

    def fingerprint() -> str:  # of the central directory: names, sizes and CRCs
        lines = (f"{name}\0{each.file_size}\0{each.CRC}" for name, each in sorted(members.items()))
        return f"zip:{path.stat().st_size}:{digest(lines)}"

    def read(name: str) -> bytes:
        return read_member(archive, members[name])

    return Store(lambda: names, read, fingerprint, archive.close, unsafe, others)


def _open_lmdb(path: Path) -> Store:
    """Open an LMDB whose values are images, as LSUN's; nothing is written to its folder."""
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
        return f"lmdb:{_digest_files(path, files_of(path))}"

    return Store(names, read, fingerprint, database.close)


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Unpack a member of a zip, in no more memory than its declared size of at most 256 MiB."""
    if member.file_size > MAX_BYTES:
        raise ValueError(f"{member.file_size} bytes exceed the limit of {MAX_BYTES}")
    with archive.open(member) as file:
        return file.read(member.file_size)  # read() would unpack up to 2 GiB before it checks


def files_of(path: Path) -> Files:
    """The files of a store."""
    if path.is_dir() and not (path / DATABASE).is_file():
        return scan(path)
    began, name = time.time_ns(), DATABASE if path.is_dir() else ""
    return Files([name], np.array([stamp((path / name).stat())], STAMP), began)


def fingerprint_content(path: Path) -> str:
    """Fingerprint of the store at a path."""
    with closing(open_store(path)) as store:
        return store.fingerprint()


def _digest_files(folder: Path, files: Files) -> str:
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
