"""Check output paths before the computation, and write outputs atomically."""

import os
import tempfile
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

from submanifold.common.errors import UserError, unexpected
from submanifold.common.files import atomic_write

if TYPE_CHECKING:
    import pandas as pd

FOLDER = ""  #: Suffix of a path that is a folder.
TABLES = (".csv", ".parquet")


def check_output(
    option: str,
    path: Path,
    suffixes: tuple[str, ...],
    inputs: Iterable[str | Path] = (),
) -> None:
    """Raise a UserError unless the output of an option can be written, and replaces no input.

    The path is a file, or a folder (suffix :data:`FOLDER`), which must be new or contain only
    hidden files. Inputs are files, and folders, of which no file may be the output.
    """
    name, is_folder = f"{option}={path}", path.suffix == FOLDER
    if path.suffix.lower() not in suffixes:
        names = [suffix or "a folder name without a suffix" for suffix in suffixes]
        got = path.suffix or "no suffix"
        raise UserError(f"{name}: expected {' or '.join(names)}, got {got}. Use another path.")
    try:
        if path.exists() and not (path.is_dir() if is_folder else path.is_file()):
            kind = "folder" if is_folder else "file"
            raise UserError(f"{name}: expected a {kind}, got something else. Use another path.")
        if is_folder and any(path.glob("[!.]*")):
            raise UserError(f"{name}: expected an empty folder. Empty it, or use another path.")
        places = [path, *path.absolute().parents] if path.is_file() else []
        for file in filter(os.path.exists, inputs):
            if any(place.samefile(file) for place in places):
                raise unexpected(name, "a path other than the inputs", file, "Use another path")
        parents = [path.absolute(), *path.absolute().parents][0 if is_folder else 1 :]
        tempfile.TemporaryFile(dir=next(filter(os.path.lexists, parents))).close()
    except OSError as error:
        problem = f"cannot be written ({error.strerror})"
        raise UserError(f"{name} {problem}. Use another path.") from error


@contextmanager
def output(option: str, path: Path) -> Iterator[Path]:
    """Yield a path for a file, or a folder for files; they appear at ``path`` on success only."""
    if path.suffix != FOLDER:
        with atomic_write(path) as partial:
            yield partial
        return
    is_new = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    try:
        # inside the folder, which may be the working directory or the root of a file system
        with tempfile.TemporaryDirectory(prefix=".", dir=path) as folder:
            yield Path(folder)
            check_output(option, path, (FOLDER,))  # another command may write there
            for file in sorted(Path(folder).iterdir()):
                os.replace(file, path / file.name)
    except BaseException:
        if is_new:
            with suppress(OSError):
                path.rmdir()
        raise


def default_output(stem: str, *ends: str) -> Path:
    """Return the default file of a command, with a number if it or one next to it exists.

    The ends are that of the file, such as ``.csv``, and those of other files that are written.
    """
    stems = chain([stem], (f"{stem}-{number}" for number in count(2)))
    free = next(name for name in stems if not any(os.path.lexists(f"{name}{end}") for end in ends))
    return Path(f"{free}{ends[0]}")


def without_formulas(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Put an apostrophe before text that a spreadsheet would compute, but not before numbers."""

    def escape(value: object) -> object:
        if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@")):
            return value
        try:
            float(value)
        except ValueError:
            return f"'{value}"
        return value

    return frame.apply(lambda column: column.map(escape) if column.dtype.kind == "O" else column)


def unused(name: str, names: Container[str]) -> str:
    """Return a name for a column of labels that no other column has."""
    while name in names:
        name += "_"
    return name
