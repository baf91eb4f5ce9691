"""Density and reconstruction of all methods, at about equal training time."""

from typing import Any, NamedTuple

import pandas as pd

from submanifold.evaluation.intervals import over_seeds
from submanifold.evaluation.metrics import format_interval
from submanifold.evaluation.reconstruction import psnr
from submanifold.plots.comparisons import frontier
from submanifold.runs.experiments import CachedRun
from submanifold.studies import results
from submanifold.studies.comparisons import measures
from submanifold.studies.pages import Content, Params, Runs, Target, read_page
from submanifold.studies.results import Measured

PAGE = read_page("comparisons/beyond")
DIMS, MAIN_DIM = (100, 500, 1000), 500
OURS = "density-first"
OUTER_DIMS = {100: 1000, 1000: 2000}  # of stage 1 by that of stage 2, in EE-M and H-MM
ADAM = {"training.muon_lr": None, "training.learning_rate": 0.005}


class Row(NamedTuple):
    """A method in the table; ``label`` is that of its runs, without the data set."""

    name: str
    label: str
    density_only: bool = False  # measured after the first phase, density
    nested: bool = False  # one model has manifolds of all dimensions


ROWS = (
    *(Row(**settings) for settings in PAGE["rows"]),
    *(Row(method + suffix, method + label)
      for method in PAGE["paper"]
      for suffix, label in (("", " at 100"), ("", ""), ("", " at 1000"), (", Adam", ", Adam"))),
)  # fmt: skip
PLAIN = ROWS[0].name
NAMES = list(dict.fromkeys(row.name for row in ROWS))
RECORDED = [*NAMES, "PCA, then a flow"]  # the last has no runs


def needs() -> dict[str, Params]:
    """Return the experiments, by labels ``<data>: <label of a row>``."""
    experiments: dict[str, Params] = PAGE["experiments"]
    needs = {f"{data}: {label}": {"dataset": data, **params}
             for data in PAGE["data"] for label, params in experiments.items()}  # fmt: skip
    for method, phase in PAGE["paper"].items():
        usual = needs[f"celeba: {method}"]
        for dim, outer in OUTER_DIMS.items():
            dims = {"stage_1.dim": outer if method in ("EE-M", "H-MM") else dim}
            dims |= {} if method == "PR-D" else {"stage_2.dim": dim}
            needs[f"celeba: {method} at {dim}"] = usual | dims
        adam = {f"{phase}.{name}": value for name, value in ADAM.items()}
        needs[f"celeba: {method}, Adam"] = usual | adam
    return needs


def measure(run: CachedRun, row: Row) -> dict[int, Measured]:
    """Measure the model of a row, by dimension of the manifold."""

    def measure_all() -> dict[int, Measured]:
        model = run.load_model("density.model" if row.density_only else "hierarchy")
        dims = DIMS if row.nested else (model.dim,)
        shared = {
            "bits_per_dim": measures.bits_per_dim(run, model),
            "seconds": {"value": run.seconds(1 if row.density_only else None)},
        }
        if row.label == OURS:  # bits per dimension before the penalty
            density = run.load_model("density.model")
            shared["before"] = {"value": measures.bits_per_dim(run, density)["value"]}
        by_dim = measures.measure_images(run, [model.at_dim(dim) for dim in dims])
        return {dim: shared | measured for dim, measured in zip(dims, by_dim, strict=True)}

    cached = run.cached("by-dim-density" if row.density_only else "by-dim", measure_all)
    return {int(dim): measured for dim, measured in cached.items()}


def make(runs: Runs, record: pd.DataFrame | None = None) -> Content:
    """Make the page: for each data set a table, the goals, and a figure."""
    measured: list[dict[str, Any]] = []
    for name, label, seed, run in results.by_seed(runs):
        for row in [row for row in ROWS if row.label == label]:
            for dim, of_dim in measure(run, row).items():
                measured += results.as_rows(of_dim, data=name, row=row.name, seed=seed, dim=dim)
    data = results.with_record(measured, record, RECORDED)
    tables, figures = {}, {}
    for name, rows in results.summarize(data, PAGE["data"]).items():
        shown = {key: row | _relative_errors(row) for key, row in rows.items()}
        tables[name] = results.table(shown, ("method", "d"), PAGE["columns"])
        tables[f"{name}, the goals"] = goals(data[data["data"] == name])
        at_main = {method: row for (method, dim), row in rows.items() if dim == MAIN_DIM}
        caption = f"{name}: bits per dimension against squared error, d = {MAIN_DIM}"
        figures[caption] = frontier(results.tradeoff(at_main))
    wanted = [(name, row) for name in PAGE["data"] for row in NAMES
              if name == "celeba" or not row.endswith(", Adam")]  # fmt: skip
    return results.comparison("beyond", PAGE, data, tables, figures, wanted)


def _relative_errors(row: Measured) -> Measured:
    """PSNR of both projections, and the ratio of their errors to that of PCA."""
    ratios: Measured = {"pca": {"value": row["pca"]["value"]}}
    for name in ("encoder", "nearest"):
        error = row[name]["value"]
        ratios[f"{name}_of_pca"] = {"value": error / row["pca"]["value"]}
        ratios[f"{name}_psnr"] = {"value": psnr(error)}
    return ratios


def goals(data: pd.DataFrame) -> pd.DataFrame:
    """Compare the main method with its goals by seeds, which have equal first weights."""
    values = data.pivot(index="seed", columns=["row", "dim", "measure"], values="value")

    def at(name: str, dim: int, measure: str) -> pd.Series:
        return values.get((name, dim, measure), pd.Series(dtype=float))

    plain = at(PLAIN, MAIN_DIM, "bits_per_dim")
    wanted: list[tuple[str, float | None, pd.Series, str]] = [
        ("BPD above the plain Glow's", 0.01, at(OURS, MAIN_DIM, "bits_per_dim") - plain, "+.3f"),
        ("… before the penalty, after less likelihood training", None,
         at(OURS, MAIN_DIM, "before") - plain, "+.3f"),
    ]  # fmt: skip
    for dim in DIMS:
        for name, goal in (("nearest", 1.0 if dim == 1000 else 0.8), ("encoder", 1.5)):
            label = f"MSE / MSE of PCA, {name} projection, d = {dim}"
            wanted.append((label, goal, at(OURS, dim, name) / at(OURS, dim, "pca"), ".2f"))
    rows = []
    for label, most, reached, form in wanted:
        of_seeds = reached.dropna().astype(float).tolist()
        if of_seeds:
            mean = over_seeds(of_seeds)
            missed = mean["value"] - (most or 0)
            verdict = "met" if missed <= 0 else f"missed by {missed:{form}}"
            rows.append({
                "goal": label, "at most": "" if most is None else f"{most:{form}}",
                "reached": format_interval(mean, form), "seeds": len(of_seeds),
                "": "" if most is None else verdict,
            })  # fmt: skip
    return pd.DataFrame(rows)


TARGET = Target(
    "Density and reconstruction at equal training time",
    needs(), make, seeds=True, evaluated=False, record="docs/evidence/beyond.csv",
)  # fmt: skip
