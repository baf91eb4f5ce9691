from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from submanifold.studies.paper import findings
from submanifold.studies.paper.findings import FAILS, HOLDS, NOT_REPORTED, NOT_RUN, OPEN


def runs(**by_method):
    """Seeds of methods, each with a metric and its interval of +-0.1."""

    def run(value):
        measured = {"value": None, "why": "no"}
        if value is not None:
            measured = {"value": value, "low": value - 0.1, "high": value + 0.1}
        parameters = int(100 * (value or 0))
        metrics = {"bits_per_dim": measured, "parameters": parameters, "kid": measured}
        return SimpleNamespace(load=lambda name: {"metrics": metrics}[name])

    return {
        method.replace("_", "-"): [run(v) for v in values] for method, values in by_method.items()
    }


def compare(one, other, metric="bits_per_dim", expected="less"):
    return findings.compare(runs(A=one, B=other), "claim", metric, "A", expected, "B")


@pytest.mark.parametrize(("one", "other", "less", "equal"), [
    ([1.0], [2.0], HOLDS, FAILS),
    ([2.0], [1.0], FAILS, FAILS),
    ([1.0], [1.1], OPEN, OPEN),  # intervals of 0.1 each
    ([1.0, 2.0, 3.0], [1.1, 2.1, 3.11], HOLDS, FAILS),  # paired by seed
    ([1.0, 2.0, 3.0], [1.01, 2.01, 3.02], OPEN, HOLDS),  # within the paper's spread
    ([1.0, 2.0, 3.0], [1.1, 1.9, 3.1], OPEN, OPEN),
    ([None], [2.0], NOT_REPORTED, NOT_REPORTED),
    ([1.0, 1.1, None], [2.0, 3.0, 4.0], NOT_REPORTED, NOT_REPORTED),
])  # fmt: skip
def test_a_claim_is_judged_by_the_interval_of_the_difference(one, other, less, equal):
    assert compare(one, other).verdict == less
    assert compare(one, other, expected="equal").verdict == equal


def test_the_difference_is_shown_with_its_interval_and_number_of_seeds():
    assert compare([1.0], [2.0]).found == "-1.00 BPD [-1.14, -0.86]"
    three = compare([1.0, 2.0, 3.0], [1.9, 3.0, 4.1, 9.0])
    # 4.30265 times 0.1 / sqrt(3)
    assert three.found == "-1.00 BPD [-1.25, -0.75]"
    assert three.comparison == "A against B, 3 seeds"
    assert compare([1.0], [2.0], "parameters").found == "-100 parameters"


def test_a_value_without_an_interval_is_not_decidable():
    few = runs(A=[1.0], B=[2.0])
    few["A"][0].load("metrics")["bits_per_dim"].update(low=None, high=None)
    found = findings.compare(few, "claim", "bits_per_dim", "A", "less", "B")
    assert (found.found, found.verdict) == ("-1.000 BPD", OPEN)


def test_only_the_first_of_fewer_than_three_seeds_is_compared():
    assert compare([1.0, 2.0], [2.0, 9.0]) == compare([1.0], [2.0])


@pytest.mark.parametrize(("errors", "verdict", "seeds"), [
    ([0.2], HOLDS, ""),
    ([0.05], FAILS, ""),
    ([0.11, 0.111, 0.112], HOLDS, ", 3 seeds"),
    ([0.2, 0.05, 0.1], OPEN, ", 3 seeds"),  # the first seed alone would hold
])  # fmt: skip
def test_errors_on_outlier_pixels_are_compared_between_deltas(errors, verdict, seeds):
    images = np.random.default_rng(0).integers(0, 256, (90, 3, 4, 4), dtype=np.uint8)

    def trained(error):
        artifacts = {
            "x_train": images[:60],
            "x_test": images[60:],
            "metrics": {"dims": [48, 10]},
            "hierarchy": SimpleNamespace(encoder_projection=lambda x: x + error),
        }
        return SimpleNamespace(load=artifacts.get, groups=None)

    by_delta = {
        "delta = 0.1": [trained(error) for error in errors],
        "delta = 0.3": [trained(0.1) for _ in errors],
    }
    (found,) = findings.smaller_delta_loses_outliers(by_delta)
    assert found.comparison == f"delta 0.1 against 0.3, on 1% of the pixels{seeds}"
    assert found.verdict == verdict


def history(losses=(3.0, 2.0), rollbacks=0, warnings=None):
    return {
        "valid": [{"loss": loss} for loss in losses],
        "train": [{"gradient_norm": 1.0}] * 8,
        "rollbacks": rollbacks,
        "warnings": warnings or {},
    }


@pytest.mark.parametrize(("joint", "hierarchical", "verdict"), [
    (history(), history(), FAILS),
    (history(rollbacks=1), history(), HOLDS),
    (history(losses=(3.0, 2.0, 2.2)), history(), HOLDS),
    (history(warnings={"inverse": "..."}), history(), HOLDS),
    (history(rollbacks=1), history(rollbacks=1), OPEN),
    (history(), history(rollbacks=1), OPEN),
])  # fmt: skip
def test_rollbacks_warnings_and_a_rising_loss_are_unstable(joint, hierarchical, verdict):
    found = findings.end_to_end_is_unstable({
        "end-to-end training": [SimpleNamespace(histories=lambda: [joint])],
        "hierarchical training": [SimpleNamespace(histories=lambda: [history(), hierarchical])],
    })  # fmt: skip
    assert found.verdict == verdict


def test_missing_runs_are_listed():
    bedrooms = {
        f"{name}{findings.BEDROOMS}": each for name, each in runs(H_HH=[3.0], EE_H=[2.0]).items()
    }
    table = findings.check_findings({**runs(PR_M=[1.0], DNF=[2.0]), **bedrooms}).data
    verdicts = dict(zip(table["comparison"], table["verdict"], strict=True))
    assert verdicts["PR-M against DNF"] == HOLDS
    assert verdicts["H-HH against EE-H on LSUN bedroom"] == FAILS
    for missing in ("PR-D against DNF", "two values of delta", "3072 → 500 → 100"):
        assert verdicts[missing] == NOT_RUN


def test_the_summary_counts_verdicts_and_lists_claims_with_one_verdict():
    rows = [("a", HOLDS), ("a", HOLDS), ("b", FAILS), ("c", HOLDS), ("c", OPEN), ("d", NOT_RUN)]
    counts, holding, failing = findings.summary(pd.DataFrame(rows, columns=["claim", "verdict"]))
    assert counts.startswith("Of 5 comparisons of methods, 3 agree with the paper, 1 contradict it")
    assert holding.endswith(": a.")
    assert failing.endswith(": b.")
