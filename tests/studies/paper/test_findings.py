from types import SimpleNamespace

import pytest

from submanifold.studies.paper import findings
from submanifold.studies.paper.findings import FAILS, HOLDS, NOT_REPORTED, OPEN


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
