"""Densities and p-values of single events of each split, and how the splits differ."""

import math
from collections.abc import Mapping
from functools import partial

import numpy as np
import pandas as pd

from submanifold.common.device import choose_device
from submanifold.common.progress import track
from submanifold.data.arrays import context_of_array
from submanifold.data.batches import Batches
from submanifold.data.splits import Groups, groups_of
from submanifold.evaluation.calibration import COMBINATION, Calibration
from submanifold.evaluation.intervals import Interval, mean_interval
from submanifold.evaluation.likelihood import (
    BATCH_SIZE,
    log_prob,
    per_event,
    table_of,
    to_bits_per_dim,
)
from submanifold.evaluation.scores import QUICK, score
from submanifold.models import Model

MAX_IMAGES = {"train": 500, "valid": 500, "test": 1000}
MAX_ROWS = {"train": 5000, "valid": 5000, "test": 10_000}  # of each split
SEED = 0
NLL = "nll"  # column in the units of a table; images have bits per dimension


def score_splits(
    hierarchy: Model,
    train: np.ndarray,
    valid: np.ndarray,
    test: np.ndarray,
    groups: Groups | None,
    device: str,
) -> pd.DataFrame:
    """Score a fixed random subset of each split.

    The columns are ``split``, ``number`` in the array, ``group`` (the number, if events are
    independent), ``bits_per_dim`` (NaN without a density), and ``nll`` of rows of a table in its
    units; for test data also ``encoder_mse``, and with a calibration ``anomaly_score`` and
    ``p_value``.
    """
    model, tables, table_of_rows = hierarchy.to(choose_device(device)), [], table_of(hierarchy)
    density = partial(log_prob, model, table=table_of_rows)
    for split, events in {"train": train, "valid": valid, "test": test}.items():
        order = np.random.default_rng(SEED).permutation(len(events))
        most = MAX_IMAGES if events.dtype == np.uint8 else MAX_ROWS
        numbers = np.sort(order[: most[split]])
        members, events = groups_of(groups, split), events[numbers]
        columns = {"number": numbers, "group": numbers if members is None else members[numbers]}
        if split == "test":
            scores = score(model, events, QUICK)
            columns["encoder_mse"] = scores["encoder_distance"]
            if "density" in scores:
                columns["bits_per_dim"] = to_bits_per_dim(-scores["density"], events)
            if "groups" in model.calibration:
                calibration = Calibration.from_dict(model.calibration)
                combined = calibration.complete(scores)[COMBINATION]
                columns["anomaly_score"] = combined
                columns["p_value"] = calibration.p_values(COMBINATION, combined)
        elif model.has_density:
            batches = Batches(events, BATCH_SIZE, device=choose_device(device))
            tracked = track(batches, f"bits per dimension, {split}", len(events))
            columns["bits_per_dim"] = to_bits_per_dim(per_event(density, tracked), events)
        if table_of_rows is not None:
            columns["log_det"] = table_of_rows.log_dets(context_of_array(events), len(events))
        tables.append(pd.DataFrame({"split": split, **columns}))
    table = pd.concat(tables, ignore_index=True)
    if "bits_per_dim" not in table:
        table["bits_per_dim"] = math.nan
    if table_of_rows is not None:
        nats = table["bits_per_dim"] * model.event_dim * math.log(2)
        table[NLL] = nats - table.pop("log_det")
    return table


def density_column(scored: pd.DataFrame) -> str:
    """Return the column of densities: ``nll`` of rows of a table, else ``bits_per_dim``."""
    return NLL if NLL in scored else "bits_per_dim"


def split_means(scored: pd.DataFrame) -> dict[str, Interval]:
    """Average the :func:`density_column` of each split, with 95% intervals over groups."""
    column = density_column(scored)
    return {
        str(split): mean_interval(table[column].to_numpy(), group_numbers(table))
        for split, table in scored.groupby("split", sort=False)
    }


def generalization_gap(means: Mapping[str, Interval]) -> Interval:
    """Subtract the mean of the training data from that of the independent test data."""
    test, train = means["test"], means["train"]
    gap = test["value"] - train["value"]
    if test["low"] is None or train["low"] is None:
        return {"value": gap, "low": None, "high": None}
    below = math.hypot(test["value"] - test["low"], train["high"] - train["value"])
    above = math.hypot(test["high"] - test["value"], train["value"] - train["low"])
    return {"value": gap, "low": gap - below, "high": gap + above}


def group_numbers(table: pd.DataFrame) -> np.ndarray | None:
    """Return the group numbers of a split, or None if each event is a group."""
    groups = table["group"].to_numpy()
    return None if len(np.unique(groups)) == len(groups) else groups
