"""Density and reconstruction of all methods, at about equal training time."""

from typing import Any, NamedTuple

import pandas as pd

from submanifold.evaluation.intervals import over_seeds
from submanifold.evaluation.metrics import NONE, format_interval
from submanifold.plots.comparisons import frontier
from submanifold.runs.experiments import CachedRun
from submanifold.studies import results
from submanifold.studies.comparisons import measures
from submanifold.studies.pages import Content, Runs, Target, read_page
from submanifold.studies.results import Measured

PAGE = read_page("comparisons/beyond")
DIMS, MAIN_DIM = (100, 500, 1000), 500
OURS = "density-first"
GOALS = {
    ("nearest", 100): 0.8,
    ("nearest", 500): 0.6,
    ("nearest", 1000): 0.8,
    ("default", 500): 0.8,
}  # squared error over that of PCA, by projection and dimension
ALWAYS = ("Glow, rotated", "nested", OURS)  # labels of the methods trained on all data


class Row(NamedTuple):
    """A method in the table; ``label`` is that of its runs, without the data set."""

    name: str
    label: str
    density_only: bool = False  # measured after the first phase, density
    nested: bool = False  # one model has manifolds of all dimensions


ROWS = [Row(**settings) for settings in PAGE["rows"]]
PLAIN = ROWS[0].name
NAMES = [row.name for row in ROWS]
NEEDS = {
    f"{data}: {label}": {"dataset": data, **params}
    for data, papers in PAGE["data"].items()
    for label, params in PAGE["experiments"].items()
    if label in (*ALWAYS, *papers)
}
"""Parameters of the experiments, by labels ``<data>: <label of a row>``."""


def measure(run: CachedRun, row: Row) -> dict[int, Measured]:
    """Measure the model of a row, by dimension of the manifold."""

    def measure_all() -> dict[int, Measured]:
        model = run.load_model("density.model" if row.density_only else "hierarchy")
        dims = DIMS if row.nested else (model.dim,)
        shared = {
            "bits_per_dim": measures.bits_per_dim(run, model),
            "seconds": {"value": run.seconds(1 if row.density_only else None)},
        }
        by_dim = measures.measure_images(run, [model.at_dim(dim) for dim in dims])
        return {dim: shared | measured for dim, measured in zip(dims, by_dim, strict=True)}

    cached = run.cached("by-dim-density" if row.density_only else "by-dim", measure_all)
    return {int(dim): measured for dim, measured in cached.items()}


def make(runs: Runs) -> Content:
    """Make the page: the goals, all methods at d = 500, and a figure for each data set."""
    measured: list[dict[str, Any]] = []
    for name, label, seed, run in results.by_seed(runs):
        for row in [row for row in ROWS if row.label == label]:
            for dim, of_dim in measure(run, row).items():
                measured += results.as_rows(of_dim, data=name, row=row.name, seed=seed, dim=dim)
    data = results.in_order(measured, NAMES)
    summary = results.summarize(data, PAGE["data"])
    at_main = {
        name: {
            method: row | _relative_errors(row)
            for (method, dim), row in rows.items()
            if dim == MAIN_DIM
        }
        for name, rows in summary.items()
    }
    tables = {}
    if summary:
        tables["Goals"] = _side_by_side(
            {name: goals(data[data["data"] == name]).set_index("goal") for name in summary}
        )
        tables[f"All methods at d = {MAIN_DIM}"] = _side_by_side(
            {
                name: results.table(rows, "method", PAGE["columns"]).set_index("method")
                for name, rows in at_main.items()
            }
        )
    figures = {
        f"{name}: bits per dimension against squared error, d = {MAIN_DIM}": frontier(
            results.tradeoff(rows)
        )
        for name, rows in at_main.items()
    }
    return results.comparison("beyond", PAGE, data, tables, figures)


def _side_by_side(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Join tables with the same rows, and the name of each before its columns."""
    named = [table.add_prefix(f"{name}: ") for name, table in tables.items()]
    return pd.concat(named, axis=1).fillna(NONE).reset_index()


def _relative_errors(row: Measured) -> Measured:
    """Ratios of the errors of both projections to that of PCA."""
    return {
        f"{name}_of_pca": {"value": row[name]["value"] / row["pca"]["value"]}
        for name in ("default", "nearest")
    }


def goals(data: pd.DataFrame) -> pd.DataFrame:
    """Compare the main method with its goals by seeds, which have equal first weights."""
    values = data.pivot(index="seed", columns=["row", "dim", "measure"], values="value")

    def at(name: str, dim: int, measure: str) -> pd.Series:
        return values.get((name, dim, measure), pd.Series(dtype=float))

    bits = at(OURS, MAIN_DIM, "bits_per_dim") - at(PLAIN, MAIN_DIM, "bits_per_dim")
    wanted = [("BPD above the plain Glow's", 0.01, bits, "+.3f")]
    for (name, dim), goal in GOALS.items():
        label = f"MSE / MSE of PCA, {name} projection, d = {dim}"
        wanted.append((label, goal, at(OURS, dim, name) / at(OURS, dim, "pca"), ".3f"))
    goal_rows = []
    for label, most, values_by_seed, form in wanted:
        of_seeds = values_by_seed.dropna().astype(float).tolist()
        if of_seeds:
            mean = over_seeds(of_seeds)
            missed = mean["value"] - most
            verdict = "met" if missed <= 0 else f"missed by {missed:{form}}"
            reached = f"{format_interval(mean, form)} {verdict}"
            goal_rows.append({"goal": f"{label} at most {most:{form}}", "reached": reached})
    return pd.DataFrame(goal_rows)


TITLE = "Density and reconstruction at equal training time"
TARGET = Target(TITLE, NEEDS, make, seeds=True, evaluated=False)
