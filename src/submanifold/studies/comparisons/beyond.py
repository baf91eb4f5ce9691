"""Density and reconstruction of all methods, trained for about equal seconds."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd
import torch
from matplotlib.figure import Figure

from submanifold.evaluation.reconstruction import psnr
from submanifold.evaluation.samples import stored
from submanifold.models import Hierarchy
from submanifold.plots.comparisons import frontier
from submanifold.plots.paper import sample_panels
from submanifold.studies.comparisons.measures import (
    PROJECTED,
    Measured,
    bits_per_dim,
    cached,
    load_model,
    measure_images,
    measure_pca_flow,
    training_seconds,
)
from submanifold.studies.comparisons.results import (
    cell,
    notes_on_rows,
    read_page,
    summarize,
    table,
    tradeoff,
    value,
    with_record,
)
from submanifold.studies.experiments import CachedRun
from submanifold.studies.pages import Content, Need, Runs, Target
from submanifold.studies.seeds import INTERVAL, over_seeds, written

RECORD = "docs/beyond.csv"
PAGE = read_page("beyond")
CONFIGS: dict[str, str] = PAGE["configs"]
DIMS, MAIN_DIM = (100, 500, 1000), 500
OURS = "nested-then-flow"
OF_PAPER = ("PR-M", "PR-D", "EE-M", "H-MM", "DNF", "DNF-code")
OUTER_DIMS = {100: 1000, 1000: 2000}
"""Dimension of stage 1 by that of stage 2, other than the main one, in EE-M and H-MM."""
ADAM = (("phase_1.training.muon_lr", None), ("phase_1.training.learning_rate", 0.005))


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

MEASURES = ("bpd", "pca", "precision", "recall", "kid", "encoder", "nearest")
COLUMNS = {
    "seeds": lambda row: row["seeds"]["value"],
    "BPD": cell("bpd", ".3f"),
    "MSE, encoder projection": cell("encoder", ".5f"),
    "of PCA's": lambda row: f"{row['encoder']['value'] / row['pca']['value']:.2f}",
    "MSE, nearest projection": cell("nearest", ".5f"),
    "of PCA's ": lambda row: f"{row['nearest']['value'] / row['pca']['value']:.2f}",
    "PSNR, encoder / nearest": lambda row: " / ".join(
        f"{psnr(row[name]['value']):.1f}" for name in ("encoder", "nearest")
    ),
    "MSE of PCA": lambda row: f"{row['pca']['value']:.5f}",
    "precision": cell("precision", ".2f"),
    "recall": cell("recall", ".2f"),
    "KID": cell("kid", ".3f"),
    "seconds": cell("seconds", ".0f"),
}
SHOWN_DIMS, SHOWN_TEMPERATURES, SHOWN_PER_ROW = (50, 200, 500, 1000), (0.5, 0.7, 1.0), 5


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
        model = load_model(run, "density.model" if row.density_only else "hierarchy")
        dims = DIMS if row.nested else (model.dim,)
        seconds = training_seconds(run, 1 if row.density_only else None)
        shared = {"bpd": bits_per_dim(run, model), "seconds": seconds}
        if row.label == OURS:  # bits per dimension before the penalty
            bits = bits_per_dim(run, load_model(run, "density.model"))
            shared["before"] = {"value": bits["value"]}
        found = measure_images(run, [model.at_dim(dim) for dim in dims])
        return {dim: shared | each for dim, each in zip(dims, found, strict=True)}

    name = "beyond-density" if row.density_only else "beyond"
    return {int(dim): found for dim, found in cached(run, run.key, name, measure_all).items()}


def measured_rows(runs: Runs) -> list[dict[str, Any]]:
    """Measure all runs; the rows have the columns of the record."""
    found: list[dict[str, Any]] = []

    def add(data: str, name: str, seed: int, run: CachedRun, dims: Mapping[int, Measured]) -> None:
        test = len(run.load("x_test"))
        for dim, each in dims.items():
            row = {"data": data, "row": name, "seed": seed, "dim": dim}
            row |= {"seconds": each["seconds"]["value"], "n": min(PROJECTED, test), "n_test": test}
            for measure in MEASURES:
                for end, suffix in zip(INTERVAL, ("", "_low", "_high"), strict=True):
                    row[measure + suffix] = each[measure].get(end)
            found.append(row | {"before": value(each, "before")})

    for data in CONFIGS:
        for row in ROWS:
            for seed, run in enumerate(runs.get(f"{data}: {row.label}", ())):
                add(data, row.name, seed, run, measure(run, row))
        for seed, run in enumerate(runs.get(f"{data}: {OURS}", ())):
            flows = {dim: dict(measure_pca_flow(run, dim, seed)) for dim in DIMS}
            flows = {dim: each | {"bpd": each["bits_per_dim"]} for dim, each in flows.items()}
            add(data, PCA_FLOW, seed, run, flows)
    return found


def long_format(data: pd.DataFrame) -> pd.DataFrame:
    """Reshape to one row for each measure: ``measure``, ``value``, ``low`` and ``high``."""
    keys = data[["data", "row", "seed", "dim"]]
    return pd.concat([
        keys.assign(measure=name, value=data[name], low=data.get(f"{name}_low"),
                    high=data.get(f"{name}_high"))
        for name in (*MEASURES, "seconds")
    ])  # fmt: skip


def make(runs: Runs, record: pd.DataFrame | None = None) -> Content:
    """Make the page: for each data set a table, the goals, and figures."""
    data = with_record(measured_rows(runs), record, NAMES, ("seed", "dim"))
    tables, figures = {}, {}
    for dataset in [name for name in CONFIGS if name in set(data["data"])]:
        some = data[data["data"] == dataset]
        rows = summarize(long_format(some), ("row", "dim"))
        rows = {key: rows[key] for key in some.groupby(["row", "dim"], sort=False).groups}
        tables[dataset] = table(rows, ("method", "d"), COLUMNS)
        tables[f"{dataset}, the goals"] = goals(some)
        at_main = {str(name): row for (name, dim), row in rows.items() if dim == MAIN_DIM}
        caption = f"{dataset}: bits per dimension against squared error, d = {MAIN_DIM}"
        figures[caption] = frontier(tradeoff(at_main, "bpd"))
        if ours := runs.get(f"{dataset}: {OURS}"):
            figures[f"{dataset}: samples of ours, by dimension and temperature"] = _samples(ours[0])
    wanted = [(name, row) for name in CONFIGS for row in NAMES
              if name == "celeba" or not row.endswith(", Adam")]  # fmt: skip
    return Content(tables, figures, data, [*PAGE["notes"], *notes_on_rows(data, wanted, RECORD)])


def goals(data: pd.DataFrame) -> pd.DataFrame:
    """Compare the main method with its goals, seed by seed: equal seeds have equal first weights.

    Returns:
        Columns ``goal``, ``at most``, ``reached``, ``seeds``, and whether the goal is met.
    """

    def at(name: str, dim: int, column: str) -> pd.Series:
        rows = data[(data["row"] == name) & (data["dim"] == dim)]
        return rows.set_index("seed")[column]

    plain = at(PLAIN, MAIN_DIM, "bpd")
    wanted: list[tuple[str, float | None, pd.Series, str]] = [
        ("BPD above the plain Glow's", 0.01, at(MAIN, MAIN_DIM, "bpd") - plain, "+.3f"),
        ("… before the penalty, for less time of likelihood", None,
         at(MAIN, MAIN_DIM, "before") - plain, "+.3f"),
    ]  # fmt: skip
    for dim in sorted(set(data.loc[data["row"] == MAIN, "dim"])):
        for column, goal in (("nearest", 1.0 if dim == 1000 else 0.8), ("encoder", 1.5)):
            label = f"MSE of the {column} projection, of PCA's, d = {dim}"
            ratio = at(MAIN, dim, column) / at(MAIN, dim, "pca")
            wanted.append((label, goal, ratio, ".2f"))
    rows = []
    for name, most, reached, form in wanted:
        of_seeds = reached.dropna().astype(float).tolist()
        if of_seeds:
            found = over_seeds(of_seeds)
            missed = found["value"] - (most or 0)
            verdict = "met" if missed <= 0 else f"missed by {missed:{form}}"
            rows.append({
                "goal": name, "at most": "" if most is None else f"{most:{form}}",
                "reached": written(found, form), "seeds": len(of_seeds),
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
    "Past the paper: density and reconstruction at equal seconds of training",
    needs(), make, seeds=True, evaluated=False, record=RECORD,
)  # fmt: skip
