"""The paper's tables, beside what was measured here."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student_t

from submanifold.config import flatten
from submanifold.pipelines.reporting.nodes import paper_results
from submanifold.reproduction.experiments import Experiment

LABELS = {"bpd": "BPD", "mse": "MSE", "fid": "FID", "parameters": "parameters"}
FORMS = {"bpd": "{:.3f}", "mse": "{:.5f}", "fid": "{:.1f}", "parameters": "{:,.0f}"}
ALSO = {
    "stage_1_mse": ("MSE, stage 1 alone", "{:.5f}"),
    "precision": ("precision", "{:.2f}"),
    "recall": ("recall", "{:.2f}"),
    "kid": ("KID", "{:.3f}"),
    "sliced_wasserstein": ("sliced Wasserstein", "{:.0f}"),
}
WHERE = {"bpd": "bits_per_dim"}  # the names of metrics.json where they are others
UNLIKE = {"dataset", "method", "seed", "data.path", "data.url", "data.hash", "device"}
NONE = "–"
FLOOR = "training images"

Measured = Mapping[Any, Any]


@dataclass(frozen=True)
class Cell:
    """A column of one of the paper's tables: a method, and its experiments, one for each seed."""

    method: str
    stage_dims: str
    experiments: Sequence[Experiment]


def paper_table(number: int) -> pd.DataFrame:
    """Read the paper's figures of one table: see :func:`paper_results`."""
    results = paper_results()
    return results[results["table"] == number]


def recipe_name(dataset: str, method: str, stage_dims: str) -> str:
    """Name the recipe in conf/runs/ of a cell: ``celeba-H-MM-1000-500``."""
    inner = stage_dims.partition("-")[2]
    return f"{dataset}-{method.replace('*', '-star')}-{inner}".rstrip("-")


def results_table(table: int, cells: Sequence[Cell]) -> pd.DataFrame:
    """Lay out a table's cells, one figure a row, beside the paper's.

    What compares samples with test images, training images in their place close the table with.

    Returns:
        Columns ``method``, ``stage_dims``, ``metric``, ``value``, its 95% interval ``low`` and
        ``high`` (:func:`over_seeds`), ``paper``, ``paper_spread``, ``difference`` from the paper's,
        and the counts ``seeds``, ``n_train``, ``n_test``, ``n_samples``.
    """
    paper = paper_table(table)
    measured = [
        (cell.method, cell.stage_dims, [each.load("metrics") for each in cell.experiments])
        for cell in cells
    ]
    first = measured[0][2][0]
    if first["training_images"]:
        floor = {"counts": first["counts"], "baselines": {"pca": {}}, **first["training_images"]}
        measured.append((FLOOR, "", [floor]))
    rows = []
    for method, dims, runs in measured:
        same = paper[(paper["method"] == method) & (paper["stage_dims"] == dims)]
        same = same.set_index("metric")
        counts = runs[0]["counts"]
        pca = [run["baselines"]["pca"] for run in runs]
        found = {
            **{name: [run.get(WHERE.get(name, name)) for run in runs] for name in LABELS},
            **{name: [run.get(name) for run in runs] for name in ALSO},
            "pca_mse": [each.get("mse") for each in pca],
        }
        for metric, values in found.items():
            printed: dict[str, Any] = dict(same.loc[metric]) if metric in same.index else {}
            together = over_seeds(values)
            here, there = together["value"], printed.get("value")
            rows.append(
                {
                    "method": method,
                    "stage_dims": dims,
                    "metric": metric,
                    **together,
                    "paper": there,
                    "paper_spread": printed.get("spread"),
                    "difference": here - there if here is not None and there else None,
                    "seeds": len(runs),
                    "n_train": counts["train"],
                    "n_test": counts["test"],
                    "n_samples": counts["samples"],
                }
            )
    return pd.DataFrame(rows)


def over_seeds(values: Sequence[Any]) -> dict[str, float | None]:
    """Put one figure of several seeds together.

    Returns:
        ``value``, the mean, and ``low`` and ``high``: with one seed, or a figure that no seed
        changes, its interval over test images; with several that of the mean over seeds by
        Student's t, which knows what training anew changes, the test images being the same.
    """
    figures = [each if isinstance(each, Mapping) else {"value": each} for each in values]
    numbers = [each["value"] for each in figures if each.get("value") is not None]
    if len(numbers) < len(figures):
        return {"value": None, "low": None, "high": None}
    if len(set(numbers)) == 1:
        one = figures[0]
        return {"value": float(one["value"]), "low": one.get("low"), "high": one.get("high")}
    mean, half = float(np.mean(numbers)), half_width(numbers)
    return {"value": mean, "low": mean - half, "high": mean + half}


def half_width(numbers: Sequence[float]) -> float:
    """Half the width of the 95% interval of a mean, by Student's t."""
    n = len(numbers)
    return float(student_t.ppf(0.975, n - 1) * np.std(numbers, ddof=1) / np.sqrt(n))


def readable(results: pd.DataFrame) -> pd.DataFrame:
    """Lay the same out for reading: a method a row, each figure beside the paper's."""
    printed = [name for name in LABELS if results.query("metric == @name")["paper"].notna().any()]
    methods: dict[str, dict[str, Measured]] = {}
    for each in results.to_dict("records"):
        methods.setdefault(each["method"], {})[each["metric"]] = each
    rows = []
    for method, by_metric in methods.items():
        dims = by_metric["mse"]["stage_dims"].replace("-", " → ")
        row = {"method": method, "dimensions": dims}
        if results["seeds"].max() > 1:
            row["seeds"] = NONE if method == FLOOR else str(by_metric["mse"]["seeds"])
        for name in printed:
            found = by_metric[name]
            row[LABELS[name]] = _with_interval(found, FORMS[name])
            row[f"{LABELS[name]}, paper"] = _with_spread(found)
            if name != "parameters":
                row[f"{LABELS[name]}, difference"] = _signed(found["difference"], FORMS[name])
        row["MSE of PCA"] = _with_interval(by_metric["pca_mse"], "{:.5f}")
        for name, (label, form) in ALSO.items():
            row[label] = _with_interval(by_metric[name], form)
        rows.append(row)
    table = pd.DataFrame(rows)
    return table[[c for c in table if (table[c] != NONE).any() or c in ("FID", "method")]]


def differing_settings(
    experiments: Mapping[str, Experiment],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Find the settings of some experiments that are not the paper's.

    Returns:
        Those that all have in common, and those of one or some: columns ``setting``, ``here``,
        ``paper`` and, in the second, ``method``.
    """
    rows = []
    for name, experiment in experiments.items():
        here, paper = flatten(experiment.parameters), flatten(_in_paper(experiment).parameters)
        for setting in sorted((here.keys() | paper.keys()) - UNLIKE):
            if here.get(setting) != paper.get(setting):
                values = (json.dumps(each.get(setting)) for each in (here, paper))
                rows.append((name, setting, *values))
    table = pd.DataFrame(rows, columns=["method", "setting", "here", "paper"])
    each = ["setting", "here", "paper"]
    grouped = table.groupby(each, sort=False)["method"].agg([", ".join, "count"]).reset_index()
    common = grouped["count"] == len(experiments)
    some = grouped[~common].rename(columns={"join": "method"})
    return grouped.loc[common, each], some[[*each, "method"]]


def _in_paper(experiment: Experiment) -> Experiment:
    """The same experiment in the paper's environment, which does not see conf/local."""
    twin = Experiment(experiment.name, experiment.params, experiment.project, "paper")
    path = experiment.parameters["data"].get("path")
    return twin.changed("data.path", path) if path else twin


def _with_interval(row: Measured, form: str) -> str:
    if _missing(row["value"]):
        return NONE
    text = form.format(row["value"])
    if _missing(row["low"]):
        return text
    return f"{text} [{form.format(row['low'])}, {form.format(row['high'])}]"


def _with_spread(row: Measured) -> str:
    if _missing(row["paper"]):
        return NONE
    spread = "" if _missing(row["paper_spread"]) else f" ± {row['paper_spread']:g}"
    return f"{row['paper']:,g}{spread}" if row["paper"] < 1e5 else f"{row['paper']:,.0f}{spread}"


def _signed(difference: float | None, form: str) -> str:
    return NONE if _missing(difference) else form.replace(":", ":+").format(difference)


def _missing(value: Any) -> bool:
    return value is None or pd.isna(value)
