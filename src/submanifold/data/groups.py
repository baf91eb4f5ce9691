"""Groups of images that are not independent of each other, such as those of one person."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from submanifold.common.errors import UserError

FOLDER = "folder"
"""The setting by which each folder of images is a group."""

Groups = dict[str, list[int]]
"""The number of each image's group, by split in the order of the arrays; empty for no groups."""


def groups_of(groups: Groups | None, part: str) -> np.ndarray | None:
    """Groups of a split's images, (N,), or None where they are independent of each other."""
    return np.array(groups[part]) if groups else None


def group_images(groups: str, names: Iterable[str]) -> dict[str, str]:
    """Find the group of each image.

    Args:
        groups: `folder`, or the path of a text file whose lines are the name of an image and that
            of its group, as CelebA's identity_CelebA.txt.
        names: Of images, with the folders they lie in.

    Raises:
        UserError: If the file cannot be read, or lacks an image.
    """
    if groups == FOLDER:
        return {name: name.rpartition("/")[0] for name in names}
    listed = _read(groups)
    found = {name: listed.get(name) or listed.get(name.rpartition("/")[2]) for name in names}
    missing = [name for name, group in found.items() if group is None]
    if missing:
        raise UserError(
            f"groups={groups}: expected a line for each image, got none for {len(missing)}, such "
            f"as {missing[0]}. Add them, or leave groups out."
        )
    return {name: group for name, group in found.items() if group is not None}


def fingerprint_groups(groups: str) -> str:
    """The identity of a setting of groups: of the content of the file.

    Raises:
        UserError: If the file cannot be read.
    """
    return groups if groups == FOLDER else hashlib.sha256(_content(groups)).hexdigest()[:32]


def check_split(groups: Mapping[str, str], parts: Mapping[str, str]) -> None:
    """Check that no group is in two parts.

    Raises:
        UserError: Naming one that is.
    """
    parts_of = defaultdict(set)
    for name, group in groups.items():
        parts_of[group].add(parts[name])
    divided = sorted(group for group, found in parts_of.items() if len(found) > 1)
    if divided:
        raise UserError(
            f"groups: expected each group in one part of the official split, got {len(divided)} in "
            f"several, such as {divided[0]}. Set split=random, which keeps groups together."
        )


def _content(path: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise UserError(
            f"groups={path}: expected folder or the path of a text file, got a path that cannot be "
            f"read ({error.strerror}; looked from {Path.cwd()}). Correct it."
        ) from error


def _read(path: str) -> dict[str, str]:
    listed = {}
    for number, line in enumerate(_content(path).decode("utf-8", "surrogateescape").splitlines()):
        match line.rsplit(maxsplit=1):
            case []:
                continue
            case [name, group]:
                listed[name.strip()] = group
            case _:
                raise UserError(
                    f"groups={path}: expected the name of an image and its group on each line, got "
                    f"{line[:60]!r} on line {number + 1}. Correct the file."
                )
    return listed
