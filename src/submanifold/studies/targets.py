"""What each table and figure of the paper needs, and how it is made of that."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from submanifold.evaluation.samples import TEMPERATURES
from submanifold.plots.divergences import gaussian_fits
from submanifold.plots.paper import delta_rows, rejection_blocks, sample_panels
from submanifold.studies import beyond, ood, related
from submanifold.studies.experiments import Experiment
from submanifold.studies.findings import ON_BEDROOMS, check_findings
from submanifold.studies.tables import (
    Cell,
    differing_settings,
    paper_table,
    readable,
    recipe_name,
    results_table,
)

DELTAS = (0.01, 0.03, 0.1, 0.3)
SHOWN = 8
PAPER_TABLES = {
    1: "Single-step methods on CelebA, manifolds of dimension 500",
    2: "Hierarchical methods on CelebA, 3072 → 1000 → 500",
    3: "Hierarchical methods and DNF on LSUN bedroom, manifolds of dimension 1000",
    4: "The likelihood's weight halved in the first stage, on LSUN bedroom",
    5: "Hierarchical structure and DNF on LSUN bedroom, manifolds of dimension 700",
}
SAMPLES_OF = {3: 1, 5: 2, 8: 3, 9: 4, 10: 5}  # figure: the table whose methods it samples

Runs = Mapping[str, Sequence[Experiment]]


class Need(NamedTuple):
    """An experiment that a target needs: a recipe, and what is changed in it."""

    recipe: str
    changes: tuple[tuple[str, Any], ...] = ()


@dataclass
class Content:
    """What is written and shown of a target."""

    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
    data: pd.DataFrame | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Target:
    """A table or a figure.

    Attributes:
        title: What it shows.
        needs: The experiments, by the labels that it shows them under.
        make: Makes it of them; each label has one experiment for every seed.
        seeds: Whether it uses more than one seed.
        evaluated: Whether it uses their metrics, not their models alone.
    """

    title: str
    needs: Mapping[str, Need]
    make: Callable[[Runs], Content]
    seeds: bool = False
    evaluated: bool = True


def _paper_cells(table: int) -> list[tuple[str, str, str]]:
    columns = ["dataset", "method", "stage_dims"]
    return list(paper_table(table)[columns].drop_duplicates().itertuples(index=False, name=None))


def _controls(table: int) -> list[tuple[str, str, str]]:
    """Cells that the paper does not have: a density without a manifold, and DNF as published."""
    dataset = _paper_cells(table)[0][0]
    published = [(dataset, "DNF-code", "3072-500-500")] if table == 1 else []
    return [*published, (dataset, "Glow", "3072")]


def _needs(cells: Sequence[tuple[str, str, str]]) -> dict[str, Need]:
    return {method: Need(recipe_name(data, method, dims)) for data, method, dims in cells}


def _table(number: int) -> Target:
    shown = _paper_cells(number) + _controls(number)
    dims = {method: dims for _, method, dims in shown}

    def make(runs: Runs) -> Content:
        cells = [Cell(method, dims[method], runs[method]) for method in runs]
        results = results_table(number, cells)
        common, some = differing_settings({method: each[0] for method, each in runs.items()})
        tables = {
            PAPER_TABLES[number]: readable(results),
            "Settings that differ from the paper's, in all methods": common,
        }
        if len(some):
            tables["Settings that differ from the paper's, in some"] = some
        return Content(tables, data=results, notes=_about(results, runs))

    return Target(PAPER_TABLES[number], _needs(shown), make, seeds=True)


def _about(results: pd.DataFrame, runs: Runs) -> list[str]:
    first = results.iloc[0]
    metrics = next(iter(runs.values()))[0].load("metrics")
    fewest, most = (end(map(len, runs.values())) for end in (min, max))
    seeds = "one seed" if most == 1 else f"{most} seeds"
    if fewest < most:
        seeds = f"{fewest} to {seeds}"
    groups = metrics["counts"].get("test_groups")
    over = "test images" if groups is None else f"{groups} groups of test images"
    interval = f"over {over}, by the bootstrap"
    if most > 1:
        interval += ", or with several seeds of the mean over them, by Student's t"
    return [
        f"{first['n_train']:,} training images, {first['n_test']:,} test images, "
        f"{first['n_samples']:,} samples, {seeds}. Intervals are 95%, {interval}; the paper's "
        "spreads are as printed there.",
        "MSE is on pixels in [0, 1], through all stages; the paper does not say its scale.",
        f"Precision, recall and KID compare features that are {metrics['features']}.",
    ]


def _sample_figure(runs: Runs) -> Content:
    figures = {}
    for name, temperature in TEMPERATURES.items():
        samples = {label: np.asarray(each[0].load(name)) for label, each in runs.items()}
        columns = 2 if len(runs) == 4 else min(3, len(runs))
        figures[f"Samples at temperature {temperature:g}"] = sample_panels(samples, columns=columns)
    return Content(figures=figures)


def _figure_4(runs: Runs) -> Content:
    first, *_ = next(iter(runs.values()))
    originals = np.asarray(first.load("x_test")[: len(first.load("projections"))])
    shown = {
        float(label.removeprefix("delta = ")): (each.load("projections"), each.load("samples"))
        for label, (each, *_) in runs.items()
    }
    return Content(figures={"": delta_rows(originals, shown)})


def _figure_7(runs: Runs) -> Content:
    (experiment,) = next(iter(runs.values()))
    originals, projections = (
        np.asarray(experiment.load(name)[:SHOWN]) for name in ("x_test", "projections")
    )
    return Content(figures={"": rejection_blocks(originals, projections)})


def _findings(runs: Runs) -> Content:
    table, notes = check_findings(runs)
    return Content({"The paper's findings": table}, data=table, notes=notes)


PR_D = "celeba-PR-D-500"
BY_DELTA = {
    f"delta = {delta}": Need(PR_D, (("phase_1.reconstruction.delta", delta),)) for delta in DELTAS
}
TO_100 = {
    "end-to-end training": Need("celeba-EE-M-500-100"),
    "hierarchical training": Need("celeba-H-MM-500-100"),
}

# Steps of phases for about equal seconds, by what a step costs (benchmarks/training_step.py)
STEPS: dict[str, dict[str, int]] = {
    "nested": {},
    "nested-then-flow": {},
    "Glow-rotated": {"phase_1": 5200},
    "penalty-after": {},
    "PR-M": {"phase_1": 2000},
    "PR-D": {"phase_1": 2800},
    "EE-M": {"phase_1": 1500},
    "H-MM": {},
    "H-MM-rotated": {"phase_1": 2200},
    "DNF": {"phase_1": 2000},
    "DNF-code": {"phase_1": 2000},
}
OF_PAPER = ("PR-M", "PR-D", "EE-M", "H-MM", "DNF", "DNF-code")
ONE_STAGE, TWO_STAGES = ("PR-D",), ("EE-M", "H-MM")
OUTER = {100: 1000, 1000: 2000}  # what stage 1 keeps where stage 2 keeps fewer
ADAM = (("phase_1.training.muon_lr", None), ("phase_1.training.learning_rate", 0.005))
RECIPES = {"celeba": "celeba-Glow", "photos": "photos-Glow", "lsun_bedroom": "lsun_bedroom-Glow"}


def _at_dim(method: str, dim: int) -> tuple[tuple[str, Any], ...]:
    """The changes that give a method of the paper a manifold of a dimension."""
    first = (("stage_1.dim", OUTER[dim] if method in TWO_STAGES else dim),)
    return first if method in ONE_STAGE else (*first, ("stage_2.dim", dim))


def _beyond_needs() -> dict[str, Need]:
    def need(dataset: str, method: str, *changes: tuple[str, Any]) -> Need:
        steps = [(f"{phase}.training.steps", count) for phase, count in STEPS[method].items()]
        return Need(RECIPES[dataset], (("method", method), *steps, *changes))

    one_dim = ("phase_3.reconstruction.random_dim", None)
    needs = {f"{data}: {method}": need(data, method) for method in STEPS for data in RECIPES}
    needs |= {f"{data}: nested-500": need(data, "nested", one_dim) for data in RECIPES}
    for method in OF_PAPER:
        needs |= {f"celeba: {method} at {dim}": need("celeba", method, *_at_dim(method, dim))
                  for dim in OUTER}  # fmt: skip
        needs[f"celeba: {method}, Adam"] = need("celeba", method, *ADAM)
    return needs


def _ood_needs() -> dict[str, Need]:
    def need(pair: ood.Pair) -> Need:
        method = (("method", "nested"),) if pair.normal.endswith("-Glow") else ()
        return Need(pair.normal, (*method, ("ood", pair.ood)))

    pairs = {name: need(pair) for name, pair in ood.PAIRS.items()}
    return pairs | {name: Need(*each) for name, each in ood.DENSITIES.items()}


TARGETS: dict[str, Target] = {
    **{f"table-{number}": _table(number) for number in PAPER_TABLES},
    "figure-1": Target(
        "A Gaussian fitted by two divergences", {}, lambda _: Content(figures={"": gaussian_fits()})
    ),
    **{f"figure-{number}": Target(f"Samples of the methods of table {table}",
                                  _needs(_paper_cells(table)), _sample_figure)
       for number, table in SAMPLES_OF.items()},
    "figure-4": Target("PR-D with other parameters of the Huber function", BY_DELTA, _figure_4),
    "figure-6": Target(
        "Samples from manifolds of dimension 100, 3072 → 500 → 100", TO_100, _sample_figure
    ),
    "figure-7": Target("What PR-D rejects", {"PR-D": Need(PR_D)}, _figure_7),
    "findings": Target("The paper's findings, checked", {
        **_needs(_paper_cells(1) + _controls(1)[:1] + _paper_cells(2)), **BY_DELTA, **TO_100,
        **{method + ON_BEDROOMS: need for method, need in _needs(_paper_cells(3)).items()
           if method != "DNF"},
    }, _findings, seeds=True),
    "beyond": Target(
        "Past the paper: density and reconstruction at equal seconds of training",
        _beyond_needs(), lambda runs: beyond.make(runs, Content), seeds=True, evaluated=False,
    ),
    "ood": Target(
        "Which images are none of the training data's kind",
        _ood_needs(), lambda runs: ood.make(runs, Content), seeds=True,
    ),
    "related": Target(
        "The related systems: which finds the manifold, and which the density",
        {label: Need(*need) for label, need in related.needs().items()},
        lambda runs: related.make(runs, Content), seeds=True, evaluated=False,
    ),
}  # fmt: skip
