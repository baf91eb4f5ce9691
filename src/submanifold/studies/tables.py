"""The paper's tables, beside what was measured here."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student_t

from submanifold.config import flatten
from submanifold.evaluation.intervals import plus_minus
from submanifold.evaluation.metrics import COMPARED, NONE, format_interval
from submanifold.studies import paper
from submanifold.studies.experiments import Experiment

UNLIKE = {"dataset", "method", "seed", "data.path", "data.url", "data.hash", "device"}
FLOOR = "training images"
WRITTEN = 1e-5  # the same numbers, some of them from a file


@dataclass(frozen=True)
class Cell:
    """A column of one of the paper's tables: a method, and its experiments, one for each seed."""

    method: str
    stage_dims: str
    experiments: Sequence[Experiment]


def paper_table(number: int) -> pd.DataFrame:
    """Read the paper's numbers of one table: see :func:`submanifold.studies.paper.results`."""
    results = paper.results()
    return results[results["table"] == number]


def recipe_name(dataset: str, method: str, stage_dims: str) -> str:
    """Name the recipe in conf/runs/ of a cell: ``celeba-H-MM-1000-500``."""
    inner = stage_dims.partition("-")[2]
    return f"{dataset}-{method.replace('*', '-star')}-{inner}".rstrip("-")


def results_table(table: int, cells: Sequence[Cell]) -> pd.DataFrame:
    """Lay out a table's cells, one metric a row; training images in the samples' place close it.

    Returns:
        Columns ``method``, ``stage_dims``, ``metric``, ``value``, its 95% interval ``low`` and
        ``high`` (:func:`over_seeds`), ``paper``, ``paper_spread``, ``difference`` from the paper's,
        and the counts ``seeds``, ``n_train``, ``n_test``, ``n_samples``. Metrics that no cell has
        are left out.
    """
    columns = ["method", "stage_dims", "metric"]
    printed = paper_table(table).set_index(columns).to_dict("index")
    measured = [
        (cell.method, cell.stage_dims, [each.load("metrics") for each in cell.experiments])
        for cell in cells
    ]
    first = measured[0][2][0]
    if first["training_images"]:
        measured.append((FLOOR, "", [{"counts": first["counts"], **first["training_images"]}]))
    every = [run for _, _, runs in measured for run in runs]
    shown = {
        name: m for name, m in COMPARED.items() if any(m.read(run) is not None for run in every)
    }
    rows = []
    for method, dims, runs in measured:
        counts = {f"n_{name}": runs[0]["counts"][name] for name in ("train", "test", "samples")}
        for column, metric in shown.items():
            here = over_seeds([metric.read(run) for run in runs])
            there = printed.get((method, dims, column), {"value": None, "spread": None})
            row = {"method": method, "stage_dims": dims, "metric": column, **here}
            row |= {"paper": there["value"], "paper_spread": there["spread"], "difference": None}
            if here["value"] is not None and there["value"] is not None:
                row["difference"] = here["value"] - there["value"]
            rows.append(row | {"seeds": len(runs), **counts})
    return pd.DataFrame(rows)


def over_seeds(values: Sequence[Any]) -> dict[str, Any]:
    """Put one number of several seeds together.

    Returns:
        ``value``, the mean, and ``low`` and ``high``: with one seed, or a number that no seed
        changes, its interval over test images; else that of the mean over seeds.
    """
    measured = [each if isinstance(each, Mapping) else {"value": each} for each in values]
    numbers: list[Any] = [each.get("value") for each in measured]
    if None in numbers:
        return dict.fromkeys(("value", "low", "high"))
    if np.allclose(numbers, numbers[0], rtol=WRITTEN, atol=0):
        return {name: measured[0].get(name) for name in ("value", "low", "high")}
    return interval_over_seeds(numbers)


def interval_over_seeds(numbers: Sequence[float]) -> dict[str, float]:
    """Mean of two or more seeds, with its 95% interval by Student's t.

    It knows what training anew changes, the test images being the same.
    """
    n = len(numbers)
    error = np.std(numbers, ddof=1) / np.sqrt(n)
    return plus_minus(float(np.mean(numbers)), float(student_t.ppf(0.975, n - 1) * error))


def written(measured: Mapping[str, Any], form: str = ".4f") -> str:
    """Write a value and its interval, where there are any: ``0.912 [0.905, 0.919]``."""
    return format_interval(measured, form)


def readable(results: pd.DataFrame) -> pd.DataFrame:
    """Lay the same out for reading: a method a row, each number beside the paper's."""
    in_paper = set(results.loc[results["paper"].notna(), "metric"])
    rows = []
    for method, found in results.groupby("method", sort=False):
        first = found.iloc[0]
        row = {"method": method, "dimensions": first["stage_dims"].replace("-", " → ")}
        if results["seeds"].max() > 1:
            row["seeds"] = NONE if method == FLOOR else str(first["seeds"])
        for measured in found.to_dict("records"):
            metric = COMPARED[measured["metric"]]
            row[metric.label] = metric.write(measured)
            if measured["metric"] in in_paper:
                printed = measured["paper"], measured["paper_spread"]
                row[f"{metric.label}, paper"] = paper.write(*printed)
                if metric.better:
                    difference = metric.write(measured["difference"], signed=True)
                    row[f"{metric.label}, difference"] = difference
        rows.append(row)
    table = pd.DataFrame(rows)
    kept = {COMPARED[name].label for name in in_paper}
    return table[[c for c in table if (table[c] != NONE).any() or c in kept]]


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
