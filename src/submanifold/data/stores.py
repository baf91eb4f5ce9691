"""Named bytes in a folder, a zip or an LMDB: where encoded images lie."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Protocol, TypeVar, cast

import lmdb

from submanifold.errors import UserError

T = TypeVar("T")

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")

# A zip may declare any size for a member; no photograph comes near this one.
MAX_BYTES = 512 * 2**20


class Store(Protocol):
    """Encoded images under sorted names.

    Attributes:
        skipped: `{"name", "reason"}` of each member that is never read.
    """

    skipped: list[dict[str, str]]

    def names(self) -> list[str]:
        """All images, sorted."""

    def read(self, name: str) -> bytes:
        """One image's bytes, as stored; safe to call from several threads."""

    def fingerprint(self) -> str:
        """An identity of the content that needs no image's bytes and ignores file times."""

    def close(self) -> None:
        """Let go of open files."""


def is_image_name(name: str) -> bool:
    """Whether a relative name has an image's suffix and nothing hidden on its way."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden


class FolderStore:
    """Images in a tree of files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.skipped: list[dict[str, str]] = []

    def names(self) -> list[str]:
        """All images, as sorted relative names with forward slashes."""
        found = []
        for folder, below, files in os.walk(self.path):
            below[:] = [name for name in below if not name.startswith(".") and name != "__MACOSX"]
            base = Path(folder).relative_to(self.path)
            found += [n for f in files if is_image_name(n := (base / f).as_posix())]
        return sorted(found)

    def read(self, name: str) -> bytes:
        """One file's bytes."""
        return (self.path / name).read_bytes()

    def fingerprint(self) -> str:
        """Digest of the sorted (relative name, size) pairs."""
        sizes = (f"{name}\0{_size(self.path / name)}" for name in self.names())
        return f"folder:{_digest(sizes)}"

    def close(self) -> None:
        """Nothing stays open."""


class ZipStore:
    """Images in a zip, read in place: nothing is ever extracted to disk.

    Raises:
        UserError: If the file is not a readable zip.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(
                f"data.path={path} is not a readable zip ({error}); give a whole zip or a folder "
                "of images as data.path"
            ) from None
        self._members = {info.filename: info for info in self._zip.infolist() if not info.is_dir()}
        unsafe = sorted(name for name in self._members if _is_unsafe(name))
        self.skipped = [{"name": name, "reason": "unsafe path"} for name in unsafe]

    def names(self) -> list[str]:
        """All images whose path stays inside the zip, sorted."""
        return sorted(n for n in self._members if is_image_name(n) and not _is_unsafe(n))

    def read(self, name: str) -> bytes:
        """One member's bytes, its CRC checked.

        Raises:
            ValueError: If it declares more than `MAX_BYTES`.
        """
        member = self._members[name]
        if member.file_size > MAX_BYTES:
            raise ValueError(f"unpacks to {member.file_size} bytes")
        return self._zip.read(member)

    def fingerprint(self) -> str:
        """Digest of the central directory: names, sizes and CRCs, with the file's size."""
        rows = (f"{n}\0{m.file_size}\0{m.CRC}" for n, m in sorted(self._members.items()))
        return f"zip:{_size(Path(self._zip.filename or ''))}:{_digest(rows)}"

    def close(self) -> None:
        """Close the zip."""
        self._zip.close()


class LmdbStore:
    """Images as the values of an LMDB, as LSUN ships them.

    Raises:
        UserError: If the folder does not hold a readable LMDB.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.skipped: list[dict[str, str]] = []
        try:
            self._env = lmdb.open(str(path), readonly=True, lock=False, readahead=False)
        except lmdb.Error as error:
            raise UserError(
                f"data.path={path} is not a readable LMDB ({error}); give the folder that holds "
                "a whole data.mdb as data.path"
            ) from None

    def names(self) -> list[str]:
        """All keys, sorted."""
        with self._env.begin() as reader:
            # latin-1 maps every byte to one character and back.
            return sorted(key.decode("latin-1") for key in reader.cursor().iternext(values=False))

    def read(self, name: str) -> bytes:
        """One value."""
        with self._env.begin() as reader:
            return reader.get(name.encode("latin-1")) or b""

    def fingerprint(self) -> str:
        """The database's size: hashing it would read all of it."""
        return f"lmdb:{_size(self.path / 'data.mdb')}"

    def close(self) -> None:
        """Close the database; LMDB refuses to open one twice in a process."""
        self._env.close()


def open_store(path: Path) -> Store:
    """The store that fits what lies at a path.

    Raises:
        UserError: If nothing lies there, or neither a folder nor a zip.
    """
    if not path.exists():
        raise UserError(
            f"data.path={path} does not exist (looked from {Path.cwd()}); give a folder, a zip or "
            "an LMDB folder of images as data.path"
        )
    if (path / "data.mdb").is_file():
        return LmdbStore(path)
    return FolderStore(path) if path.is_dir() else ZipStore(path)


def of_content(read: Callable[[Path], T], path: Path) -> T:
    """What `read` finds at a path; not read again while it is a file of that size and time.

    The index of CelebA's zip takes a second, and every one of many experiments asks for it.
    """
    if not path.is_file():
        return read(path)
    stat = path.stat()
    return cast(T, _read_once(read, path, stat.st_size, stat.st_mtime_ns))


@lru_cache(maxsize=16)
def _read_once(read: Callable[[Path], Any], path: Path, size: int, time: int) -> Any:
    return read(path)


def _is_unsafe(name: str) -> bool:
    # The Windows flavour also splits at "/", so it sees both systems' ways out of a folder.
    path = PureWindowsPath(name)
    return bool(path.drive or path.root or ".." in path.parts)


def _size(path: Path) -> int:
    return path.stat().st_size


def _digest(rows: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()[:32]
