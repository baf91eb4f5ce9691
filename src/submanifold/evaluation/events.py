"""One table with a row for each measured event, and summaries of its columns."""

import math
from collections.abc import Mapping
from functools import partial

import numpy as np
import pandas as pd

from submanifold.common.progress import track
from submanifold.data.batches import Batches
from submanifold.data.events import Events
from submanifold.evaluation.baselines import MEASURED, evenly_spaced, projected_events
from submanifold.evaluation.calibration import COMBINATION, Calibration
from submanifold.evaluation.intervals import Interval, mean_interval
from submanifold.evaluation.likelihood import BATCH_SIZE, table_of, to_bits_per_dim
from submanifold.evaluation.reconstruction import NEAREST_BATCH_SIZE, squared_errors
from submanifold.evaluation.scores import QUICK, score
from submanifold.models import Hierarchy, Model

NLL = "nll"  #: Column in the units of a table; images have bits per dimension.


def measure_events(
    model: Model, splits: Mapping[str, Events], most: int | None = None
) -> pd.DataFrame:
    """Measure 512 evenly spaced events of each split; of the test data all, or at most ``most``.

    The columns are ``split``, ``number`` in its array, ``group`` (the number, if events are
    independent), ``bits_per_dim`` (NaN without a density), and ``nll`` of rows of a table in its
    units. For test data they are also the quick scores by their names, among them the squared error
    ``encoder_distance``; that of stage 1, ``stage_1_distance``, if it keeps more dimensions; those
    of 64 evenly spaced events, ``default_distance`` and ``nearest_distance``; and with a
    calibration ``anomaly_score`` and ``p_value``.
    """
    tables = []
    for split, events in splits.items():
        is_test = split == "test"
        count = (most or len(events)) if is_test else MEASURED
        numbers = evenly_spaced(np.arange(len(events)), count)
        chosen = events[numbers]
        table = pd.DataFrame({"split": split, "number": numbers})
        table["group"] = numbers if chosen.groups is None else chosen.groups
        scores: dict[str, np.ndarray] = {}
        if is_test or model.has_density:
            scores = score(model, chosen, QUICK if is_test else ("density",))
        nats = -scores["density"] if "density" in scores else np.full(len(numbers), math.nan)
        table["bits_per_dim"] = to_bits_per_dim(nats, chosen.x)
        if (columns := table_of(model)) is not None:
            table[NLL] = -nats - columns.log_dets(chosen.x, chosen.context)
        if is_test:
            table = table.assign(**scores, **_projection_errors(model, chosen))
            if (calibration := Calibration.of(model)) is not None:
                combined = calibration.complete(scores)[COMBINATION]
                table["anomaly_score"] = combined
                table["p_value"] = calibration.p_values(COMBINATION, combined)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _projection_errors(model: Model, test: Events) -> dict[str, np.ndarray]:
    """Return squared errors (N,) by column; infinite ones overflow, NaN ones are not measured."""
    device, errors = next(model.parameters()).device, {}
    if isinstance(model, Hierarchy) and model.stages[0].dim > model.dim:
        first = Hierarchy(model.stages[:1])
        of_all = Batches(test, BATCH_SIZE, device=device)
        tracked = track(of_all, "projections of stage 1", len(test))
        errors["stage_1_distance"] = squared_errors(first.encoder_projection, tracked)
    if model.dim < model.event_dim:
        chosen = projected_events(len(test))
        batches = Batches(test[chosen], NEAREST_BATCH_SIZE, device=device)
        for name in ("default", "nearest"):
            project = partial(model.project, nearest=name == "nearest")
            tracked = track(batches, f"{name} projections", len(chosen))
            distances = np.full(len(test), math.nan)
            distances[chosen] = np.nan_to_num(squared_errors(project, tracked), nan=math.inf)
            errors[f"{name}_distance"] = distances
    return errors


def of_split(table: pd.DataFrame, split: str) -> pd.DataFrame:
    """Return the rows of a split."""
    return table[table["split"] == split]


def summarize(rows: pd.DataFrame, column: str) -> Interval:
    """Average a column of the table, with its 95% interval over events or their groups."""
    return mean_interval(rows[column].to_numpy(), group_numbers(rows))


def group_numbers(rows: pd.DataFrame) -> np.ndarray | None:
    """Return the groups of rows of one split, or None if each event is a group."""
    groups = rows["group"].to_numpy()
    return None if len(np.unique(groups)) == len(groups) else groups


def density_column(table: pd.DataFrame) -> str:
    """Return the column of densities: ``nll`` of rows of a table, else ``bits_per_dim``."""
    return NLL if NLL in table else "bits_per_dim"


def generalization_gap(means: Mapping[str, Interval]) -> Interval:
    """Subtract the mean of the training data from that of the independent test data."""
    test, train = means["test"], means["train"]
    gap = test["value"] - train["value"]
    if test["low"] is None or train["low"] is None:
        return {"value": gap, "low": None, "high": None}
    below = math.hypot(test["value"] - test["low"], train["high"] - train["value"])
    above = math.hypot(test["high"] - test["value"], train["value"] - train["low"])
    return {"value": gap, "low": gap - below, "high": gap + above}
