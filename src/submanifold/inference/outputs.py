"""What the command writes: checked before the work, and written completely or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from submanifold.common.errors import UserError
from submanifold.common.files import atomic_write, printable

FOLDER = ""
"""The suffix that stands for a folder of files."""


def check_output(option: str, path: Path, suffixes: tuple[str, ...]) -> None:
    """Check that a file, or a folder of files, can be written.

    Args:
        option: What names the path, such as ``--out``.
        path: The file; or the folder, which is new or empty except for hidden files.
        suffixes: Those allowed, such as ``.npz``, and :data:`FOLDER` if it may be a folder.

    Raises:
        UserError: If it cannot.
    """
    given = f"{option}={printable(str(path))}"
    kinds = [f"a file that ends in {suffix}" for suffix in suffixes if suffix != FOLDER]
    kinds += ["a folder, whose name has no suffix"] if FOLDER in suffixes else []
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{given}: expected {' or '.join(kinds)}, got {_suffix(path)}.")
    try:
        exists = path.exists()
    except OSError as error:  # such as a name that is too long, or a folder that is a file
        raise UserError(
            f"{given} cannot be written ({error.strerror}). Give another path."
        ) from None
    is_folder = path.suffix == FOLDER
    expected = "a folder" if is_folder else "a file"
    found = "a folder" if path.is_dir() else "a file" if path.is_file() else "a device or a pipe"
    if exists and found != expected:
        raise UserError(f"{given}: expected {expected}, got {found}. Give another path.")
    if exists and is_folder and any(not name.startswith(".") for name in os.listdir(path)):
        raise UserError(
            f"{given}: expected a new or an empty folder, got one that holds files. Empty it, or "
            "give another path."
        )
    absolute = path.absolute()
    above = [absolute, *absolute.parents] if is_folder else [*absolute.parents]
    there = next(each for each in above if os.path.lexists(each))
    if not there.is_dir():
        above_it = printable(str(there))
        raise UserError(f"{given} cannot be written: {above_it} is no folder. Give another path.")
    longest = os.pathconf(there, "PC_NAME_MAX")
    if any(len(os.fsencode(name)) > longest for name in absolute.relative_to(there).parts):
        raise UserError(
            f"{given}: expected names of at most {longest} bytes, got a longer one. Give a shorter "
            "path."
        )
    writable = os.access(there, os.W_OK | os.X_OK)
    if not writable or (exists and not os.access(path, os.W_OK)):
        raise UserError(
            f"{given} cannot be written: {printable(str(path if writable else there))} is "
            "read-only. Give another path."
        )
    if not shutil.disk_usage(there).free:
        raise UserError(f"{given} cannot be written: its disk is full. Give another path.")


def check_not_input(option: str, path: Path, inputs: Iterable[Path]) -> None:
    """Check that writing a path would replace none of the files that are read.

    Raises:
        UserError: If it would.
    """
    if not path.exists():
        return
    stat = path.stat()
    for each in inputs:
        with suppress(OSError):  # one that is gone cannot be replaced
            if os.path.samestat(stat, each.stat()):
                raise UserError(
                    f"{option}={printable(str(path))}: expected another file than the inputs, got "
                    f"{printable(str(each))}. Give another path."
                )


@contextmanager
def output(option: str, path: Path) -> Iterator[Path]:
    """Give a path to write a file to, or a folder to write files in: all appear at the end.

    Raises:
        UserError: If it cannot be written; then nothing is left.
    """
    try:
        if path.suffix == FOLDER:
            with _folder(path) as partial:
                yield partial
        else:
            with atomic_write(path) as partial:
                yield partial
    except OSError as error:
        # WriteError has the system's error as its cause
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        raise UserError(
            f"{option}={printable(str(path))} cannot be written ({cause.strerror}). Give another "
            "path, or free space there."
        ) from error


@contextmanager
def _folder(path: Path) -> Iterator[Path]:
    new = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    try:
        # inside the folder, which may be the current one or another filesystem's root
        with tempfile.TemporaryDirectory(prefix=".", dir=path) as partial:
            yield Path(partial)
            for file in sorted(Path(partial).iterdir()):
                os.replace(file, path / file.name)
    except BaseException:
        if new:
            with suppress(OSError):
                path.rmdir()
        raise


def _suffix(path: Path) -> str:
    return printable(path.suffix) or "no suffix"
