from types import SimpleNamespace

import numpy as np
import pytest

from submanifold.studies import findings
from submanifold.studies.findings import FAILS, HOLDS, OPEN


def runs(**by_method):
    """Seeds of methods, each with a metric and its interval of +-0.1."""

    def run(value):
        measured = {"value": None, "why": "no"}
        if value is not None:
            measured = {"value": value, "low": value - 0.1, "high": value + 0.1}
        metrics = {
            "bits_per_dim": measured,
            "parameters": int(100 * (value or 0)),
            "kid": measured,
        }
        return SimpleNamespace(load=lambda name: {"metrics": metrics}[name])

    return {
        method.replace("_", "-"): [run(v) for v in values] for method, values in by_method.items()
    }


def less(one, other):
    return findings._compare("claim", runs(A=one, B=other), "A", "B", "bits_per_dim")


def test_a_claim_holds_fails_or_is_open_by_the_interval_of_the_difference():
    assert less([1.0], [2.0]).verdict == HOLDS
    assert less([2.0], [1.0]).verdict == FAILS
    assert less([1.0], [1.1]).verdict == OPEN  # intervals of 0.1 each
    assert less([1.0, 2.0, 3.0], [1.1, 2.1, 3.11]).verdict == HOLDS  # paired by seed
    assert less([1.0, 2.0, 3.0], [1.1, 1.9, 3.1]).verdict == OPEN
    assert less([1.0, 2.0, 3.0], [2.0, 3.0, 4.0, 9.0]).comparison == "A against B, 3 seeds"


def test_the_difference_is_written_with_its_interval():
    assert less([1.0], [2.0]).found == "-1.000 BPD [-1.141, -0.859]"
    # 4.30265 times 0.1 / sqrt(3)
    assert less([1.0, 2.0, 3.0], [1.9, 3.0, 4.1]).found == "-1.000 BPD [-1.248, -0.752]"


def test_what_is_not_reported_decides_nothing():
    for one, other in ([None], [2.0]), ([1.0], [None]), ([1.0, 1.1, None], [2.0, 3.0, 4.0]):
        found = less(one, other)
        assert (found.found, found.verdict) == ("", findings.NOT_REPORTED)
    (parameters, same, kid) = findings._one_block_is_enough(
        {"PR-D": runs(A=[None])["A"], "PR-H": runs(A=[2.0])["A"]}
    )
    assert parameters.verdict == HOLDS
    assert same.verdict == kid.verdict == findings.NOT_REPORTED


def test_a_value_without_an_interval_is_not_decidable():
    few = runs(A=[1.0], B=[2.0])
    few["A"][0].load("metrics")["bits_per_dim"].update(low=None, high=None)
    found = findings._compare("claim", few, "A", "B", "bits_per_dim")
    assert (found.found, found.verdict) == ("-1.000 BPD", OPEN)


def test_the_trainings_are_compared_on_both_datasets():
    found = findings._less_of_each(
        "Hierarchical training has fewer bits per dimension than end-to-end training",
        {
            **runs(H_MM=[1.0], EE_M=[2.0]),
            **{
                f"{name} on LSUN bedroom": each
                for name, each in runs(H_HH=[3.0], EE_H=[2.0]).items()
            },
        },
    )
    assert [each.comparison for each in found] == [
        "H-MM against EE-M",
        "H-HH against EE-H",
        "H-MM against EE-M on LSUN bedroom",
        "H-HH against EE-H on LSUN bedroom",
    ]
    assert [each.verdict for each in found] == [HOLDS, findings.NOT_RUN, findings.NOT_RUN, FAILS]


def test_fewer_than_three_seeds_are_the_first_alone():
    assert less([1.0, 2.0], [2.0, 9.0]) == less([1.0], [2.0])


@pytest.mark.parametrize(
    ("errors", "verdict", "seeds"),
    [
        ([0.2], HOLDS, ""),
        ([0.05], FAILS, ""),
        ([0.11, 0.111, 0.112], HOLDS, ", 3 seeds"),
        ([0.2, 0.05, 0.1], OPEN, ", 3 seeds"),  # the first seed alone would hold
    ],
)
def test_deltas_are_compared_over_seeds_where_there_are_three(errors, verdict, seeds):
    images = np.random.default_rng(0).integers(0, 256, (90, 3, 4, 4), dtype=np.uint8)

    def trained(error):
        artifacts = {
            "x_train": images[:60],
            "x_test": images[60:],
            "metrics": {"dims": [48, 10]},
            "hierarchy": SimpleNamespace(project=lambda x: x + error),
        }
        return SimpleNamespace(load=artifacts.get, groups=None)

    by_delta = {
        "delta = 0.1": [trained(error) for error in errors],
        "delta = 0.3": [trained(0.1) for _ in errors],
    }
    (found,) = findings._smaller_delta_loses_outliers(by_delta)
    assert found.comparison == f"delta 0.1 against 0.3, on 1% of the pixels{seeds}"
    assert found.verdict == verdict


def test_likelihoods_match_within_the_papers_own_spread():
    def verdicts(one, two):
        return [f.verdict for f in findings._one_block_is_enough(runs(PR_D=one, PR_H=two))]

    assert verdicts([1.0, 2.0, 3.0], [1.01, 2.01, 3.02]) == [HOLDS, HOLDS, OPEN]
    assert verdicts([1.0, 2.0, 3.0], [1.1, 2.1, 3.11]) == [HOLDS, FAILS, HOLDS]
    assert verdicts([3.0], [2.0]) == [FAILS, FAILS, FAILS]


def history(losses=(3.0, 2.0), rollbacks=0, warnings=None):
    return {
        "valid": [{"loss": loss} for loss in losses],
        "train": [{"gradient_norm": 1.0}] * 8,
        "rollbacks": rollbacks,
        "warnings": warnings or {},
    }


@pytest.mark.parametrize(
    ("joint", "hierarchical", "verdict"),
    [
        (history(), history(), FAILS),
        (history(rollbacks=1), history(), HOLDS),
        (history(losses=(3.0, 2.0, 2.2)), history(), HOLDS),
        (history(warnings={"inverse": "..."}), history(), HOLDS),
        (history(rollbacks=1), history(rollbacks=1), OPEN),
        (history(), history(rollbacks=1), OPEN),
    ],
)
def test_a_training_is_unstable_when_it_had_to_go_back_or_ends_above_its_best(
    joint, hierarchical, verdict
):
    def trained(*histories):
        return [SimpleNamespace(histories=lambda: list(histories))]

    found = findings._end_to_end_is_unstable(
        {
            "end-to-end training": trained(joint),
            "hierarchical training": trained(history(), hierarchical),
        }
    )
    assert found.verdict == verdict


def test_what_was_not_run_is_said_to_be_so():
    table, _ = findings.check_findings(runs(PR_M=[1.0], DNF=[2.0]))
    verdicts = dict(zip(table["comparison"], table["verdict"], strict=True))
    assert verdicts["PR-M against DNF"] == HOLDS
    assert verdicts["PR-D against DNF"] == verdicts["two values of delta"] == findings.NOT_RUN
    assert verdicts["3072 → 500 → 100"] == findings.NOT_RUN
