"""Sections of the page of out-of-distribution detection: scores, thresholds, and events."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from submanifold.evaluation.calibration import COMBINATION
from submanifold.evaluation.metrics import format_interval, format_value
from submanifold.evaluation.ood import (
    ANOMALY,
    DESCRIPTIONS,
    LINEAR,
    LINEAR_COMBINATION,
    MEASURES,
    NORMAL,
    OOD,
)

IMAGES, COLUMNS = 16, 8
RATE = 0.05  # of false alarms in the conclusion, if the calibration supports it
CURVES = (ANOMALY, COMBINATION, "density", "nearest_distance", "mahalanobis", LINEAR_COMBINATION)

Measured = Mapping[str, Any]


def main_score(measured: Measured) -> str:
    """Return the score of ``submanifold score``, or the combination if it is not available."""
    return ANOMALY if ANOMALY in measured["scores"] else COMBINATION


def score_rows(measured: Measured) -> list[dict[str, Any]]:
    """Return the rows of the table of scores, the highest AUROC first."""
    scores, main = measured["scores"], main_score(measured)
    rows = []
    for name in (name for name in DESCRIPTIONS if name in scores):
        auroc = scores[name]["auroc"]
        rows.append(
            {
                "name": name,
                "text": DESCRIPTIONS[name],
                "cells": [format_interval(_rounded(scores[name][key]), ".3f") for key in MEASURES],
                "is_main": name == main,
                "is_linear": name in (*LINEAR, LINEAR_COMBINATION),
                "is_inverted": (auroc["value"] if auroc["high"] is None else auroc["high"]) < 0.5,
                **auroc,
            }
        )
    return sorted(rows, key=lambda row: -row["value"])


def _rounded(interval: Measured) -> dict[str, Any]:
    # the ends may differ by a rounding error where a score is perfect
    return {end: value if value is None else round(value, 6) for end, value in interval.items()}


def thresholds(scored: pd.DataFrame, measured: Measured) -> dict[str, float]:
    """Return the lowest score that is flagged at each promised rate."""
    values = {}
    for row in measured.get("alarms", []):
        flagged = scored.loc[scored[f"p_{ANOMALY}"] <= row["rate"], ANOMALY]
        if len(flagged):
            values[f"{100 * row['rate']:g}%"] = float(flagged.min())
    return values


def confused_events(
    scored: pd.DataFrame,
    measured: Measured,
    names: Mapping[str, str],
    show: Callable[[str, np.ndarray, np.ndarray], dict[str, Any]],
) -> list[dict[str, Any]]:
    """Describe the most anomalous events of both parts, and the least anomalous OOD events.

    ``show`` returns what shows events, given their part, numbers and p-values.
    """
    main, entries = main_score(measured), []
    for part, word, outcome in (
        (NORMAL, "most", "false alarms"),
        (OOD, "least", "missed"),
        (OOD, "most", "detected"),
    ):
        of_part = scored[scored["part"] == part]
        order = np.argsort(of_part[main].to_numpy() * (-1 if word == "most" else 1), kind="stable")
        p_values = of_part[f"p_{main}"].to_numpy()[order[:IMAGES]]
        is_counted = (p_values > RATE) if outcome == "missed" else (p_values <= RATE)
        text = (
            f"p-values {p_values.min():.2g} to {p_values.max():.2g}; {is_counted.sum()} of "
            f"these {len(p_values)} are {outcome} at {RATE:.0%}"
        )
        shown = show(part, order[:IMAGES], p_values)
        entries.append({"name": f"“{names[part]}”, {word} anomalous", "text": text, **shown})
    return entries


def show_rows(table: pd.DataFrame, p_values: np.ndarray) -> pd.DataFrame:
    """Return up to 8 columns of rows as text, after their numbers (the index) and p-values."""
    texts = table.iloc[:, :COLUMNS].map(format_value)
    texts.insert(0, "row", table.index.astype(str))
    texts.insert(1, "p-value", [f"{value:.4f}" for value in p_values])
    return texts
