"""Assignment of a source's images to train, valid and test, with groups of dependent images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from submanifold.common.errors import UserError

if TYPE_CHECKING:
    from submanifold.data.settings import Counts
    from submanifold.data.sources import Source

SPLITS = ("train", "valid", "test")

FOLDER = "folder"
"""Value of the setting `groups` that makes each folder a group."""

Groups = dict[str, list[int]]
"""Number of each image's group, by split, in the order of the arrays; empty without groups."""


def groups_of(groups: Groups | None, split: str) -> np.ndarray | None:
    """Group numbers (N,) of a split's images, or None if the images are independent."""
    return np.array(groups[split]) if groups else None


def group_images(groups: str, names: Iterable[str]) -> dict[str, str]:
    """Look up the group of each image by the setting `groups`.

    A file may list the images without their folders, as CelebA's identity_CelebA.txt does.

    Raises:
        UserError: If the file cannot be read or does not list an image.
    """
    if groups == FOLDER:
        return {name: name.rpartition("/")[0] for name in names}
    listed = _read(groups)
    group_of = {name: listed.get(name) or listed.get(name.rpartition("/")[2], "") for name in names}
    if missing := [name for name, group in group_of.items() if not group]:
        raise UserError(
            f"groups={groups}: expected a line for each image, got none for {len(missing)}, such "
            f"as {missing[0]}. Add these lines, or omit groups."
        )
    return group_of


def check_groups(pairs: Iterable[tuple[str, str]]) -> None:
    """Raise a UserError if a group is in two splits; the pairs are groups and splits."""
    counts = Counter(group for group, _ in set(pairs))
    if divided := sorted(group for group, count in counts.items() if count > 1):
        raise UserError(
            f"groups: expected each group in one part of the given split, got {len(divided)} in "
            f"several, such as {divided[0]}. Set split=random, which keeps groups together."
        )


def _read(path: str) -> dict[str, str]:
    try:
        text = Path(path).expanduser().read_text("utf-8", "surrogateescape")
    except OSError as error:
        raise UserError(
            f"groups={path}: expected folder or the path of a text file, got an error: {error} "
            f"(current folder: {Path.cwd()}). Correct it."
        ) from error
    pairs = [line.strip().rsplit(maxsplit=1) for line in text.splitlines() if line.strip()]
    if broken := [pair[0] for pair in pairs if len(pair) < 2]:
        raise UserError(
            f"groups={path}: expected the name of an image and its group on each line, got "
            f"{broken[0]!r}. Correct the file."
        )
    return dict(pairs)


@dataclass
class Share:
    """Exactly `count` images of a pool for a split, or at most that many."""

    split: str
    count: int
    exact: bool = True


class Pool(NamedTuple):
    """Names in the order in which they are read, and the splits that they fill in turn."""

    names: list[str]
    shares: list[Share]


def plan(source: Source, counts: Counts, seed: int) -> list[Pool]:
    """Shuffle a source's images and assign them to splits: one pool for all, or one for each.

    Raises:
        UserError: If there are too few images or groups.
    """
    splits = source.splits
    if splits is None:
        shares = share_out(len(source.names), counts)
        if source.groups is None:
            return [Pool(_shuffled(source.names, seed), shares)]
        assigned = assign_groups(Counter(source.groups.values()), shares, seed)
        splits = {name: assigned[group] for name, group in source.groups.items()}
    pools = []
    for index, split in enumerate(SPLITS):
        names = [name for name in source.names if splits[name] == split]
        if not names:
            raise UserError(
                f"split: expected {split} images in the {source.split_rule} split, got none. Set "
                "split=random, or set path to the complete data set."
            )
        share = Share(
            split, count_of(split, counts, len(names)), getattr(counts, split) is not None
        )
        pools.append(Pool(_shuffled(names, [seed, index]), [share]))
    return pools


def count_of(split: str, counts: Counts, available: int) -> int:
    """Return how many images or rows of a given split are used: all, or as many as counts say."""
    count: int | None = getattr(counts, split)
    if count is not None and count > available:
        raise UserError(
            f"counts.{split}: expected at most {available:,}, which the given split has, got "
            f"{count:,}. Decrease it."
        )
    return available if count is None else count


def _shuffled(names: list[str], seed: int | list[int]) -> list[str]:
    return [names[i] for i in np.random.default_rng(seed).permutation(len(names))]


def assign_groups(sizes: Mapping[str, int], shares: list[Share], seed: int) -> dict[str, str]:
    """Assign shuffled groups of these sizes to splits until each has its share of items.

    The last split gets the remaining groups. Returns the split of each group.
    """
    if len(sizes) < len(shares):
        raise UserError(
            f"groups: expected at least {len(shares)} groups, one for each split, got {len(sizes)}."
            " Define more groups, or omit the setting."
        )
    remaining, splits = _shuffled(sorted(sizes), seed), {}
    for splits_left, share in zip(range(len(shares))[::-1], shares, strict=True):
        count = 0
        while len(remaining) > splits_left and (count < share.count or not splits_left):
            group = remaining.pop()
            splits[group], count = share.split, count + sizes[group]
    return splits


def share_out(
    total: int, counts: Counts, what: str = "images", held_out: int | None = None
) -> list[Share]:
    """Sizes of a random split: given counts exactly, else those of valid and test, the rest train.

    If train is given and test is not, test is the rest. The rest comes last, because broken files
    reduce the last share.

    Args:
        total: Number of items.
        counts: The given counts.
        what: Name of the items in messages.
        held_out: Default for valid and for test; None: a tenth of all.
    """
    exact = {split: count for split in SPLITS if (count := getattr(counts, split)) is not None}
    missing = [split for split in SPLITS if split not in exact]
    spare = total - sum(exact.values())
    if spare < len(missing):
        asked = ", ".join(f"counts.{split}={count}" for split, count in exact.items())
        raise UserError(
            f"counts: expected at most {total} {what} in three splits, each with at least one, got "
            f"{asked or f'too few {what}'}. Decrease the counts, or set path to more {what}."
        )
    rest = next((split for split in ("train", "test") if split in missing), None)
    wanted = total // 10 if held_out is None else held_out
    size = max(1, min(wanted, spare // max(1, len(missing))))
    shares = [Share(split, count) for split, count in exact.items()]
    shares += [Share(split, size) for split in missing if split != rest]
    if rest:
        shares.append(Share(rest, total - sum(share.count for share in shares), exact=False))
    return shares
