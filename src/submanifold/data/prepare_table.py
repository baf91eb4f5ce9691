"""Preparation of a table: one array on disk for each split, and a manifest."""

import contextlib
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np

from submanifold.common.files import locked, read_json, remove_files, write_json
from submanifold.common.progress import ProgressBar
from submanifold.data.arrays import are_intact, context_path, hash_arrays, scatter_npy
from submanifold.data.prepare import GROUPS, LABELS, Prepared, read_groups
from submanifold.data.settings import TableSettings
from submanifold.data.splits import SPLITS
from submanifold.data.tables.scan import Scan, Survey, scan_key

ROWS = "rows.json"

log = logging.getLogger(__name__)


def prepare_table(settings: TableSettings, folder: Path, raw_folder: Path) -> Prepared:
    """Split, dequantize and standardize the rows of a table, in bounded memory.

    Finished work is returned. The training rows are in a random order, too.

    Args:
        settings: The table and its columns.
        folder: Gets train.npy, valid.npy, test.npy, rows.json with the numbers of the test rows in
            the table, labels.json and groups.json if there are any, and finally manifest.json;
            with a condition also files of the contexts.
        raw_folder: Folder of recorded fingerprints and scans.

    Returns:
        Three float32 arrays (N, D), and the manifest, with the ``columns``, the numbers of
        ``duplicates`` (validation and test rows that equal a training row), and the numbers of
        ``groups`` by split (None if rows are independent).

    Raises:
        UserError: If the table cannot be read or split, or a column cannot be used.
    """
    began = time.monotonic()
    found = settings.read(raw_folder)
    key = scan_key(settings, raw_folder)
    with locked(folder, f"the rows of {settings.source}"):
        manifest = _finished(folder, key)
        if manifest is None:
            _write_rows(Survey.of(settings, raw_folder), found, folder)
            Survey.forget()
            manifest = {
                "key": key,
                "source": ", ".join(settings.paths) or settings.source,
                "counts": found.counts,
                "columns": found.describe(),
                "dim": len(found.inputs.varying),
                "split": "random" if settings.split_column is None else settings.split_column,
                "split_note": "; ".join(found.notes) or None,
                "groups": found.groups,
                "dropped": found.dropped,
                "duplicates": found.duplicates,
                "seed": settings.seed,
                "hash": hash_arrays(folder),
                "seconds": round(time.monotonic() - began, 2),
            }
            write_json(folder / "manifest.json", manifest)
    for note in found.notes:
        log.warning("%s", note)
    train, valid, test = (np.load(folder / f"{split}.npy", mmap_mode="c") for split in SPLITS)
    return train, valid, test, manifest


def read_rows(folder: Path) -> dict[str, list[int]]:
    """Read the numbers from 0 of prepared test rows in their table, ``{"test": [...]}``."""
    return read_json(folder / ROWS) or {}


def _finished(folder: Path, key: str) -> dict[str, Any] | None:
    manifest: dict[str, Any] = read_json(folder / "manifest.json") or {}
    if manifest.get("key") == key:
        has_groups = bool(read_groups(folder)) == (manifest["groups"] is not None)
        if are_intact(folder) and has_groups and read_rows(folder):
            return manifest
        log.warning("the rows in %s are incomplete or changed; preparing them again", folder)
    names = ("manifest.json", ROWS, LABELS, GROUPS)
    remove_files([*(folder / name for name in names), *folder.glob("*.npy")])
    return None


def _write_rows(survey: Survey, found: Scan, folder: Path) -> None:
    total = len(survey.split)
    files = {split: folder / f"{split}.npy" for split in SPLITS}
    outputs = [(found.inputs, files)]
    if found.context is not None:
        outputs.append((found.context, {s: context_path(path) for s, path in files.items()}))
    with contextlib.ExitStack() as stack:
        writers = [
            (preprocessor, [
                stack.enter_context(
                    scatter_npy(path, (found.counts[split], len(preprocessor.varying)))
                )
                for split, path in paths.items()
            ])
            for preprocessor, paths in outputs
        ]  # fmt: skip
        progress = stack.enter_context(ProgressBar("preparing rows", "rows", total))
        for first, chunk in survey.frames():
            rows = np.arange(first, first + len(chunk))
            used = survey.split[rows] >= 0
            for preprocessor, writes in writers:
                x = preprocessor.transform(chunk.loc[used, [*preprocessor.inputs]], rows[used])
                for number, write in enumerate(writes):
                    own = survey.split[rows[used]] == number
                    write(survey.position[rows[used][own]], x[own])
            progress.update(len(chunk))
    own = survey.split == SPLITS.index("test")
    numbers = np.empty(found.counts["test"], np.int64)
    numbers[survey.position[own]] = np.flatnonzero(own)
    write_json(folder / ROWS, {"test": numbers.tolist()})
    for name, values in ((LABELS, survey.labels), (GROUPS, survey.groups)):
        if values is not None:
            write_json(folder / name, survey.by_split(values))
