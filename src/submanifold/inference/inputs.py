"""Inputs of commands: images for a model of images, rows for a model of a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from numbers import Integral
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from submanifold.common.errors import UserError
from submanifold.flows import conditioning, context_of
from submanifold.inference.image_files import ImageFiles
from submanifold.inference.outputs import check_not_input
from submanifold.models import Model


class Inputs(Protocol):
    """What :class:`.ImageFiles` and :class:`.TableFiles` have in common."""

    unit: str
    label: str
    files: list[Path]
    skipped: list[dict[str, str]]

    @property
    def names(self) -> Sequence[Any]:
        """Labels of the images or rows."""

    def __len__(self) -> int:
        """Return the number of images or rows."""

    def batches(self, size: int, first: int = 0) -> Iterator[tuple[Sequence[int], Any]]:
        """Read numbers, and images (uint8) or rows (a DataFrame), in batches."""

    def read(self, bytes_per_event: int = 0) -> tuple[list[Any], np.ndarray]:
        """Read all names, and images or standardized vectors."""

    def check_readable(self, count: int) -> None:
        """Raise a UserError if ``count``, the number that was read, is 0."""


def is_table(model: Model) -> bool:
    """Return whether a model was trained on a table."""
    return "table" in model.data


def given_label(model: Model, label: int | None) -> AbstractContextManager[None]:
    """Condition a model on one label of all events; other models need none.

    Raises:
        UserError: The label is missing, superfluous or unknown.
    """
    classes = context_of(model).get("classes")
    if label is None and classes is None:
        return nullcontext()
    if classes is None:
        raise UserError(
            f"--label: expected none for a model that is not conditional on a label, got {label}. "
            "Omit it."
        )
    if type(label) is bool or not isinstance(label, Integral) or not 0 <= label < classes:
        got = "none" if label is None else label
        raise UserError(
            f"--label: expected a label from 0 to {classes - 1}, on which the density is "
            f"conditional, got {got}. Set it."
        )
    return conditioning(model, torch.tensor([label], device=next(model.parameters()).device))


def find_inputs(
    model: Model, file: Path, paths: Sequence[str], outputs: Mapping[str, Path | None]
) -> Inputs:
    """Find the images or rows that a model can be applied to.

    Args:
        model: The model.
        file: Its file.
        paths: The paths that the user gives.
        outputs: Paths of outputs by their option.

    Raises:
        UserError: There are none, they do not fit the model, or an output would replace one of them
            or the model.
    """
    if is_table(model):
        from submanifold.inference.table_files import TableFiles

        files: Inputs = TableFiles(paths, model)
    elif "size" in model.data:
        files = ImageFiles(paths, model.data)
    else:
        raise UserError(
            "model: expected a model of images or of a table, got one of points. Use the "
            "hierarchy.safetensors of a run on images or on a table."
        )
    for option, path in outputs.items():
        if path is not None:
            check_not_input(option, path, [file, *files.files])
    return files
