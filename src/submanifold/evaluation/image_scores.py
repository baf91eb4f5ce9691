"""Densities and p-values of single images of each split, and how the splits differ."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch

from submanifold.common.progress import track
from submanifold.data.batches import Batches
from submanifold.data.splits import Groups, groups_of
from submanifold.evaluation.calibration import COMBINATION, Calibration
from submanifold.evaluation.intervals import Interval, mean_interval
from submanifold.evaluation.likelihood import BATCH_SIZE, per_event, to_bits_per_dim
from submanifold.evaluation.scores import QUICK, score
from submanifold.models import Model

MAX_IMAGES = {"train": 500, "valid": 500, "test": 1000}
"""Images of each split; the test images also get p-values."""
SEED = 0


def score_splits(
    model: Model,
    train: np.ndarray,
    valid: np.ndarray,
    test: np.ndarray,
    groups: Groups | None,
    device: torch.device,
) -> dict[str, dict[str, np.ndarray]]:
    """Score a fixed random subset of each split's images, uint8 (N, ...).

    Returns:
        Columns (n,) by split: ``number`` in the array, ``group`` (the number, if images are
        independent), and with a density ``bits_per_dim``; for test images also ``encoder_mse``, and
        with a calibration ``anomaly_score`` and ``p_value``.
    """
    model = model.to(device)
    scored: dict[str, dict[str, np.ndarray]] = {}
    for split, images in {"train": train, "valid": valid, "test": test}.items():
        rng = np.random.default_rng(SEED)
        numbers = np.sort(rng.permutation(len(images))[: MAX_IMAGES[split]])
        members, some = groups_of(groups, split), images[numbers]
        group = numbers if members is None else members[numbers]
        found = {"number": numbers, "group": group}
        if split == "test":
            found |= _score_test(model, some)
        elif model.has_density:
            batches = Batches(some, BATCH_SIZE, device=device)
            tracked = track(batches, f"bits per dimension, {split}", len(some))
            found["bits_per_dim"] = to_bits_per_dim(per_event(model.log_prob, tracked), some)
        scored[split] = found
    return scored


def as_table(scored: Mapping[str, Mapping[str, np.ndarray]]) -> pd.DataFrame:
    """Convert the result of :func:`score_splits` to a table with a column ``split``.

    The column ``bits_per_dim`` is NaN without a density.
    """
    tables = [pd.DataFrame({"split": split, **found}) for split, found in scored.items()]
    table = pd.concat(tables, ignore_index=True)
    return table if "bits_per_dim" in table else table.assign(bits_per_dim=math.nan)


def _score_test(model: Model, images: np.ndarray) -> dict[str, np.ndarray]:
    scores = score(model, images, QUICK)
    found = {"encoder_mse": scores["encoder_distance"]}
    if "density" in scores:
        found["bits_per_dim"] = to_bits_per_dim(-scores["density"], images)
    if "groups" in model.calibration:
        calibration = Calibration.from_dict(model.calibration)
        combination = calibration.complete(scores)[COMBINATION]
        found["anomaly_score"] = combination
        found["p_value"] = calibration.p_values(COMBINATION, combination)
    return found


def mean_bits(scored: pd.DataFrame) -> dict[str, Interval]:
    """Average the bits per dimension of each split, with 95% intervals over groups.

    Args:
        scored: The table of :func:`as_table` of a model with a density.
    """
    return {
        str(split): mean_interval(table["bits_per_dim"].to_numpy(), group_numbers(table))
        for split, table in scored.groupby("split", sort=False)
    }


def generalization_gap(bits: Mapping[str, Interval]) -> Interval:
    """Subtract the mean bits of training images from those of test images, with a 95% interval.

    Args:
        bits: The result of :func:`mean_bits`. The splits are independent, so that the squares of
            the half-widths add up.
    """
    test, train = bits["test"], bits["train"]
    found: Interval = {"value": test["value"] - train["value"], "low": None, "high": None}
    if test["low"] is not None and train["low"] is not None:
        below = math.hypot(test["value"] - test["low"], train["high"] - train["value"])
        above = math.hypot(test["high"] - test["value"], train["value"] - train["low"])
        found |= {"low": found["value"] - below, "high": found["value"] + above}
    return found


def group_numbers(table: pd.DataFrame) -> np.ndarray | None:
    """Return the group numbers of a split, or None if each image is a group."""
    groups = table["group"].to_numpy()
    return None if len(np.unique(groups)) == len(groups) else groups
