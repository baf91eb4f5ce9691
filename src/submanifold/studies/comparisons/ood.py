"""Out-of-distribution detection by trained models, and bits per dimension of published flows."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from submanifold.evaluation.calibration import COMBINATION
from submanifold.evaluation.metrics import NONE
from submanifold.evaluation.ood import LINEAR, LINEAR_COMBINATION, MEASURES, describe_scores
from submanifold.evaluation.scores import SCORES
from submanifold.plots.comparisons import auroc_dots
from submanifold.studies.comparisons.measures import Measured
from submanifold.studies.comparisons.results import (
    cell,
    notes_on_rows,
    published,
    read_page,
    summarize,
    table,
    with_record,
)
from submanifold.studies.pages import Changes, Content, Need, Runs, Target
from submanifold.studies.seeds import INTERVAL, count_seeds, over_seeds, written

RECORD = "docs/ood.csv"
PAGE = read_page("ood")
BASELINES = (*LINEAR, LINEAR_COMBINATION)
ORDER = list(describe_scores(dict.fromkeys([*SCORES, COMBINATION, *BASELINES])))


class Pair(NamedTuple):
    """Normal images, and out-of-distribution images to detect.

    Attributes:
        config: File in conf/runs whose model is used.
        ood: Value of the parameter ``ood``.
        goal: AUROC to reach without any out-of-distribution image; None is that of linear scores.
    """

    config: str
    ood: str
    goal: float | None = None


PAIRS = {name: Pair(**settings) for name, settings in PAGE["pairs"].items()}
UNPADDED: Changes = (("data.size", 28), ("data.margin", 0), ("stage_1.flow.levels", 2),
                     ("stage_1.flow.steps", [8, 4]))  # fmt: skip
DENSITIES = {
    f"{name}, {form}": Need(name, changes)
    for name in ("mnist", "fashion_mnist")
    for form, changes in (("padded to 32 x 32", ()), ("28 x 28", UNPADDED))
}
PIXELS = 28 * 28
COLUMNS = {label: cell(measure, ".4f") for measure, label in MEASURES.items()}


def needs() -> dict[str, Need]:
    """Return the experiments, by pair or by model."""
    pairs = {}
    for name, pair in PAIRS.items():
        method = (("method", "nested"),) if pair.config.endswith("-Glow") else ()
        pairs[name] = Need(pair.config, (*method, ("ood", pair.ood)))
    return pairs | DENSITIES


def make(runs: Runs, record: pd.DataFrame | None = None) -> Content:
    """Make the page: goals, the scores of each pair, and bits per dimension."""
    metrics = {pair: [run.load("ood_metrics") for run in runs[pair]]
               for pair in PAIRS if pair in runs}  # fmt: skip
    rows = [
        {"data": pair, "row": score, "seed": seed, "measure": name, **value}
        for pair, seeds in metrics.items()
        for seed, found in enumerate(seeds)
        for score, each in found["scores"].items()
        for name, value in each.items()
    ]
    names = {"pair": "data", "score": "row"}
    known = None if record is None else record.rename(columns=names)
    data = with_record(rows, known, ORDER, ("measure", "seed"))
    scores: dict[str, dict[str, Measured]] = {}
    tables, figures = {}, {}
    for pair in [name for name in PAIRS if name in set(data["data"])]:
        some = data[data["data"] == pair]
        scores[pair] = found = {str(name): _clipped(row) for name, row in summarize(some).items()}
        counts = f"{int(some['n'].max()):,} images"
        if pair in metrics:
            of_kind = metrics[pair][0]["counts"]
            counts = f"{of_kind['normal']:,} normal images, {of_kind['ood']:,} others"
        seeds = count_seeds(some["seed"].nunique())
        described = {(name, text): found[name] for name, text in describe_scores(found).items()}
        caption = f"{pair} (AUROC, {counts}, {seeds})"
        tables[caption] = table(described, ("score", "what it is"), COLUMNS)
    if scores:
        tables = {"Goals": _goals(scores)} | tables
        aurocs = {pair: {name: row["auroc"]["value"] for name, row in found.items()}
                  for pair, found in scores.items()}  # fmt: skip
        caption = "AUROC of each score on each pair; linear scores are grey"
        figures[caption] = auroc_dots(aurocs, BASELINES)
    bits = [_bits(label, runs) for label in DENSITIES if label in runs]
    if bits:
        tables["Bits per dimension of test images"] = pd.DataFrame(bits)
    notes = [*PAGE["notes"], *_reasons(scores)]
    notes += notes_on_rows(data, ((pair, COMBINATION) for pair in PAIRS), RECORD)
    data = data.rename(columns={name: column for column, name in names.items()})
    return Content(tables | published("ood"), figures, data, notes)


def _clipped(row: Measured) -> Measured:
    """Clip intervals by Student's t to [0, 1], the range of all measures."""
    return {
        name: {end: None if (v := row[name].get(end)) is None else min(max(v, 0.0), 1.0)
               for end in INTERVAL}
        for name in MEASURES
    }  # fmt: skip


def _best(scores: Mapping[str, Measured], names: Any) -> tuple[str, dict[str, Any]]:
    """The score with the largest AUROC, and its AUROC; nothing if there is none."""
    found = {name: scores[name]["auroc"] for name in names if name in scores}
    name = max(found, key=lambda name: found[name]["value"], default="")
    return name, found.get(name, {})


def _goals(scores: Mapping[str, Mapping[str, Measured]]) -> pd.DataFrame:
    """Compare the combination with its goal and with the best linear score."""
    rows = []
    for pair, found in scores.items():
        ours, goal = found[COMBINATION]["auroc"], PAIRS[pair].goal
        linear, best = _best(found, BASELINES)
        single, first = _best(found, SCORES)
        wanted = [] if goal is None else [(f"at least {goal:g}", goal)]
        wanted += [("above the best linear score", best["value"])] if linear else []
        missed = [f"{text}: missed by {value - ours['value']:.4f}"
                  for text, value in wanted if ours["value"] < value]  # fmt: skip
        rows.append({
            "pair": pair,
            "wanted": ", ".join(text for text, _ in wanted),
            "combination": written(ours),
            "best linear score": f"{written(best)} ({linear})" if linear else NONE,
            "": "; ".join(missed) or "met",
            "best single score, picked with the labels": f"{written(first)} ({single})",
        })  # fmt: skip
    return pd.DataFrame(rows)


def _reasons(scores: Mapping[str, Mapping[str, Measured]]) -> list[str]:
    """Explain each pair on which a linear score is better than the combination."""
    reasons = []
    for pair, found in scores.items():
        ours = found[COMBINATION]["auroc"]["value"]
        linear = _best(found, BASELINES)[1].get("value", 0.0)
        single, best = _best(found, SCORES)
        if ours >= linear:
            continue
        if linear > 0.9995:
            reasons.append(f"{pair}: a linear score is nearly perfect; no score is better.")
        elif best["value"] > ours:
            reasons.append(
                f"{pair}: of the model's scores {single} alone has {best['value']:.4f}. The "
                "combination weighs it like scores that do not help on this pair: it uses no "
                "out-of-distribution images, and estimates the joint distribution of the scores "
                "from a few validation images."
            )
    return reasons


def _bits(label: str, runs: Runs) -> dict[str, Any]:
    """Bits per dimension of the model, and per pixel of the unpadded image."""
    metrics = [run.load("metrics") for run in runs[label]]
    bits = over_seeds([each["bits_per_dim"] for each in metrics])
    ratio = metrics[0]["dims"][0] / PIXELS
    seconds = [sum(part["seconds"] for part in run.histories()) for run in runs[label]]
    per_pixel = {name: None if value is None else ratio * value for name, value in bits.items()}
    return {
        "model": label,
        "parameters": f"{metrics[0]['parameters']:,}",
        "seconds of training": f"{sum(seconds) / len(seconds):.0f}",
        "seeds": len(metrics),
        "bits per dimension": written(bits, ".3f"),
        "bits per pixel of 28 x 28": written(per_pixel, ".3f"),
    }


TARGET = Target(
    "Out-of-distribution detection", needs(), make, seeds=True, record=RECORD
)  # fmt: skip
