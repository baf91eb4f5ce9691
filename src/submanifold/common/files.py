"""Atomic writes, and locks of folders."""

import errno
import glob
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
STEM, SUFFIX = 30, 16  # characters in the name of a temporary file, which is limited to 255 bytes
ABANDONED = 86_400  # seconds without a write after which nobody writes a temporary file


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, and rename it to ``path`` on success.

    A file that exists is whole. Its folder is created. A temporary file is removed on failure; that
    of a killed process by a later writer of the file, when it is a day old.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    stem, suffix = f".{path.stem[:STEM]}-", path.suffix[:SUFFIX]
    with suppress(OSError):  # another writer may remove the same file
        for left in path.parent.glob(f"{glob.escape(stem)}{'[0-9a-f]' * 32}{glob.escape(suffix)}"):
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink()
    temporary = path.with_name(f"{stem}{uuid4().hex}{suffix}")
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
    locked; neither is one whose file system has no locks, with a warning. The log says that another
    run finishes ``what``.
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
