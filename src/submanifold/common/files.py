"""Atomic writes, checksums, and locks of folders."""

import errno
import glob
import hashlib
import json
import logging
import os
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from submanifold.common.errors import printable

log = logging.getLogger(__name__)

READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
STEM, SUFFIX = 30, 16  # characters in the name of a partial file, which is limited to 255 bytes


def table_name(name: str) -> str:
    r"""Escape a file name as :func:`printable`, and a first character that starts a formula.

    Example:
        >>> print(table_name("=1"))
        \x3d1
    """
    if name.startswith(("=", "+", "-", "@")):
        name = f"\\x{ord(name[0]):02x}{name[1:]}"
    return printable(name)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, and rename it to ``path`` on success.

    Each process and thread gets its own temporary path. It is removed on failure; the next writer
    of the file removes those that killed processes of this machine left behind. The folder of the
    file is created.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.stem[:STEM]}.{socket.gethostname()}-"
    for abandoned in path.parent.glob(f"{glob.escape(prefix)}*"):
        process = abandoned.name.removeprefix(prefix).partition("-")[0]
        if process.isdigit() and not is_alive(int(process)):
            abandoned.unlink(missing_ok=True)
    name = f"{prefix}{os.getpid()}-{threading.get_ident()}{path.suffix[:SUFFIX]}"
    partial = path.with_name(name)
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not name the file
        raise
    finally:
        remove_files([partial])


def remove_files(files: Iterable[Path]) -> None:
    """Remove the files that exist; unlinking a missing one fails in a read-only folder."""
    for file in files:
        if file.exists():
            file.unlink(missing_ok=True)


def write_checksum(path: Path) -> str:
    """Write the checksum of a file next to it, for :func:`is_unchanged`, and return it."""
    checksum = _checksum(path, path.stat().st_mtime_ns)
    checksum_path(path).write_text(checksum)
    return checksum


def is_unchanged(path: Path) -> bool:
    """Whether a file has its checksum, if one was written."""
    try:
        return checksum_path(path).read_text() == _checksum(path, path.stat().st_mtime_ns)
    except OSError:
        return True


def checksum_path(path: Path) -> Path:
    """Return the file next to another one that has its checksum."""
    return path.with_name(f".{path.name}.sha256")


@lru_cache
def _checksum(path: Path, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(content, indent=2))


def read_json(path: Path) -> Any:
    """Read a JSON file; None if it is missing or incomplete."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


@contextmanager
def locked(folder: str | Path, what: str) -> Iterator[None]:
    """Lock a folder against other processes and threads; wait while another one holds the lock.

    The lock is reentrant within a thread, and ends with its process. A read-only folder is not
    locked; neither is one whose file system has no locks, with a warning. ``what`` is computed in
    it, for the log.
    """
    folder = Path(folder).resolve()
    lock = FileLock(folder / ".lock", is_singleton=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            log.info("waiting for another run to finish %s", what)
            lock.acquire()
    except OSError as error:
        if error.errno not in READ_ONLY:
            log.warning("%s cannot be locked (%s): do not start a second run", folder, error)
    try:
        yield
    finally:
        if lock.lock_counter == 1:  # the outermost block; waiting processes notice the removal
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def is_alive(pid: int) -> bool:
    """Return whether a process of this machine is running."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True
