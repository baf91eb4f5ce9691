"""Tables 1 to 5: the paper's numbers next to those measured here."""

import json
from collections.abc import Mapping, Sequence

import pandas as pd

from submanifold.config.schema import flatten
from submanifold.evaluation import paper
from submanifold.evaluation.metrics import COMPARED, NONE
from submanifold.studies.experiments import CachedRun
from submanifold.studies.pages import Content, Need, Runs, Target
from submanifold.studies.seeds import INTERVAL, count_seeds, over_seeds

TITLES = {
    1: "Single-step methods on CelebA, manifolds of dimension 500",
    2: "Hierarchical methods on CelebA, 3072 → 1000 → 500",
    3: "Hierarchical methods and DNF on LSUN bedroom, manifolds of dimension 1000",
    4: "The likelihood's weight halved in the first stage, on LSUN bedroom",
    5: "Hierarchical structure and DNF on LSUN bedroom, manifolds of dimension 700",
}
FLOOR = "training images"
NOT_COMPARED = {"dataset", "method", "seed", "data.path", "data.url", "data.hash", "device",
                "threads"}  # fmt: skip
"""Settings that are expected to differ from the paper's."""

Cell = tuple[str, str, str]
"""Data set, method, and dimensions of the stages (``3072-1000-500``)."""


def paper_cells(table: int) -> list[Cell]:
    """List the methods of one of the paper's tables."""
    results = paper.results()
    cells = results.loc[results["table"] == table, ["dataset", "method", "stage_dims"]]
    return list(cells.drop_duplicates().itertuples(index=False, name=None))


def control_cells(table: int) -> list[Cell]:
    """List methods that the paper's table lacks: Glow alone, and DNF as its code trains it."""
    dataset = paper_cells(table)[0][0]
    published = [(dataset, "DNF-code", "3072-500-500")] if table == 1 else []
    return [*published, (dataset, "Glow", "3072")]


def needs_of(cells: Sequence[Cell]) -> dict[str, Need]:
    """Return the needs of methods, by method."""
    return {method: Need(config_name(data, method, dims)) for data, method, dims in cells}


def config_name(dataset: str, method: str, stage_dims: str) -> str:
    """Name the file in conf/runs of a cell: ``celeba-H-MM-1000-500``."""
    inner = stage_dims.partition("-")[2]
    return f"{dataset}-{method.replace('*', '-star')}-{inner}".rstrip("-")


def results_table(table: int, stage_dims: Mapping[str, str], runs: Runs) -> pd.DataFrame:
    """Collect the metrics of a table's methods; those of training images as samples come last.

    Args:
        table: Number of the table.
        stage_dims: Dimensions of the stages, by method.
        runs: Runs, by method.

    Returns:
        Columns ``method``, ``stage_dims``, ``metric``, ``value``, its 95% interval ``low`` and
        ``high``, ``paper``, ``paper_spread``, ``difference`` from the paper, ``seeds``,
        ``n_train``, ``n_test`` and ``n_samples``. Metrics that no run has are left out.
    """
    measured = {method: [run.load("metrics") for run in each] for method, each in runs.items()}
    first = next(iter(measured.values()))[0]
    if first["training_images"]:
        measured[FLOOR] = [{"counts": first["counts"], **first["training_images"]}]
    rows = [
        {
            "method": method, "stage_dims": stage_dims.get(method, ""), "metric": column,
            **over_seeds([metric.read(metrics) for metrics in seeds]), "seeds": len(seeds),
            **{f"n_{name}": seeds[0]["counts"][name] for name in ("train", "test", "samples")},
        }
        for method, seeds in measured.items()
        for column, metric in COMPARED.items()
        if any(metric.read(metrics) is not None for each in measured.values() for metrics in each)
    ]  # fmt: skip
    results = paper.results()
    printed = results[results["table"] == table].rename(
        columns={"value": "paper", "spread": "paper_spread"}
    )
    keys = ["method", "stage_dims", "metric"]
    found = pd.DataFrame(rows).astype(dict.fromkeys(INTERVAL, float))
    found = found.merge(printed[[*keys, "paper", "paper_spread"]], "left", keys)
    return found.assign(difference=found["value"] - found["paper"])


def readable(results: pd.DataFrame) -> pd.DataFrame:
    """Format the results with one row for each method, each number next to the paper's."""
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


def differing_settings(runs: Mapping[str, CachedRun]) -> dict[str, pd.DataFrame]:
    """Find the settings that differ from the paper's, in all runs and in some runs.

    Returns:
        Tables by caption; their columns are ``setting``, ``here``, ``paper`` and, in the second
        table, which exists if it has a row, ``method``.
    """
    rows = []
    for name, run in runs.items():
        # conf/local is not part of the environment "paper"
        reference = CachedRun(run.name, run.params, run.project, "paper")
        if path := getattr(run.settings.data, "path", None):
            reference = reference.changed("data.path", path)
        here, there = (flatten(each.settings.parameters()) for each in (run, reference))
        for setting in sorted((here.keys() | there.keys()) - NOT_COMPARED):
            if here.get(setting) != there.get(setting):
                values = (json.dumps(each.get(setting)) for each in (here, there))
                rows.append((name, setting, *values))
    columns = ["setting", "here", "paper"]
    table = pd.DataFrame(rows, columns=["method", *columns])
    grouped = table.groupby(columns, sort=False)["method"].agg([", ".join, "count"]).reset_index()
    grouped = grouped.rename(columns={"join": "method"})
    in_all = grouped["count"] == len(runs)
    text = "Settings that differ from the paper's in"
    found = {f"{text} all methods": grouped.loc[in_all, columns]}
    if not in_all.all():
        found[f"{text} some methods"] = grouped.loc[~in_all, [*columns, "method"]]
    return found


def _target(number: int) -> Target:
    cells = paper_cells(number) + control_cells(number)
    stage_dims = {method: dims for _, method, dims in cells}

    def make(runs: Runs) -> Content:
        results = results_table(number, stage_dims, runs)
        settings = differing_settings({method: each[0] for method, each in runs.items()})
        tables = {TITLES[number]: readable(results), **settings}
        return Content(tables, data=results, notes=_notes(results, runs))

    return Target(TITLES[number], needs_of(cells), make, seeds=True)


def _notes(results: pd.DataFrame, runs: Runs) -> list[str]:
    first = results.iloc[0]
    metrics = next(iter(runs.values()))[0].load("metrics")
    fewest, most = (end(map(len, runs.values())) for end in (min, max))
    seeds = f"{fewest} to {most} seeds" if fewest < most else count_seeds(most)
    groups = metrics["counts"].get("test_groups")
    over = "test images" if groups is None else f"{groups} groups of test images"
    interval = f"Intervals are 95%, over {over} (bootstrap)"
    if most > 1:
        interval += " or, with several seeds, of the mean over seeds (Student's t)"
    return [
        f"{first['n_train']:,} training images, {first['n_test']:,} test images, "
        f"{first['n_samples']:,} samples, {seeds}. {interval}; the paper's spreads are as printed.",
        "MSE is on pixels in [0, 1], through all stages; the paper does not state its scale.",
        f"Features of precision, recall and KID: {metrics['features']}.",
    ]


TARGETS = {f"table-{number}": _target(number) for number in TITLES}
