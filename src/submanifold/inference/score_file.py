"""Scores of images or rows in a file, written batch by batch; interrupted commands are resumed."""

import csv
import io
import json
import logging
from array import array
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from submanifold.common.errors import UserError
from submanifold.common.files import printable
from submanifold.common.progress import ProgressBar
from submanifold.common.threads import ThreadTuner
from submanifold.inference.inputs import Inputs, is_table
from submanifold.inference.outputs import PARQUET, TableWriter, explain_output, output, unused
from submanifold.inference.scoring import load_calibration, score_event_batch
from submanifold.inference.training_events import training_share
from submanifold.models import Model

log = logging.getLogger(__name__)
ORDER = "anomaly_score"
"""The last column of the partial file, which the finished file does not have."""
CHUNK = 2**16
"""Rows that are converted at a time."""


class ScoreFile:
    """A table with one row per image or row. It is in ``<file>.part`` until it is complete.

    The first line of the partial file has the settings, the others are the table. A continued table
    starts at the end of the last complete batch, so that it equals one without an interruption.

    Args:
        out: The file, CSV or Parquet.
        files: The images or rows.
        settings: JSON-able settings on which the rows depend.
        resume: Whether to continue a partial file; otherwise it is replaced.

    Attributes:
        numbers: Numbers of the images or rows in the files, by row.
        p_values: P-values by row.
        scores: Anomaly scores by row.

    Raises:
        UserError: The partial file was written with other settings or for other images, or cannot
            be written.
    """

    def __init__(self, out: Path, files: Inputs, settings: Mapping[str, Any], resume: bool) -> None:
        self.out, self.part = out, out.with_name(f"{out.name}.part")
        self._files = files
        self.numbers, self.p_values, self.scores = array("q"), array("d"), array("d")
        first = json.dumps(settings) + "\n"
        kept = self._read(first, settings["batch_size"]) if resume and self.part.exists() else 0
        with explain_output("--out", out):
            out.parent.mkdir(parents=True, exist_ok=True)
            # unbuffered, so that closing the file writes nothing after an error
            self._file = self.part.open("r+b" if kept else "wb", buffering=0)
            self._file.truncate(kept)
            self._file.seek(kept)
            if not kept:
                self._write(first)

    def _read(self, first: str, batch_size: int) -> int:
        """Read the complete batches of the partial file, and return their length in bytes."""
        name = printable(str(self.part))
        with self.part.open(encoding="utf-8", errors="replace", newline="") as file:
            complete = sum(line.endswith("\n") for line in file)
            kept = (complete - 2) // batch_size * batch_size  # equal batches give equal rows
            file.seek(0)
            if next(file, None) != first:
                raise UserError(
                    "--resume: expected the model and the options of the interrupted command "
                    f"({name}), got others. Repeat that command, or omit --resume to start again."
                )
            if kept <= 0:
                return 0
            header = next(file)
            size = len(first.encode()) + len(header.encode())
            column = next(csv.reader([header])).index("p_value")
            numbers = iter(range(len(self._files)))
            for line in islice(file, kept):
                size += len(line.encode())
                row = next(csv.reader([line]))
                found = (each for each in numbers if str(self._files.names[each]) == row[0])
                if (number := next(found, None)) is None:
                    raise UserError(
                        f"--resume: expected the {self._files.unit} of the interrupted command "
                        f"({name}), got others: {row[0]} is missing. Omit --resume to start again."
                    )
                self._append(number, float(row[column]), float(row[-1]))
        return size

    @property
    def next_number(self) -> int:
        """Number of the image or row after the last one."""
        return self.numbers[-1] + 1 if self.numbers else 0

    def append(self, numbers: Sequence[int], columns: Mapping[str, np.ndarray]) -> None:
        """Write the rows of a batch.

        Args:
            numbers: Numbers of the images or rows.
            columns: Values by column, including the p-values and the anomaly scores.
        """
        ordered = {name: columns[name] for name in columns if name != ORDER} | {
            ORDER: columns[ORDER]
        }
        values = zip(*(each.tolist() for each in ordered.values()), strict=True)
        names = (self._files.names[number] for number in numbers)
        label = unused(self._files.label, ordered)
        rows: list[Sequence[Any]] = [] if self.numbers else [[label, *ordered]]
        rows += [[name, *map(_text, each)] for name, each in zip(names, values, strict=True)]
        with explain_output("--out", self.out):
            csv.writer(text := io.StringIO(), lineterminator="\n").writerows(rows)
            self._write(text.getvalue())
        for number, p_value, score in zip(numbers, columns["p_value"], columns[ORDER], strict=True):
            self._append(number, float(p_value), float(score))

    def finish(self) -> None:
        """Write the finished file, unless there are no rows, and remove the partial one."""
        self._file.close()
        if not self.numbers:
            self.part.unlink()
            return
        with output("--out", self.out) as partial:
            if self.out.suffix.lower() == PARQUET:
                self._write_parquet(partial)
            else:
                with (
                    self.part.open(encoding="utf-8") as lines,
                    partial.open("w", encoding="utf-8") as file,
                ):
                    next(lines)  # the settings
                    file.writelines(line.rpartition(",")[0] + "\n" for line in lines)
        self.part.unlink()

    def _write_parquet(self, path: Path) -> None:
        """Convert the partial file."""
        import pandas as pd  # slow to import

        with self.part.open("rb") as lines:
            next(lines)  # the settings
            label, *others = next(csv.reader([next(lines).decode()]))
            options: dict[str, Any] = {
                "names": [label, *others], "chunksize": CHUNK, "keep_default_na": False,
                "na_values": {name: [""] for name in others},
                "dtype": {label: "int64" if self._has_numbers else "string"},
            }  # fmt: skip
            with pd.read_csv(lines, **options) as parts, TableWriter(path) as writer:
                for part in parts:
                    writer.write(part.drop(columns=ORDER))

    @property
    def _has_numbers(self) -> bool:
        names = self._files.names
        return isinstance(names, range) or getattr(names, "dtype", np.dtype(object)).kind in "iu"

    def _write(self, text: str) -> None:
        left = memoryview(text.encode())
        while left:
            left = left[self._file.write(left) :]

    def _append(self, number: int, p_value: float, score: float) -> None:
        self.numbers.append(number)
        self.p_values.append(p_value)
        self.scores.append(score)


def _text(value: Any) -> Any:
    return "" if value != value else value  # NaN, as pandas writes it


def score_files(
    model: Model, files: Inputs, table: ScoreFile, alpha: float | None, exact: bool,
    batch_size: int,
) -> None:  # fmt: skip
    """Score the images or rows that are not in a table yet, and finish it.

    Args:
        model: A calibrated model.
        files: The images or rows.
        table: The file of the scores.
        alpha: False-positive rate of the column ``ood``; None omits the column.
        exact: Whether to compute the nearest projections as well.
        batch_size: Number of images or rows per batch.

    Raises:
        UserError: None of them can be read, or the file cannot be written.
    """
    calibration = load_calibration(model, alpha)
    score: Callable[..., dict[str, np.ndarray]] = score_event_batch
    if is_table(model):
        from submanifold.inference.tables import score_rows  # imports pandas

        score = score_rows
    hashes = [np.empty(0, np.uint64)]
    first, tuner = table.next_number, ThreadTuner(next(model.parameters()).device)
    with ProgressBar("scoring", files.unit, len(files), first) as progress:
        for numbers, batch in files.batches(batch_size, first):
            with tuner.unit(len(batch)):
                columns = score(model, calibration, batch, exact, hashes)
            if alpha is not None:
                columns["ood"] = columns["p_value"] <= alpha
            table.append(numbers, columns)
            progress.update(numbers[-1] + 1 - first)
            first = numbers[-1] + 1
    table.finish()
    files.check_readable(len(table.numbers))
    share = training_share([*calibration.training], np.concatenate(hashes))
    if share > 0.1:
        log.warning("INPUTS: expected new %s, got about %.0f%% training %s, whose p-values are too "
                    "large. Score others.", files.unit, 100 * share, files.unit)  # fmt: skip
