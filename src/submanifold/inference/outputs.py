"""Check output paths before the computation, and write outputs atomically."""

import os
import tempfile
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from submanifold.common.errors import UserError
from submanifold.common.files import atomic_write, locked, printable

if TYPE_CHECKING:
    import pandas as pd

FOLDER = ""
"""Suffix of a path that is a folder."""
CSV, PARQUET = ".csv", ".parquet"
TABLES = (CSV, PARQUET)


def check_output(option: str, path: Path, suffixes: tuple[str, ...]) -> None:
    """Check that an output can be written.

    Args:
        option: Command-line option of the path, such as ``--out``.
        path: A file, or a folder, which must be new or contain only hidden files.
        suffixes: Allowed suffixes, such as ``.npz``; :data:`FOLDER` for a folder.

    Raises:
        UserError: The output cannot be written.
    """
    given = f"{option}={printable(str(path))}"
    if path.suffix.lower() not in suffixes:
        allowed = [f"a file that ends in {each}" if each else "a folder name without a suffix"
                   for each in suffixes]  # fmt: skip
        suffix = printable(path.suffix) or "no suffix"
        raise UserError(f"{given}: expected {' or '.join(allowed)}, got {suffix}.")
    is_folder = path.suffix == FOLDER
    with explain_output(option, path):
        if path.exists() and not (path.is_dir() if is_folder else path.is_file()):
            kind = "folder" if is_folder else "file"
            raise UserError(f"{given}: expected a {kind}, got something else. Use another path.")
        if is_folder and path.exists() and any(path.glob("[!.]*")):
            raise UserError(f"{given}: expected an empty folder. Empty it, or use another path.")
        if path.is_file():
            path.open("ab").close()
        parents = [path.absolute(), *path.absolute().parents][0 if is_folder else 1 :]
        existing = next(each for each in parents if os.path.lexists(each))
        with tempfile.TemporaryFile(dir=existing, buffering=0) as probe:
            probe.write(b"0")


def check_not_input(option: str, path: Path, inputs: Iterable[Path]) -> None:
    """Check that an output does not replace an input.

    Raises:
        UserError: The output is the same file as one of the inputs.
    """
    for each in inputs:
        with suppress(OSError):  # one of the files does not exist
            if path.samefile(each):
                raise UserError(
                    f"{option}={printable(str(path))}: expected a path other than the inputs, got "
                    f"{printable(str(each))}. Use another path."
                )


@contextmanager
def output(option: str, path: Path) -> Iterator[Path]:
    """Yield a path for a file, or a folder for files; they appear at ``path`` on success.

    Raises:
        UserError: The output cannot be written; nothing is left behind.
    """
    with explain_output(option, path):
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
                with locked(path, option):
                    check_output(option, path, (FOLDER,))  # another command may write there, too
                    for file in sorted(Path(folder).iterdir()):
                        os.replace(file, path / file.name)
        except BaseException:
            if is_new:
                with suppress(OSError):
                    path.rmdir()
            raise


class TableWriter:
    """Writes a table to a new file in parts, as Parquet or CSV by its suffix.

    Args:
        path: The file.
        suffix: ``.csv`` or ``.parquet``.
    """

    def __init__(self, path: Path, suffix: str = PARQUET) -> None:
        self.path, self.suffix = path, suffix
        self._file: Any = None

    def __enter__(self) -> "TableWriter":
        """Return the writer."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def write(self, part: "pd.DataFrame") -> None:
        """Append rows; all parts have the same columns."""
        if self.suffix == CSV:
            first = self._file is None
            self._file = self._file or self.path.open("w", encoding="utf-8", newline="")
            part.to_csv(self._file, index=False, header=first)
            return
        import pyarrow as pa
        from pyarrow import parquet

        table = pa.Table.from_pandas(part, preserve_index=False)
        if self._file is None:
            self._file = parquet.ParquetWriter(self.path, table.schema)
        self._file.write_table(table.cast(self._file.schema))


def unused(name: str, names: Container[str]) -> str:
    """Return a name for a column of labels that no other column has."""
    while name in names:
        name += "_"
    return name


@contextmanager
def explain_output(option: str, path: Path) -> Iterator[None]:
    """Convert an OSError inside to a UserError that names the option and the path."""
    try:
        yield
    except OSError as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        raise UserError(
            f"{option}={printable(str(path))} cannot be written ({cause.strerror}). Use another "
            "path, or free space there."
        ) from error
