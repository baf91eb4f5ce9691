"""Atomic writes, folder locks, and clear errors for full or read-only disks."""

import errno
import hashlib
import json
import logging
import os
import re
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from submanifold.common.errors import UserError, printable

log = logging.getLogger(__name__)

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)

# Characters of a file's name in the name of its partial file, which is limited to 255 bytes.
STEM, SUFFIX = 30, 16


class WriteError(UserError, OSError):
    """A file cannot be written because its disk is full or read-only."""


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
def explain_write_errors(path: Path) -> Iterator[None]:
    """Convert errors of a full or read-only disk while writing ``path``.

    Raises:
        WriteError: The path's folder is full or read-only.
    """
    try:
        yield
    except WriteError:
        raise
    except Exception as error:
        number = _error_number(error)
        folder = next(folder for folder in path.absolute().parents if folder.exists())
        if number in DISK_FULL:
            reason = "full"
        elif number in READ_ONLY and not os.access(folder, os.W_OK):
            reason = "read-only"
        else:
            raise
        raise WriteError(
            f"{path.name} cannot be written: {folder} is {reason} ({os.strerror(number)}). Free "
            "some space, or use a folder on another disk, and repeat the command."
        ) from error


def _error_number(error: BaseException | None) -> int:
    """Return the errno of an error or of its first cause that has one, or 0."""
    while error is not None:
        in_text = re.search(r"\(os error (\d+)\)", str(error))  # safetensors
        if number := getattr(error, "errno", None) or (in_text and int(in_text[1])):
            return int(number)
        error = error.__cause__
    return 0


def make_folder(path: Path) -> None:
    """Create a folder and its parents if they are missing.

    Raises:
        WriteError: The disk is full or read-only.
    """
    with explain_write_errors(path):
        path.mkdir(parents=True, exist_ok=True)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, and rename it to ``path`` on success.

    Each process and thread gets its own temporary path. It is removed on failure; the next writer
    of the file removes those that killed processes of this machine left behind.

    Args:
        path: The file. Its folder is created.

    Raises:
        WriteError: The disk is full or read-only.
    """
    path = Path(path)
    make_folder(path.parent)
    prefix, suffix = f".{path.stem[:STEM]}.{socket.gethostname()}-", path.suffix[:SUFFIX]
    abandoned = re.compile(re.escape(prefix) + r"(\d+)-\d+" + re.escape(suffix))
    matches = ((file, abandoned.fullmatch(file.name)) for file in path.parent.glob(".*"))
    remove_files(file for file, match in matches if match and not is_alive(int(match[1])))
    partial = path.with_name(f"{prefix}{os.getpid()}-{threading.get_ident()}{suffix}")
    try:
        with explain_write_errors(path):
            yield partial
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
    finally:
        remove_files([partial])


def remove_files(files: Iterable[Path]) -> None:
    """Remove the files that exist.

    Raises:
        WriteError: Their folder is read-only.
    """
    for file in files:
        if file.exists():  # unlink fails in a read-only folder even if the file is missing
            with explain_write_errors(file):
                file.unlink(missing_ok=True)


def write_checksum(path: Path) -> str:
    """Write the checksum of a file next to it, for :func:`is_unchanged`, and return it."""
    checksum = file_checksum(path)
    checksum_path(path).write_text(checksum)
    return checksum


def is_unchanged(path: Path) -> bool:
    """Whether a file has its checksum, if one was written."""
    try:
        return checksum_path(path).read_text() == file_checksum(path)
    except OSError:
        return True


def checksum_path(path: Path) -> Path:
    """Return the file next to another one that has its checksum."""
    return path.with_name(f".{path.name}.sha256")


def file_checksum(path: Path) -> str:
    """Compute the SHA-256 of a file, once until it changes."""
    return _checksum(path, path.stat().st_mtime_ns)


@lru_cache
def _checksum(path: Path, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    text = json.dumps(content, indent=2)
    with atomic_write(path) as partial:
        partial.write_text(text)


def read_json(path: Path) -> Any:
    """Read a JSON file; None if it is missing or incomplete."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Lock a folder against other processes and threads; wait while another one holds the lock.

    The operating system releases the lock when its process ends. The lock is reentrant within a
    thread. A read-only folder is not locked; neither is one whose file system has no locks, with a
    warning.

    Args:
        folder: Created if it is missing. Its file ``.lock`` names the owner.
        what: What is computed in it, for the log, such as ``"stage_1"``.
    """
    folder = Path(folder).resolve()
    make_folder(folder)
    path = folder / ".lock"
    lock = FileLock(path, is_singleton=True)
    try:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            owner = path.read_text(errors="replace") or "just started"
            log.info("waiting for another run (%s) to finish %s", owner, what)
            lock.acquire()
        path.write_text(f"pid {os.getpid()} on {socket.gethostname()}")
    except OSError as error:
        if error.errno not in READ_ONLY:
            log.warning("%s cannot be locked (%s): do not start a second run", folder, error)
    try:
        yield
    finally:
        if lock.lock_counter == 1:  # the outermost block; waiting processes notice the removal
            path.unlink(missing_ok=True)
        lock.release()


def is_alive(pid: int) -> bool:
    """Return whether a process of this machine is running."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True
