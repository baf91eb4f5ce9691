"""One look at a table before it is prepared: its splits, and the preprocessor of its columns."""

from __future__ import annotations

import fnmatch
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from submanifold.common.errors import UserError, did_you_mean
from submanifold.common.files import printable, read_json, write_json
from submanifold.data.sources.stores import Files, digest, digest_files, files_of, fingerprint_store
from submanifold.data.splits import SPLITS, assign_groups, share_out
from submanifold.data.tables.columns import Column, named
from submanifold.data.tables.files import (
    CHUNK_VALUES,
    TableFile,
    explained,
    frame_file,
    list_files,
    open_files,
)
from submanifold.data.tables.preprocessor import Preprocessor
from submanifold.data.tables.statistics import Statistics, refuse_missing

if TYPE_CHECKING:
    from submanifold.data.settings import TableSettings

log = logging.getLogger(__name__)

SCAN_VERSION = 1
"""Increase it if the same table and settings would give another preprocessor or other splits."""
MIN_DEFAULT, MAX_DEFAULT = 20, 100_000
"""Rows of the validation and of the test data without data.counts. P-values need 20 rows."""
CACHED_BYTES = 2**27
"""Tables up to this size are read once, and kept in memory until they are prepared."""
LABEL_NAMES = ("class", "label", "labels", "target", "y", "anomaly", "outlier", "is_anomaly")
FEW_LABELS = 20
MIN_FEATURES = 2


@dataclass(frozen=True)
class Scan:
    """What is known of a table before it is prepared.

    Attributes:
        preprocessor: The transformation, fitted to the training rows.
        counts: Numbers of rows by split.
        groups: Numbers of groups by split, or None.
        dropped: Number of rows with missing values that are left out.
        duplicates: Numbers of validation and test rows that equal a training row.
        notes: Remarks for the user.
        condition: Names of the columns that the density of the others is given.
    """

    preprocessor: Preprocessor
    counts: dict[str, int]
    groups: dict[str, int] | None
    dropped: int
    duplicates: dict[str, int]
    notes: list[str]
    condition: list[str] = field(default_factory=list)

    @property
    def inputs(self) -> Preprocessor:
        """The preprocessor of the columns that the model describes."""
        return self.preprocessor.split(self.condition)[0]

    @property
    def context(self) -> Preprocessor | None:
        """The preprocessor of the columns of the condition, if there are any."""
        return self.preprocessor.split(self.condition)[1] if self.condition else None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serializable description."""
        return {**vars(self), "preprocessor": self.preprocessor.to_dict()}

    def describe(self) -> list[dict[str, Any]]:
        """Describe the columns for the manifest: name, kind, step, bits and range."""
        described = []
        for each in self.preprocessor.columns:
            bits = None if each.bits is None else round(each.bits, 2)
            found = {"name": each.feature, "kind": each.kind, "step": each.step, "bits": bits}
            if not each.names:
                found |= {"low": each.low, "high": each.high}
            described.append({name: value for name, value in found.items() if value is not None})
        return described

    @classmethod
    def from_dict(cls, description: dict[str, Any]) -> Scan:
        """Rebuild a scan from :meth:`to_dict`."""
        preprocessor = Preprocessor.from_dict(description["preprocessor"])
        return cls(**{**description, "preprocessor": preprocessor})


def scan(settings: TableSettings, raw_folder: Path | None = None) -> Scan:
    """Read a table once to fit its preprocessor to the training rows.

    The result is kept for this process, and recorded in the raw folder for others.

    Args:
        settings: The table and its columns.
        raw_folder: Folder of recorded results; None neither reads nor writes them.

    Raises:
        UserError: The table cannot be read or split, or a column cannot be used.
    """
    record, key = None, scan_key(settings, raw_folder)
    if key in _scans:
        return _scans[key]
    if raw_folder is not None:
        record = raw_folder / ".fingerprints" / f"scan-{key}.json"
        if found := read_json(record):
            return _keep(key, Scan.from_dict(found))
    result = _keep(key, Survey.of(settings, raw_folder).scan())
    if record is not None:
        with suppress(OSError):  # a read-only folder
            write_json(record, result.to_dict())
    return result


def scan_key(settings: TableSettings, raw_folder: Path | None = None) -> str:
    """Identity of a table and of the settings on which its arrays depend."""
    content = json.dumps(settings.content, sort_keys=True)
    return digest([content, str(SCAN_VERSION), fingerprint(settings, raw_folder)])


def fingerprint(settings: TableSettings, raw_folder: Path | None) -> str:
    """Identity of the content of a table's files; the same for a copy.

    Raises:
        UserError: A file cannot be read.
    """
    if settings.source != "table":
        return f"scikit-learn {version('scikit-learn')}:{settings.source}"
    found = []
    for path in list_files(settings.paths):
        record = None
        if raw_folder is not None:
            record = raw_folder / ".fingerprints" / f"table-{digest([str(path.absolute())])}.json"
        try:
            found.append(fingerprint_store(path, record, content_of=_content))
        except OSError as error:
            raise UserError(
                f"path={path}: expected a file that can be read, got an error ({error}). Correct "
                "it."
            ) from error
    return f"table:{found[0] if len(found) == 1 else digest(found)}"


def _content(path: Path) -> str:
    return digest_files(path, Files([""], files_of(path).stamps, 0))  # not of its name


def _keep(key: str, result: Scan) -> Scan:
    if len(_scans) >= 16:
        _scans.clear()
    _scans[key] = result
    return result


_scans: dict[str, Scan] = {}
_surveys: dict[str, Survey] = {}


class Survey:
    """The rows of a table: their splits, labels and groups.

    Attributes:
        inputs: Names of the columns that the model describes.
        split: Number of the split of each row, int8 (N,); -1 for rows that are left out.
        position: Index of each row in the array of its split, (N,).
        labels: Labels (N,), or None.
        groups: Numbers of groups (N,), or None.
    """

    def __init__(self, settings: TableSettings) -> None:
        self.settings = settings
        self.files = _open(settings)
        self.inputs = _select(settings, self.files[0].columns)
        self._frames: list[pd.DataFrame] | None = []
        metadata = [settings.label_column, settings.groups, settings.split_column]
        self._metadata = list(dict.fromkeys(each for each in metadata if each is not None))
        known = self.files[0].columns
        for setting, name in (("label", settings.label), ("groups", settings.groups),
                              ("split", settings.split_column)):  # fmt: skip
            if name is not None and name not in known:
                raise UserError(
                    f"{setting}: expected a column of the table ({named(known)}), got {name}."
                    f"{did_you_mean(name, known)}"
                )
        self._read_rows()
        self._assign()

    @classmethod
    def of(cls, settings: TableSettings, raw_folder: Path | None = None) -> Survey:
        """Return the survey of a table; the last one is kept, with small tables in memory."""
        key = scan_key(settings, raw_folder)
        if key not in _surveys:
            cls.forget()
            _surveys[key] = cls(settings)
        return _surveys[key]

    @staticmethod
    def forget() -> None:
        """Free the memory of the last survey."""
        _surveys.clear()

    def frames(self) -> Iterator[tuple[int, pd.DataFrame]]:
        """Yield chunks of rows, with the number of the first row of each."""
        first = 0
        for chunk in self._chunks():
            end = first + len(chunk)
            yield first, chunk.set_axis(pd.RangeIndex(first + 1, end + 1))  # rows of messages
            first = end

    def _chunks(self) -> Iterator[pd.DataFrame]:
        if self._frames:
            yield from self._frames
            return
        columns = list(dict.fromkeys([*self.inputs, *self._metadata]))
        for file in self.files:
            yield from _explained_chunks(file, columns)

    def scan(self) -> Scan:
        """Fit the preprocessor to the training rows, and count duplicated rows."""
        settings = self.settings
        statistics = Statistics(
            settings.kinds, settings.categorical, settings.missing, settings.scale
        )
        for first, chunk in self.frames():
            training = self.split[first : first + len(chunk)] == 0
            statistics.update(chunk.loc[training, self.inputs])
        preprocessor = Preprocessor(statistics.columns())
        condition = _condition(settings, self.inputs)
        varying = len(preprocessor.split(condition)[0].varying)
        least = 1 if condition else MIN_FEATURES
        if varying < least:
            raise UserError(
                f"columns: expected at least {least} columns with different values, got "
                f"{varying} of {len(self.inputs)}. A manifold needs several; use a table with more."
            )
        if condition and not preprocessor.split(condition)[1].varying:
            raise UserError(
                f"condition: expected columns with different values, got {named(condition)}. "
                "Omit it, or name others."
            )
        counts = {name: int((self.split == n).sum()) for n, name in enumerate(SPLITS)}
        group_counts = None
        if self.groups is not None:
            group_counts = {name: len(np.unique(self.groups[self.split == n]))
                            for n, name in enumerate(SPLITS)}  # fmt: skip
        duplicates = self._duplicates()
        dropped = int(self.incomplete.sum())
        notes = _notes(preprocessor, counts, duplicates, dropped, settings)
        return Scan(preprocessor, counts, group_counts, dropped, duplicates, notes, condition)

    def by_split(self, values: np.ndarray) -> dict[str, list[Any]]:
        """Return JSON-serializable values (N,) by split, in the order of the arrays."""
        found = {}
        for number, name in enumerate(SPLITS):
            own = self.split == number
            ordered = np.empty(own.sum(), object)
            ordered[self.position[own]] = values[own]
            found[name] = [None if pd.isna(each) else each.item() if isinstance(each, np.generic)
                           else each for each in ordered]  # fmt: skip
        return found

    def _read_rows(self) -> None:
        """Read hashes, labels, groups and splits of all rows; keep a small table in memory."""
        hashes, incomplete, memory, missing = [], [], 0, pd.Series(0, self.inputs)
        metadata: dict[str, list[np.ndarray]] = {name: [] for name in self._metadata}
        for chunk in self._chunks():
            own = chunk[self.inputs]
            hashes.append(_hash_rows(own))
            absent = own.isna()
            incomplete.append(absent.any(axis=1).to_numpy())
            missing += absent.sum()
            for name, values in metadata.items():
                values.append(chunk[name].to_numpy(object))
            memory += int(chunk.memory_usage(deep=True).sum())
            if self._frames is not None:
                self._frames.append(chunk)
            if memory > CACHED_BYTES:
                self._frames = None
        self._hashes = np.concatenate(hashes) if hashes else np.empty(0, np.uint64)
        if not len(self._hashes):
            raise UserError(f"{self._where}: expected rows, got none. Use a larger table.")
        if self.settings.missing == "refuse":
            refuse_missing({str(name): int(count) for name, count in missing.items()})
        self.incomplete = np.concatenate(incomplete) & (self.settings.missing == "drop")
        found = {name: np.concatenate(values) for name, values in metadata.items()}
        label, groups = self.settings.label_column, self.settings.groups
        self.labels = None if label is None else found[label]
        self.groups = None
        if groups is not None:
            if without := int(pd.isna(found[groups]).sum()):
                raise UserError(
                    f"groups={groups}: expected a group of every row, got none for {without:,}. "
                    "Fill them, or leave groups out."
                )
            self.groups = pd.factorize(pd.Series(found[groups]).astype(str), sort=True)[0]
        self._given = None if self.settings.split_column is None else found[
            self.settings.split_column
        ]  # fmt: skip

    @property
    def _where(self) -> str:
        paths = self.settings.paths
        return f"path={', '.join(paths)}" if paths else f"source={self.settings.source}"

    def _assign(self) -> None:
        """Assign rows to splits, in a random order."""
        order = np.flatnonzero(~self.incomplete).astype(np.uint32)
        np.random.default_rng(self.settings.seed).shuffle(order)
        self.split = np.full(len(self.incomplete), -1, np.int8)
        if self._given is not None:
            self._assign_given()
        else:
            count = len(order)
            held_out = min(max(count // 10, min(MIN_DEFAULT, count // 4)), MAX_DEFAULT)
            shares = share_out(count, self.settings.counts, "rows", held_out)
            if self.groups is None:
                start = 0
                for share in shares:
                    self.split[order[start : start + share.count]] = SPLITS.index(share.split)
                    start += share.count
            else:
                numbers, sizes = np.unique(self.groups[order], return_counts=True)
                named_sizes = {str(n): int(s) for n, s in zip(numbers, sizes, strict=True)}
                assigned = assign_groups(named_sizes, shares, self.settings.seed)
                split = np.zeros(int(self.groups.max()) + 1, np.int8)
                for number in numbers:
                    split[number] = SPLITS.index(assigned[str(number)])
                self.split[order] = split[self.groups[order]]
        self.split[self.incomplete] = -1
        self.position = np.zeros(len(self.split), np.uint32)
        for number, name in enumerate(SPLITS):
            own = order[self.split[order] == number]
            wanted = getattr(self.settings.counts, name)
            if wanted is not None and self._given is not None:
                if wanted > len(own):
                    raise UserError(
                        f"counts.{name}: expected at most {len(own):,}, the rows of this part, got "
                        f"{wanted:,}. Decrease it."
                    )
                self.split[own[wanted:]] = -1
                own = own[:wanted]
            self.position[own] = np.arange(len(own))
            if not len(own):
                raise UserError(
                    f"missing: expected complete rows in every split, got none in {name}. Set "
                    "data.missing=median."
                )

    def _assign_given(self) -> None:
        assert self._given is not None
        column = self.settings.split_column
        texts = pd.Series(self._given).astype(str).to_numpy()
        found = set(np.unique(texts.astype(str)))
        if found != set(SPLITS):
            raise UserError(
                f"split={column}: expected the values {', '.join(SPLITS)} in this column, got "
                f"{named(sorted(found))}. Rename them, or set split=random."
            )
        for number, name in enumerate(SPLITS):
            self.split[texts == name] = number
        if self.groups is None:
            return
        pairs = np.unique(np.column_stack([self.groups, self.split])[~self.incomplete], axis=0)
        if divided := len(pairs) - len(np.unique(pairs[:, 0])):
            raise UserError(
                f"groups: expected each group in one part of split={column}, got {divided} in "
                "several. Leave groups out, or set split=random, which keeps groups together."
            )

    def _duplicates(self) -> dict[str, int]:
        hashes = np.unique(self._hashes[self.split > 0])
        found = np.zeros(len(hashes), bool)
        size = CHUNK_VALUES
        for start in range(0, len(self._hashes), size):  # in parts, to save memory
            part = slice(start, start + size)
            training = self._hashes[part][self.split[part] == 0]
            index = np.searchsorted(hashes, training).clip(max=len(hashes) - 1)
            found[index[hashes[index] == training]] = True
        equal = hashes[found]
        return {name: int(np.isin(self._hashes[self.split == SPLITS.index(name)], equal).sum())
                for name in ("valid", "test")}  # fmt: skip


def _open(settings: TableSettings) -> list[TableFile]:
    if settings.source == "table":
        return open_files(list_files(settings.paths))
    from sklearn import datasets

    loaded = getattr(datasets, f"load_{settings.source}")(as_frame=True)
    frame = loaded.frame.rename(columns=str)
    return [frame_file(frame, settings.source)]


def _explained_chunks(file: TableFile, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
    with explained(file.path):
        yield from file.chunks(columns)


def _select(settings: TableSettings, columns: Sequence[str]) -> list[str]:
    """Return the names of the columns that the model describes, in the table's order."""
    metadata = {settings.label_column, settings.groups, settings.split_column}
    chosen = set(columns)
    if settings.columns is not None:
        chosen = _matching("columns", settings.columns, columns)
    chosen -= _matching("drop", settings.drop, columns)
    selected = [name for name in columns if name in chosen and name not in metadata]
    if not selected:
        raise UserError(
            f"columns: expected columns of the table ({named(columns)}), got none. Change columns "
            "or drop."
        )
    return selected


def _condition(settings: TableSettings, columns: Sequence[str]) -> list[str]:
    """Return the names of the columns of the condition among those that are chosen."""
    if settings.condition is None:
        return []
    chosen = _matching("condition", settings.condition, columns)
    return [name for name in columns if name in chosen]


def _matching(setting: str, patterns: Sequence[str], columns: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        own = [pattern] if pattern in columns else fnmatch.filter(columns, pattern)
        if not own:
            raise UserError(
                f"{setting}: expected names or patterns of columns ({named(columns)}), got "
                f"{printable(pattern)}, which matches none.{did_you_mean(pattern, columns)}"
            )
        found |= set(own)
    return found


def _hash_rows(frame: pd.DataFrame) -> np.ndarray:
    try:
        return pd.util.hash_pandas_object(frame, index=False).to_numpy()
    except TypeError:  # nested values, which the statistics refuse
        return np.arange(len(frame), dtype=np.uint64)


def _notes(
    preprocessor: Preprocessor,
    counts: dict[str, int],
    duplicates: dict[str, int],
    dropped: int,
    settings: TableSettings,
) -> list[str]:
    notes = []
    constant = [each.name for each in preprocessor.columns if each.kind == "constant"]
    if constant:
        notes.append(f"constant columns are left out: {named(constant)}")
    if dropped:
        notes.append(f"{dropped:,} rows with missing values are left out")
    for name, count in duplicates.items():
        if count:
            notes.append(f"{count:,} of {counts[name]:,} {name} rows equal a training row")
    if settings.label is None and (likely := [*filter(_is_label, preprocessor.columns)]):
        name = likely[0].name
        notes.append(
            f"column {name} looks like a label, but is an input of the model; set label={name} to "
            "keep it with the rows"
        )
    if counts["train"] < len(preprocessor.varying):
        notes.append(
            f"there are fewer training rows ({counts['train']:,}) than columns "
            f"({len(preprocessor.varying):,}); the density is not reliable"
        )
    return notes


def _is_label(column: Column) -> bool:
    few = column.kind == "categorical" or (
        column.bits is not None and 2**column.bits < FEW_LABELS + 1
    )
    return few and column.name.lower() in LABEL_NAMES
