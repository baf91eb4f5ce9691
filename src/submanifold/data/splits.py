"""Assignment of a source's images to train, valid and test."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from submanifold.common.errors import UserError
from submanifold.data.settings import Counts
from submanifold.data.sources import SPLITS, Source


@dataclass
class Share:
    """Exactly `count` images of a pool for a split, or at most that many."""

    split: str
    count: int
    exact: bool = True


@dataclass
class Pool:
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
        splits = split_groups(source.groups, shares, seed)
    pools = []
    for index, split in enumerate(SPLITS):
        names = [name for name in source.names if splits[name] == split]
        wanted = getattr(counts, split)
        if not names:
            raise UserError(
                f"split: expected {split} images in the {source.split_rule} split, got none. Set "
                "split=random, or set path to the complete data set."
            )
        if wanted is not None and wanted > len(names):
            raise UserError(
                f"counts.{split}: expected at most {len(names)}, the {split} images of the "
                f"{source.split_rule} split, got {wanted}. Decrease it."
            )
        share = Share(split, wanted or len(names), exact=wanted is not None)
        pools.append(Pool(_shuffled(names, [seed, index]), [share]))
    return pools


def _shuffled(names: list[str], seed: int | list[int]) -> list[str]:
    return [names[i] for i in np.random.default_rng(seed).permutation(len(names))]


def split_groups(groups: Mapping[str, str], shares: list[Share], seed: int) -> dict[str, str]:
    """Assign shuffled groups to splits until each has its share; the last gets the remaining ones.

    Returns the split of each name.
    """
    sizes = Counter(groups.values())
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
    return {name: splits[group] for name, group in groups.items()}


def share_out(total: int, counts: Counts) -> list[Share]:
    """Sizes of a random split: given counts exactly, else 10% for valid and test, the rest train.

    If train is given and test is not, test is the rest. The rest comes last, because broken files
    reduce the last share.
    """
    given = {split: count for split in SPLITS if (count := getattr(counts, split)) is not None}
    missing = [split for split in SPLITS if split not in given]
    spare = total - sum(given.values())
    if spare < len(missing):
        asked = ", ".join(f"counts.{split}={count}" for split, count in given.items())
        raise UserError(
            f"counts: expected at most {total} images in three splits, each with at least one, got "
            f"{asked or 'too few images'}. Decrease the counts, or set path to more images."
        )
    rest = next((split for split in ("train", "test") if split in missing), None)
    tenth = max(1, min(total // 10, spare // max(1, len(missing))))
    shares = [Share(split, count) for split, count in given.items()]
    shares += [Share(split, tenth) for split in missing if split != rest]
    if rest:
        shares.append(Share(rest, total - sum(share.count for share in shares), exact=False))
    return shares
