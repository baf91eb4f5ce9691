"""Files that are whole or not there, and folders in which one process works at a time."""

import errno
import fcntl
import json
import logging
import os
import re
import shutil
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from submanifold.common.errors import UserError

log = logging.getLogger(__name__)

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_ALLOWED = (errno.EROFS, errno.EACCES, errno.EPERM)

# Characters of a file's name in the name of its partial file, which may have 255 bytes in all.
STEM, SUFFIX = 30, 16

_held = threading.local()


class WriteError(UserError, OSError):
    """A folder in which a file cannot be written: its disk is full, or it may only be read."""


def printable(text: str) -> str:
    r"""Escape names of files in a message, a page or a manifest: one line of valid UTF-8.

    A name is kept as Python reads it, with bytes that are not UTF-8 as lone surrogates, and is
    escaped where it is shown or written: bytes that are not UTF-8 (``\udcff``), and control and
    other invisible characters (``\n``). Escaping twice changes nothing.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def table_name(name: str) -> str:
    r"""Escape the name of a file as :func:`printable`, for a table too.

    A first character that makes a spreadsheet compute the cell is escaped (``\x3d`` for ``=``).
    """
    if name.startswith(("=", "+", "-", "@")):
        name = f"\\x{ord(name[0]):02x}{name[1:]}"
    return printable(name)


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Tell a write that a full or read-only disk refuses as something that the user can mend.

    Raises:
        WriteError: If the block could not write in the path's folder for such a reason.
    """
    try:
        yield
    except Exception as error:
        folder = path.absolute().parent
        if isinstance(error, WriteError) or (why := _why_not(error, folder)) is None:
            raise
        raise WriteError(
            f"{path.name} cannot be written: {why}. Change that, or move the folder to another "
            "disk and put a link to it there; then give the command again: it keeps what is "
            "finished and goes on"
        ) from error


def _why_not(error: Exception, folder: Path) -> str | None:
    there = next(each for each in (folder, *folder.parents) if each.exists())
    number = _number(error)
    if number in NO_ROOM:
        free = shutil.disk_usage(there).free // 10**6
        return f"{folder} has no room for it ({os.strerror(number)}; {free} MB are free there)"
    if number in NOT_ALLOWED and not os.access(there, os.W_OK):
        return f"{there} may only be read ({os.strerror(number)})"
    return None


def _number(error: BaseException | None) -> int | None:
    """The system's number of an error, or of what has caused it."""
    while error is not None:
        in_text = re.search(r"\(os error (\d+)\)", str(error))  # where safetensors has it
        number = getattr(error, "errno", None) or (int(in_text[1]) if in_text else None)
        if number is not None:
            return number
        error = error.__cause__
    return None


def make_folder(path: Path) -> None:
    """Make a folder and those above it, unless it is there.

    Raises:
        WriteError: If the disk is full or may only be read.
    """
    with explain_write_errors(path):
        path.mkdir(parents=True, exist_ok=True)


@contextmanager
def atomic_write(path: Path, keep: bool = False) -> Iterator[Path]:
    """Give a path beside a file to write to, which takes the file's name when all went well.

    No other writer is given the same path; the file's folder is made. It is removed when the block
    fails; what a killed process of this machine left is removed by the next writer of the file.
    `keep` leaves a file that another writer has put there meanwhile.

    Raises:
        WriteError: If the disk is full or may only be read.
    """
    path = Path(path)
    make_folder(path.parent)
    prefix, suffix = f".{path.stem[:STEM]}.{socket.gethostname()}-", path.suffix[:SUFFIX]
    # a database keeps a journal beside its file
    left = re.compile(re.escape(prefix) + r"(\d+)-\d+" + re.escape(suffix) + r"(-\w+)?")
    files = ((file, left.fullmatch(file.name)) for file in path.parent.glob(".*"))
    remove_files([file for file, match in files if match and not is_alive(int(match[1]))])
    partial = path.with_name(f"{prefix}{os.getpid()}-{threading.get_ident()}{suffix}")
    try:
        with explain_write_errors(path):
            yield partial
            sync_and_rename(partial, path, keep)
    finally:
        remove_files([partial, partial.with_name(f"{partial.name}-journal")])


def remove_files(files: Iterable[Path]) -> None:
    """Remove the files that are there.

    Raises:
        WriteError: If their folder may only be read.
    """
    for file in files:
        if file.exists():  # where nothing may be written, nothing that is not there may be removed
            with explain_write_errors(file):
                file.unlink(missing_ok=True)


def sync_and_rename(partial: Path, path: Path, keep: bool = False) -> None:
    """Bring a finished file to the disk and give it its name in one step."""
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    if keep:
        try:
            os.link(partial, path)
        except OSError:  # there is a file, or a filesystem has no hard links
            keep = path.exists()
    if not keep:
        os.replace(partial, path)


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    text = json.dumps(content, indent=2)
    with atomic_write(path) as partial:
        partial.write_text(text)


def read_json(path: Path) -> Any:
    """What a JSON file holds; None where there is no file or only a part of one."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Work in a folder while no other process does; wait for one that does, with a line in the log.

    The lock goes when its process ends, however it ends. A block inside a block of the same thread
    does not wait. Where the filesystem knows no locks, a warning says so and the work goes on; it
    does too where the folder may only be read, and nobody makes anything. The folder is made;
    `what` it is locked for, such as ``"stage_1"``, is in the log.
    """
    folder = Path(folder).resolve()
    held: set[Path] = _held.__dict__.setdefault("folders", set())
    if folder in held:
        yield
        return
    make_folder(folder)
    path = folder / ".lock"
    lock = _acquire(path, what)
    held.add(folder)
    try:
        yield
    finally:
        held.discard(folder)
        if lock is not None:
            path.unlink(missing_ok=True)  # before another can have it
            os.close(lock)


def is_locked(folder: Path) -> bool:
    """Whether a process works in a folder (:func:`locked`)."""
    try:
        lock = os.open(Path(folder) / ".lock", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # also where the filesystem knows no locks: it may be
        return True
    finally:
        os.close(lock)
    return False


def _acquire(path: Path, what: str) -> int | None:
    try:
        while True:
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.pread(lock, 200, 0).decode(errors="replace") or "just started"
                log.info("waiting for another run (%s) that is making %s", owner, what)
                fcntl.flock(lock, fcntl.LOCK_EX)
            if _is_at(lock, path):
                os.truncate(lock, 0)
                os.pwrite(lock, f"pid {os.getpid()} on {socket.gethostname()}".encode(), 0)
                return lock
            os.close(lock)  # its owner was done with it and removed it
    except OSError as error:
        if error.errno not in NOT_ALLOWED:
            log.warning("%s cannot be locked (%s): start no second run of it now", path, error)
        return None


def _is_at(lock: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), path.stat())
    except FileNotFoundError:  # also where it goes just now: no reason to go on without a lock
        return False


def is_alive(pid: int) -> bool:
    """Whether a process of this machine is running."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True
