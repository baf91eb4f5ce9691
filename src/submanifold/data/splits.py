"""Assignment of a source's images to train, valid and test, with groups of dependent images."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from submanifold.common.errors import unexpected
from submanifold.common.files import expand_user
from submanifold.data.fields import FOLDER_GROUPS, Counts

SPLITS = ("train", "valid", "test")


def group_images(groups: str, names: Iterable[str]) -> dict[str, str]:
    """Look up the group of each image by the setting `groups`.

    A file may list the images without their folders, as CelebA's identity_CelebA.txt does.
    """
    if groups == FOLDER_GROUPS:
        return {name: name.rpartition("/")[0] for name in names}
    try:
        lines = expand_user(groups).read_text("utf-8", "surrogateescape").splitlines()
        listed = dict(line.strip().rsplit(maxsplit=1) for line in lines if line.strip())
    except (OSError, ValueError) as error:
        expected = "folder, or a text file with the name of an image and its group on each line"
        got = f"an error: {error} (current folder: {Path.cwd()})"
        raise unexpected(f"groups={groups}", expected, got, "Correct it") from error
    group_of = {name: listed.get(name) or listed.get(name.rpartition("/")[2], "") for name in names}
    if missing := [name for name, group in group_of.items() if not group]:
        expected = "a line for each image"
        got = f"none for {len(missing)}, such as {missing[0]}"
        raise unexpected(f"groups={groups}", expected, got, "Add these lines, or omit groups")
    return group_of


def check_groups(pairs: Iterable[tuple[str, str]]) -> None:
    """Raise a UserError if a group is in two splits; the pairs are groups and splits."""
    counts = Counter(group for group, _ in set(pairs))
    if divided := sorted(group for group, count in counts.items() if count > 1):
        expected = "each group in one part of the given split"
        got = f"{len(divided)} in several, such as {divided[0]}"
        raise unexpected("groups", expected, got, "Set split=random, which keeps groups together")


def count_of(split: str, counts: Counts, available: int) -> int:
    """Return how many images or rows of a given split are used: all, or as many as counts say."""
    count: int | None = getattr(counts, split)
    if count is not None and count > available:
        expected = f"at most {available:,}, which the given split has"
        raise unexpected(f"counts.{split}", expected, f"{count:,}", "Decrease it")
    return available if count is None else count


def shuffled(names: list[str], seed: int | list[int]) -> list[str]:
    """Return names in random order."""
    return [names[i] for i in np.random.default_rng(seed).permutation(len(names))]


def assign_groups(sizes: Mapping[str, int], wanted: dict[str, int], seed: int) -> dict[str, str]:
    """Assign shuffled groups of these sizes to splits until each has as many items as wanted.

    The last split gets the remaining groups. Returns the split of each group.
    """
    if len(sizes) < len(wanted):
        expected = f"at least {len(wanted)} groups, one for each split"
        raise unexpected("groups", expected, len(sizes), "Define more groups, or omit the setting")
    remaining, splits = shuffled(sorted(sizes), seed), {}
    for splits_left, (split, size) in zip(range(len(wanted))[::-1], wanted.items(), strict=True):
        count = 0
        while len(remaining) > splits_left and (count < size or not splits_left):
            group = remaining.pop()
            splits[group], count = split, count + sizes[group]
    return splits


def split_sizes(
    total: int, counts: Counts, what: str = "images", held_out: int | None = None
) -> dict[str, int]:
    """Sizes of a random split: the counts, else `held_out` (a tenth) for valid and test.

    The rest is for train or, if its count is set, for test. It comes last, because broken files
    reduce the last split.
    """
    sizes = {split: count for split in SPLITS if (count := getattr(counts, split)) is not None}
    missing = [split for split in SPLITS if split not in sizes]
    spare = total - sum(sizes.values())
    if spare < len(missing):
        asked = ", ".join(f"counts.{split}={count}" for split, count in sizes.items())
        expected = f"at most {total} {what} in three splits, each with at least one"
        if not asked:
            expected = f"at least {len(SPLITS)} {what}, one for each split"
        fix = f"Decrease the counts, or set path to more {what}"
        raise unexpected("counts", expected, asked or total, fix)
    rest = next((split for split in ("train", "test") if split in missing), None)
    wanted = total // 10 if held_out is None else held_out
    size = max(1, min(wanted, spare // max(1, len(missing))))
    sizes |= {split: size for split in missing if split != rest}
    return sizes | ({rest: total - sum(sizes.values())} if rest else {})
