"""Density and reconstruction of all methods, at about equal training time."""

from typing import Any, NamedTuple

import pandas as pd
import torch
from matplotlib.figure import Figure

from submanifold.evaluation.metrics import format_interval
from submanifold.evaluation.reconstruction import psnr
from submanifold.evaluation.samples import stored
from submanifold.models import Hierarchy
from submanifold.plots.comparisons import frontier
from submanifold.plots.paper import sample_panels
from submanifold.studies.comparisons import measures, pca_flow, results
from submanifold.studies.comparisons.measures import Measured
from submanifold.studies.experiments import CachedRun
from submanifold.studies.pages import Content, Need, Runs, Target, read_page
from submanifold.studies.seeds import over_seeds

RECORD = "docs/evidence/beyond.csv"
PAGE = read_page("comparisons/beyond")
CONFIGS: dict[str, str] = PAGE["configs"]
DIMS, MAIN_DIM = (100, 500, 1000), 500
OURS = "nested-then-flow"
OF_PAPER = ("PR-M", "PR-D", "EE-M", "H-MM", "DNF", "DNF-code")
OUTER_DIMS = {100: 1000, 1000: 2000}
"""Dimension of stage 1 by that of stage 2, other than the main one, in EE-M and H-MM."""
ADAM = (("phase_1.training.muon_lr", None), ("phase_1.training.learning_rate", 0.005))
SHOWN_DIMS, SHOWN_TEMPERATURES, SHOWN_PER_ROW = (50, 200, 500, 1000), (0.5, 0.7, 1.0), 5


class Row(NamedTuple):
    """A method in the table.

    Attributes:
        name: Name of the method.
        label: Label of its runs, without the data set.
        density_only: Whether the model is measured after the first phase, density.
        nested: Whether one model has manifolds of all dimensions.
    """

    name: str
    label: str
    density_only: bool = False
    nested: bool = False


ROWS = (
    *(Row(**settings) for settings in PAGE["rows"]),
    *(Row(method + suffix, method + label)
      for method in OF_PAPER
      for suffix, label in (("", " at 100"), ("", ""), ("", " at 1000"), (", Adam", ", Adam"))),
)  # fmt: skip
PLAIN = ROWS[0].name
MAIN = next(row.name for row in ROWS if row.label == OURS)
PCA_FLOW = "PCA, then a flow"
NAMES = list(dict.fromkeys([*(row.name for row in ROWS), PCA_FLOW]))


def needs() -> dict[str, Need]:
    """Return the experiments, by labels ``<data>: <label of a row>``."""

    def need(data: str, method: str, *changes: tuple[str, Any]) -> Need:
        steps = [
            (f"{phase}.training.steps", count) for phase, count in PAGE["steps"][method].items()
        ]
        return Need(CONFIGS[data], (("method", method), *steps, *changes))

    one_dim = ("phase_3.reconstruction.random_dim", None)
    found = {
        f"{data}: {method}": need(data, method) for method in PAGE["steps"] for data in CONFIGS
    }
    found |= {f"{data}: nested-500": need(data, "nested", one_dim) for data in CONFIGS}
    for method in OF_PAPER:
        for dim, outer in OUTER_DIMS.items():
            dims = [("stage_1.dim", outer if method in ("EE-M", "H-MM") else dim)]
            dims += [] if method == "PR-D" else [("stage_2.dim", dim)]
            found[f"celeba: {method} at {dim}"] = need("celeba", method, *dims)
        found[f"celeba: {method}, Adam"] = need("celeba", method, *ADAM)
    return found


def measure(run: CachedRun, row: Row) -> dict[int, Measured]:
    """Measure the model of a row, by dimension of the manifold."""

    def measure_all() -> dict[int, Measured]:
        model = measures.load_model(run, "density.model" if row.density_only else "hierarchy")
        dims = DIMS if row.nested else (model.dim,)
        shared = {
            "bits_per_dim": measures.bits_per_dim(run, model),
            "seconds": measures.training_seconds(run, 1 if row.density_only else None),
        }
        if row.label == OURS:  # bits per dimension before the penalty
            density = measures.load_model(run, "density.model")
            shared["before"] = {"value": measures.bits_per_dim(run, density)["value"]}
        found = measures.measure_images(run, [model.at_dim(dim) for dim in dims])
        return {dim: shared | each for dim, each in zip(dims, found, strict=True)}

    name = "by-dim-density" if row.density_only else "by-dim"
    found = measures.cached(run, run.key, name, measure_all)
    return {int(dim): measured for dim, measured in found.items()}


def measured_rows(runs: Runs) -> list[dict[str, Any]]:
    """Measure all runs; the rows have the columns of the record."""
    found = []
    for label, seeds in runs.items():
        data, _, method = label.partition(": ")
        for seed, run in enumerate(seeds):
            of_run = [(row.name, measure(run, row)) for row in ROWS if row.label == method]
            if method == OURS:
                flows = {dim: pca_flow.measure_pca_flow(run, dim, seed) for dim in DIMS}
                of_run.append((PCA_FLOW, flows))
            for name, by_dim in of_run:
                for dim, measured in by_dim.items():
                    keys = {"data": data, "row": name, "seed": seed, "dim": dim}
                    found += results.as_rows(measured, **keys)
    return found


def make(runs: Runs, record: pd.DataFrame | None = None) -> Content:
    """Make the page: for each data set a table, the goals, and figures."""
    data = results.with_record(measured_rows(runs), record, NAMES)
    tables, figures = {}, {}
    for name, rows in results.summarize(data, CONFIGS).items():
        shown = {key: row | _relative_errors(row) for key, row in rows.items()}
        tables[name] = results.table(shown, ("method", "d"), PAGE["columns"])
        tables[f"{name}, the goals"] = goals(data[data["data"] == name])
        at_main = {method: row for (method, dim), row in rows.items() if dim == MAIN_DIM}
        caption = f"{name}: bits per dimension against squared error, d = {MAIN_DIM}"
        figures[caption] = frontier(results.tradeoff(at_main))
        if ours := runs.get(f"{name}: {OURS}"):
            figures[f"{name}: samples of density-first, by dimension and temperature"] = _samples(
                ours[0]
            )
    wanted = [(name, row) for name in CONFIGS for row in NAMES
              if name == "celeba" or not row.endswith(", Adam")]  # fmt: skip
    about = results.about_record(PAGE, data)
    about["notes"] += results.notes_on_rows(data, wanted, RECORD)
    return Content(tables, figures, data, **about)


def _relative_errors(row: Measured) -> Measured:
    """PSNR of both projections, and the ratio of their errors to that of PCA."""
    pca = row["pca"]["value"]
    found: Measured = {"pca": {"value": pca}}
    for name in ("encoder", "nearest"):
        error = row[name]["value"]
        found |= {f"{name}_of_pca": {"value": error / pca}, f"{name}_psnr": {"value": psnr(error)}}
    return found


def goals(data: pd.DataFrame) -> pd.DataFrame:
    """Compare the main method with its goals, seed by seed: equal seeds have equal first weights.

    Returns:
        Columns ``goal``, ``at most``, ``reached``, ``seeds``, and whether the goal is met.
    """
    values = data.pivot(index="seed", columns=["row", "dim", "measure"], values="value")

    def at(name: str, dim: int, measure: str) -> pd.Series:
        return values.get((name, dim, measure), pd.Series(dtype=float))

    plain = at(PLAIN, MAIN_DIM, "bits_per_dim")
    wanted: list[tuple[str, float | None, pd.Series, str]] = [
        ("BPD above the plain Glow's", 0.01, at(MAIN, MAIN_DIM, "bits_per_dim") - plain, "+.3f"),
        ("… before the penalty, after less likelihood training", None,
         at(MAIN, MAIN_DIM, "before") - plain, "+.3f"),
    ]  # fmt: skip
    for dim in DIMS:
        for name, goal in (("nearest", 1.0 if dim == 1000 else 0.8), ("encoder", 1.5)):
            label = f"MSE / MSE of PCA, {name} projection, d = {dim}"
            wanted.append((label, goal, at(MAIN, dim, name) / at(MAIN, dim, "pca"), ".2f"))
    rows = []
    for label, most, reached, form in wanted:
        of_seeds = reached.dropna().astype(float).tolist()
        if of_seeds:
            found = over_seeds(of_seeds)
            missed = found["value"] - (most or 0)
            verdict = "met" if missed <= 0 else f"missed by {missed:{form}}"
            rows.append({
                "goal": label, "at most": "" if most is None else f"{most:{form}}",
                "reached": format_interval(found, form), "seeds": len(of_seeds),
                "": "" if most is None else verdict,
            })  # fmt: skip
    return pd.DataFrame(rows)


def _samples(run: CachedRun) -> Figure:
    model: Hierarchy = run.load("hierarchy")
    panels = {}
    for dim in SHOWN_DIMS:
        for temperature in SHOWN_TEMPERATURES:
            generator = torch.Generator().manual_seed(0)
            drawn = model.at_dim(dim).sample(SHOWN_PER_ROW**2, temperature, generator)
            panels[f"d = {dim}, temperature {temperature:g}"] = stored(drawn)
    return sample_panels(panels, columns=len(SHOWN_TEMPERATURES), per_row=SHOWN_PER_ROW)


TARGET = Target(
    "Density and reconstruction at equal training time",
    needs(), make, seeds=True, evaluated=False, record=RECORD,
)  # fmt: skip
