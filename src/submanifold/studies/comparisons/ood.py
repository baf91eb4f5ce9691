"""Out-of-distribution detection by trained models, and bits per dimension of published flows."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from submanifold.evaluation.calibration import COMBINATION
from submanifold.evaluation.metrics import NONE, format_interval
from submanifold.evaluation.ood import (
    ANOMALY,
    LINEAR,
    LINEAR_COMBINATION,
    MEASURES,
    describe_scores,
)
from submanifold.evaluation.scores import SCORES
from submanifold.plots.comparisons import auroc_dots
from submanifold.studies.comparisons import results
from submanifold.studies.comparisons.measures import Measured
from submanifold.studies.experiments import CachedRun
from submanifold.studies.pages import Changes, Content, Need, Runs, Target, read_page
from submanifold.studies.seeds import INTERVAL, count_seeds, over_seeds

RECORD = "docs/evidence/ood.csv"
PAGE = read_page("comparisons/ood")
PAIRS: dict[str, dict[str, Any]] = PAGE["pairs"]
"""Normal and out-of-distribution images: the file in conf/runs whose model is used, the value of
the parameter ``ood``, and the AUROC to reach, if it is not that of linear scores."""
BASELINES = (*LINEAR, LINEAR_COMBINATION)
ORDER = list(describe_scores(dict.fromkeys([*SCORES, COMBINATION, ANOMALY, *BASELINES])))
UNPADDED: Changes = (("data.size", 28), ("data.margin", 0), ("stage_1.flow.levels", 2),
                     ("stage_1.flow.steps", [8, 4]))  # fmt: skip
DENSITIES = {
    f"{name}, {form}": Need(name, changes)
    for name in ("mnist", "fashion_mnist")
    for form, changes in (("padded to 32 x 32", ()), ("28 x 28", UNPADDED))
}
PIXELS = 28 * 28
COLUMNS = {label: f"{measure} .4f" for measure, label in MEASURES.items()}


def needs() -> dict[str, Need]:
    """Return the experiments, by pair or by model."""
    pairs = {}
    for name, pair in PAIRS.items():
        method = (("method", "nested"),) if pair["config"].endswith("-Glow") else ()
        pairs[name] = Need(pair["config"], (*method, ("ood", pair["ood"])))
    return pairs | DENSITIES


def make(runs: Runs, record: pd.DataFrame | None = None) -> Content:
    """Make the page: goals, the scores of each pair, and bits per dimension."""
    rows: list[dict[str, Any]] = []
    counts: dict[str, str] = {}
    for pair in [name for name in PAIRS if name in runs]:
        for seed, run in enumerate(runs[pair]):
            metrics = run.load("ood_metrics")
            text = "{normal:,} normal images, {ood:,} others".format(**metrics["counts"])
            counts.setdefault(pair, text)
            for score, measured in metrics["scores"].items():
                rows += results.as_rows(measured, data=pair, row=score, seed=seed)
    data = results.with_record(rows, record, ORDER)
    tables, figures, goals, reasons = {}, {}, [], []
    summary = results.summarize(data, PAIRS)
    for pair, scores in summary.items():
        scores.update({name: _clipped(row) for name, row in scores.items()})
        some = data[data["data"] == pair]
        images = counts.get(pair, f"{int(some['n'].max()):,} images")
        caption = f"{pair} (AUROC, {images}, {count_seeds(some['seed'].nunique())})"
        described = {(name, text): scores[name] for name, text in describe_scores(scores).items()}
        tables[caption] = results.table(described, ("score", "what it is"), COLUMNS)
        goal, reason = _compare(pair, {name: row["auroc"] for name, row in scores.items()})
        goals.append(goal)
        reasons += reason
    if goals:
        tables = {"Goals": pd.DataFrame(goals)} | tables
        aurocs = {pair: {name: row["auroc"]["value"] for name, row in scores.items()}
                  for pair, scores in summary.items()}  # fmt: skip
        caption = "AUROC of each score on each pair; linear scores are grey"
        figures[caption] = auroc_dots(aurocs, BASELINES)
    if bits := [_bits(label, runs[label]) for label in DENSITIES if label in runs]:
        tables["Bits per dimension of test images"] = pd.DataFrame(bits)
    missing = results.notes_on_rows(data, ((pair, COMBINATION) for pair in PAIRS), RECORD)
    about = results.about_record(PAGE, data)
    about["notes"] += [*reasons, *missing]
    return Content(tables | results.published("ood"), figures, data, **about)


def _clipped(row: Measured) -> Measured:
    """Clip intervals by Student's t to [0, 1], the range of all measures."""
    return {
        name: {end: None if (v := row[name].get(end)) is None else min(max(v, 0.0), 1.0)
               for end in INTERVAL}
        for name in MEASURES
    }  # fmt: skip


def _compare(pair: str, aurocs: Measured) -> tuple[dict[str, str], list[str]]:
    """Compare the combination with its goal and with the best linear score.

    Returns:
        A row of the table of goals, and the reason if a linear score is better.
    """

    def best(names: Iterable[str]) -> tuple[str, Mapping[str, Any]]:
        found = {name: aurocs[name] for name in names if name in aurocs}
        name = max(found, key=lambda name: found[name]["value"], default="")
        return name, found.get(name, {"value": 0.0})

    ours, goal = aurocs[COMBINATION], PAIRS[pair].get("goal")
    (linear, of_linear), (single, of_single) = best(BASELINES), best(SCORES)
    wanted = [] if goal is None else [(f"at least {goal:g}", goal)]
    wanted += [("above the best linear score", of_linear["value"])] if linear else []
    missed = [f"{text}: missed by {value - ours['value']:.4f}"
              for text, value in wanted if ours["value"] < value]  # fmt: skip
    row = {
        "pair": pair,
        "wanted": ", ".join(text for text, _ in wanted),
        "combination": format_interval(ours, ".4f"),
        "best linear score": f"{format_interval(of_linear, '.4f')} ({linear})" if linear else NONE,
        "": "; ".join(missed) or "met",
        "best single score, picked with the labels":
            f"{format_interval(of_single, '.4f')} ({single})",
    }  # fmt: skip
    if ours["value"] >= of_linear["value"]:
        return row, []
    if of_linear["value"] > 0.9995:
        return row, [f"{pair}: a linear score is nearly perfect; no score is better."]
    if of_single["value"] <= ours["value"]:
        return row, []
    return row, [
        f"{pair}: of the model's scores {single} alone has {of_single['value']:.4f}. The "
        "combination weighs it like scores that do not help on this pair: it uses no "
        "out-of-distribution images, and estimates the joint distribution of the scores "
        "from a few validation images."
    ]


def _bits(label: str, runs: Iterable[CachedRun]) -> dict[str, Any]:
    """Bits per dimension of the model, and per pixel of the unpadded image."""
    metrics = [run.load("metrics") for run in runs]
    bits = over_seeds([each["bits_per_dim"] for each in metrics])
    ratio = metrics[0]["dims"][0] / PIXELS
    seconds = [sum(part["seconds"] for part in run.histories()) for run in runs]
    per_pixel = {name: None if value is None else ratio * value for name, value in bits.items()}
    return {
        "model": label,
        "parameters": f"{metrics[0]['parameters']:,}",
        "seconds of training": f"{sum(seconds) / len(seconds):.0f}",
        "seeds": len(metrics),
        "bits per dimension": format_interval(bits, ".3f"),
        "bits per pixel of 28 x 28": format_interval(per_pixel, ".3f"),
    }


TARGET = Target("Out-of-distribution detection", needs(), make, seeds=True, record=RECORD)
