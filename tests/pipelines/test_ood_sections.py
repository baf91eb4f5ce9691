"""The sentences, tables and commands of the page of out-of-distribution detection."""

import pytest

from submanifold.evaluation.intervals import plus_minus
from submanifold.evaluation.ood import ANOMALY, LINEAR, LINEAR_COMBINATION, MEASURES
from submanifold.pipelines.ood import sections


def measured(auroc, linear=0.5, false_alarms=0.05, detected=0.9, expected=0.02):
    """Measures of scores with an interval of +- 0.05."""
    values = {
        "density": 0.4,
        ANOMALY: auroc,
        **dict.fromkeys((*LINEAR, LINEAR_COMBINATION), linear),
    }
    scores = {
        name: dict.fromkeys(MEASURES, plus_minus(value, 0.05)) for name, value in values.items()
    }
    rates = {"false_alarms": plus_minus(false_alarms, 0.02), "detected": plus_minus(detected, 0.03)}
    rates["expected"] = plus_minus(0.05, expected)
    return {"scores": scores, "alarms": [{"rate": rate, **rates} for rate in (0.1, 0.05)]}


@pytest.mark.parametrize(("given", "expected"), [
    (measured(0.52), ["includes 0.5"]),
    (measured(0.3, linear=0.6), ["have lower anomaly scores", "A linear score is better"]),
    (measured(0.8, linear=0.95), ["A linear score is better: pca_distance has an AUROC of 0.95"]),
    (measured(0.9, detected=0.3), ["70% of the “noise” images are missed at --alpha=5%."]),
    (measured(0.9, false_alarms=0.08), ["more false alarms than promised at 10%, 5%"]),
    (measured(0.9, false_alarms=0.08, expected=0.04), []),
])  # fmt: skip
def test_warnings_follow_from_the_intervals(given, expected):
    found = sections.warnings(given, "mnist", "noise")
    assert len(found) == len(expected)
    assert all(text in warning for text, warning in zip(expected, found, strict=True))
