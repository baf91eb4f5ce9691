"""Groups of images that are not independent of each other, such as images of one person."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from submanifold.common.errors import UserError

FOLDER = "folder"
"""Value of the setting `groups` that makes each folder a group."""

Groups = dict[str, list[int]]
"""Number of each image's group, by split, in the order of the arrays; empty without groups."""


def groups_of(groups: Groups | None, split: str) -> np.ndarray | None:
    """Group numbers (N,) of a split's images, or None if the images are independent."""
    return np.array(groups[split]) if groups else None


def group_images(groups: str, names: Iterable[str]) -> dict[str, str]:
    """Look up the group of each image.

    Args:
        groups: `folder`, or the path of a text file with lines `name group`, such as CelebA's
            identity_CelebA.txt.
        names: Image names, including folders. The file may list them without folders.

    Raises:
        UserError: If the file cannot be read or does not list an image.
    """
    if groups == FOLDER:
        return {name: name.rpartition("/")[0] for name in names}
    listed = _read(groups)
    found = {name: listed.get(name) or listed.get(name.rpartition("/")[2], "") for name in names}
    if missing := [name for name, group in found.items() if not group]:
        raise UserError(
            f"groups={groups}: expected a line for each image, got none for {len(missing)}, such "
            f"as {missing[0]}. Add these lines, or omit groups."
        )
    return found


def fingerprint_groups(groups: str) -> str:
    """Identity of the setting `groups`: `folder`, or a hash of the file's content."""
    return groups if groups == FOLDER else hashlib.sha256(_content(groups)).hexdigest()[:32]


def check_groups(groups: Mapping[str, str], splits: Mapping[str, str]) -> None:
    """Raise a UserError if a group is in two splits."""
    splits_of = defaultdict(set)
    for name, group in groups.items():
        splits_of[group].add(splits[name])
    divided = sorted(group for group, found in splits_of.items() if len(found) > 1)
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
            f"read ({error.strerror}; current folder: {Path.cwd()}). Correct it."
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
