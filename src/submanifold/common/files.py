"""Atomic writes, hashes, and locks of folders."""

import errno
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
DISK = (*READ_ONLY, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Errors of a disk or of permissions; another OSError in a computation may be a defect of ours."""


def expand_user(path: str | Path) -> Path:
    """Expand ``~`` to the home folder; unlike in pathlib, ``~`` before no user's name is kept."""
    return Path(os.path.expanduser(path))


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, and rename it to ``path`` on success.

    A file that exists is whole. A killed process leaves its temporary file, which nobody reads.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # a name is limited to 255 bytes
    temporary = path.with_name(f".{path.stem[:30]}-{uuid4().hex}{path.suffix[:16]}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not name the file
        raise
    finally:
        with suppress(OSError):  # unlinking a missing file fails in a read-only folder
            temporary.unlink()


def hash_file(path: Path) -> str:
    """SHA-256 of a file, read once in a process unless its size or its time of change differs."""
    status = path.stat()
    return _hash_once(path, status.st_size, status.st_mtime_ns)


@lru_cache
def _hash_once(path: Path, size: int, changed: int) -> str:
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
def locked(folder: str | Path, what: str, name: str = ".lock") -> Iterator[None]:
    """Lock a folder against other processes and threads; wait while another one holds the lock.

    The lock is reentrant within a thread, and ends with its process. A read-only folder is not
    locked; neither is one without file locks, with a warning. ``what`` is computed, for the log.
    """
    folder = Path(folder).resolve()
    lock = FileLock(folder / name, is_singleton=True)
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


def is_locked(path: Path) -> bool:
    """Whether a living process, on this or another machine, holds a lock by its file."""
    try:
        with FileLock(path, blocking=False) if path.is_file() else nullcontext():
            return False
    except OSError:  # held, or on a read-only disk
        return True
