"""Out-of-distribution detection by trained models."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from submanifold.evaluation import ood as detection
from submanifold.evaluation.calibration import COMBINATION
from submanifold.evaluation.intervals import ENDS
from submanifold.evaluation.metrics import NONE, format_interval
from submanifold.evaluation.scores import SCORES
from submanifold.plots.comparisons import auroc_dots
from submanifold.studies import results
from submanifold.studies.pages import Content, Params, Runs, Target, read_page
from submanifold.studies.results import Measured

PAGE = read_page("comparisons/ood")
PAIRS: dict[str, Params] = PAGE["pairs"]  # parameters by normal and out-of-distribution images
BASELINES = (*detection.LINEAR, detection.LINEAR_COMBINATION)
ORDER = list(detection.DESCRIPTIONS)


def make(runs: Runs) -> Content:
    """Make the page: goals, and the scores of each pair."""
    rows: list[dict[str, Any]] = []
    for pair, _, seed, run in results.by_seed(runs):
        for score, measured in run.load("ood_metrics")["scores"].items():
            rows += results.as_rows(measured, data=pair, row=score, seed=seed)
    data = results.in_order(rows, ORDER)
    summary = results.summarize(data, PAIRS)
    aurocs = {
        pair: {name: _clipped(row["auroc"]) for name, row in scores.items()}
        for pair, scores in summary.items()
    }
    tables, figures = {}, {}
    if aurocs:
        tables["Goals"] = pd.DataFrame([_compare(pair, of) for pair, of in aurocs.items()])
        names = [name for name in ORDER if any(name in of for of in aurocs.values())]
        cells = {
            pair: {name: format_interval(of.get(name), ".4f") for name in names}
            for pair, of in aurocs.items()
        }
        tables["AUROC of each score"] = pd.DataFrame(cells).rename_axis("score").reset_index()
        caption = "AUROC of each score on each pair; linear scores are grey"
        values = {
            pair: {name: auroc["value"] for name, auroc in of.items()}
            for pair, of in aurocs.items()
        }
        figures[caption] = auroc_dots(values, BASELINES)
    return results.comparison("ood", PAGE, data, tables, figures)


def _clipped(auroc: Mapping[str, Any]) -> dict[str, Any]:
    """Clip an interval by Student's t to [0, 1]."""
    return {end: None if (v := auroc.get(end)) is None else min(max(v, 0.0), 1.0) for end in ENDS}


def _compare(pair: str, aurocs: Measured) -> dict[str, str]:
    """Compare the combination with its goal and with the best linear score."""

    def best(names: Iterable[str]) -> tuple[str, Mapping[str, Any]]:
        candidates = {name: aurocs[name] for name in names if name in aurocs}
        name = max(candidates, key=lambda name: candidates[name]["value"], default="")
        return name, candidates.get(name, {"value": 0.0})

    ours, goal = aurocs[COMBINATION], PAGE["goals"].get(pair)
    (linear, of_linear), (single, of_single) = best(BASELINES), best(SCORES)
    wanted = [] if goal is None else [(f"at least {goal:g}", goal)]
    wanted += [("above the best linear score", of_linear["value"])] if linear else []
    missed = [
        f"{text}: missed by {value - ours['value']:.4f}"
        for text, value in wanted
        if ours["value"] < value
    ]
    return {
        "pair": pair,
        "wanted": ", ".join(text for text, _ in wanted),
        "combination": format_interval(ours, ".4f"),
        "best linear score": f"{format_interval(of_linear, '.4f')} ({linear})" if linear else NONE,
        "": "; ".join(missed) or "met",
        "best single score, picked with the labels": (
            f"{format_interval(of_single, '.4f')} ({single})"
        ),
    }


TARGET = Target("Out-of-distribution detection", PAIRS, make, seeds=True)
