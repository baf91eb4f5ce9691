"""Claims of the paper, judged by the metrics of the models trained here."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import pandas as pd

from submanifold.evaluation.intervals import Interval, interval_over_seeds, plus_minus
from submanifold.evaluation.metrics import METRICS, is_missing
from submanifold.runs.experiments import CachedRun
from submanifold.studies.pages import Runs, read_page
from submanifold.studies.paper.statistics import (
    STATISTICS,
    measure_normality,
    measure_sharpness,
)

HOLDS, FAILS, OPEN = "holds", "does not hold", "not decidable at this size"
NOT_RUN, NOT_REPORTED = "not run", "not reported"
FEWEST_SEEDS = 3  # with fewer, only the first is compared
MATCH = 0.05  # bits per dimension that count as equal: the spread that the paper prints
EXPECTED = {"less": (-math.inf, 0.0), "more": (0.0, math.inf), "equal": (-MATCH, MATCH)}
"""The differences for which a claim holds."""
AFTER = " after stage "  # between a method and the stage whose coordinates are measured
EQUAL_DIMS = "equal dimensions, the most that so few training images allow"
NORMALITY = "excess_kurtosis"  # name of its measurements of all stages
PAGE = read_page("paper/findings")
CLAIMS = PAGE["claims"]
NAMES = {
    name for pairs in CLAIMS.values() for _, first, _, second in pairs for name in (first, second)
}


class Finding(NamedTuple):
    """One comparison that bears on a claim."""

    claim: str
    comparison: str
    found: str = ""
    verdict: str = NOT_RUN


def compare(runs: Runs, claim: str, metric: str, first: str, expected: str, second: str) -> Finding:
    """Judge the difference of a metric between the methods ``first`` and ``second``.

    ``H-MM after stage 1`` is the method H-MM, of which a statistic is measured after each stage.
    """
    _, on, place = second.partition(" on ")
    comparison = f"{first.removesuffix(on + place)} against {second}"
    labels = method_of(first), method_of(second)
    if not {*labels} <= runs.keys():
        return Finding(claim, comparison)
    if _place(labels[0]) != _place(labels[1]) and _dims(runs, labels[0]) == _dims(runs, labels[1]):
        return Finding(claim, comparison, EQUAL_DIMS)
    pairs = [
        [_measured(run, metric, name) for run, name in zip(pair, (first, second), strict=True)]
        for pair in zip(*(runs[label] for label in labels), strict=False)
    ]
    comparison += with_seeds(len(pairs))
    return judge(claim, comparison, difference(pairs), metric, expected)


def claims_of(runs: Runs) -> pd.DataFrame:
    """Judge the claims that compare two of the methods of these runs."""
    return pd.DataFrame(
        [
            compare(runs, claim, *pair)
            for claim, pairs in CLAIMS.items()
            for pair in pairs
            if {method_of(pair[1]), method_of(pair[3])} <= runs.keys()
        ],
        columns=Finding._fields,
    )


def _place(label: str) -> str:
    """Return the data and the dimension in a label, such as ``LSUN bedroom at d = 700``."""
    return label.partition(" on ")[2]


def _dims(runs: Runs, label: str) -> list[int]:
    return [*runs[label][0].load("metrics")["dims"]]


def method_of(name: str) -> str:
    """Return the label of the runs of a method, or of a method after a stage."""
    return name.partition(AFTER)[0]


def _measured(run: CachedRun, metric: str, name: str) -> Any:
    """Read a metric of a run, or measure a statistic of the method ``name``."""
    if metric == "excess_kurtosis":
        stage = int(name.partition(AFTER)[2])
        return run.cached(NORMALITY, partial(measure_normality, run))[stage - 1]
    if metric == "sharpness":
        return run.cached(metric, partial(measure_sharpness, run))
    return run.load("metrics")[metric]


def difference(pairs: Sequence[Sequence[Any]]) -> Interval:
    """Mean difference of a metric between two methods, one pair a seed, with its 95% interval."""
    pairs = pairs if len(pairs) >= FEWEST_SEEDS else pairs[:1]
    if not isinstance(pairs[0][0], Mapping):  # an exact number, equal for all seeds
        return plus_minus(pairs[0][0] - pairs[0][1], 0)
    if any(is_missing(interval["value"]) for pair in pairs for interval in pair):
        return {"value": None}
    differences = [a["value"] - b["value"] for a, b in pairs]
    if len(pairs) > 1:
        return interval_over_seeds(differences)
    if any(is_missing(interval["low"]) for interval in pairs[0]):
        return {"value": differences[0]}
    return plus_minus(differences[0], math.hypot(*(x["high"] - x["low"] for x in pairs[0])) / 2)


def judge(claim: str, comparison: str, measured: Interval, metric: str, expected: str) -> Finding:
    """Judge a claim on the difference of a metric by its interval."""
    if is_missing(measured["value"]):
        return Finding(claim, comparison, verdict=NOT_REPORTED)
    (least, most), verdict = EXPECTED[expected], OPEN
    low, high = measured.get("low"), measured.get("high")
    if low is not None and high is not None and not is_missing(low):
        if least < low and high < most:
            verdict = HOLDS
        elif high < least or low > most:
            verdict = FAILS
    shown = measured["value"] if low == high else measured  # exact numbers, or no interval
    found = (METRICS | STATISTICS)[metric].write(shown, signed=True, label=True)
    return Finding(claim, comparison, found, verdict)


def with_seeds(seeds: int) -> str:
    """Return the number of seeds as an addition to a comparison, if all are compared."""
    return f", {seeds} seeds" if seeds >= FEWEST_SEEDS else ""


def summary(table: pd.DataFrame) -> list[str]:
    """Count the verdicts, and list the claims whose comparisons all have the same one."""
    tried = table[~table["verdict"].isin([NOT_RUN, NOT_REPORTED])]
    counts = tried["verdict"].value_counts()
    lines = [
        f"Of {len(tried)} comparisons of methods, {counts.get(HOLDS, 0)} agree with the paper, "
        f"{counts.get(FAILS, 0)} contradict it, and {counts.get(OPEN, 0)} are not decidable at "
        "this size."
    ]
    verdicts = tried.groupby("claim", sort=False)["verdict"].agg(set)
    for verdict, text in ((HOLDS, "Holds in every comparison"), (FAILS, "Fails in every one")):
        claims = [str(claim) for claim, found in verdicts.items() if found == {verdict}]
        lines += [f"{text}: {'; '.join(claims)}."] if claims else []
    return lines


def notes(runs: Runs) -> list[str]:
    """Describe the data, the intervals and the verdicts."""
    several = any(len(seeds) > 1 for seeds in runs.values())
    lines = [PAGE["data"], PAGE["several_seeds" if several else "one_seed"], PAGE["verdicts"]]
    if normal := sorted(_normal_levels(runs)):
        ends = dict.fromkeys(f"{level:.2f}" for level in (normal[0], normal[-1]))
        lines.append(PAGE["statistics"].format(normal=" to ".join(ends)))
    return lines


def _normal_levels(runs: Runs) -> Iterator[float]:
    """Yield the excess kurtosis of as many normal draws as there are test images."""
    for label in {method_of(name) for name in NAMES if AFTER in name} & runs.keys():
        run = runs[label][0]
        for stage in run.cached(NORMALITY, partial(measure_normality, run)):
            yield stage["normal"]
