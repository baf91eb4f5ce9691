"""Figures of the paper, of models trained here; Figure 1 needs none."""

import numpy as np

from submanifold.evaluation.samples import TEMPERATURES
from submanifold.plots.paper import (
    delta_rows,
    rejection_blocks,
    rejection_scheme,
    sample_panels,
)
from submanifold.studies.pages import Content, Runs, Target
from submanifold.studies.paper.divergences import fitted_gaussians
from submanifold.studies.paper.tables import needs_of, paper_cells, params_of

PR_D = params_of("celeba", "PR-D", "3072-500")
BY_DELTA = {
    f"delta = {delta}": {**PR_D, "stage_1.reconstruction.delta": delta}
    for delta in (0.01, 0.03, 0.1, 0.3)
}
DIM_100 = {
    "end-to-end training": params_of("celeba", "EE-M", "3072-500-100"),
    "hierarchical training": params_of("celeba", "H-MM", "3072-500-100"),
}
TABLE_OF = {3: 1, 5: 2, 8: 3, 9: 4, 10: 5}  # the table whose methods a figure samples


def by_delta(runs: Runs) -> dict[float, list]:
    """Return the runs of :data:`BY_DELTA` by the value of delta."""
    name = "delta = "
    return {float(k.removeprefix(name)): list(v) for k, v in runs.items() if k.startswith(name)}


def _samples(runs: Runs) -> Content:
    columns = 2 if len(runs) == 4 else 3
    return Content(
        figures={
            f"Samples at temperature {temperature:g}": sample_panels(
                {label: of_label[0].load(name).x for label, of_label in runs.items()},
                columns,
            )
            for name, temperature in TEMPERATURES.items()
        }
    )


def _figure_1(runs: Runs) -> Content:
    del runs
    return Content(figures={"Gray: the density. Red: one and two deviations.": fitted_gaussians()})


def _figure_2(runs: Runs) -> Content:
    return Content(figures={"": rejection_scheme(*_projected(runs, 3))})


def _figure_4(runs: Runs) -> Content:
    first, *_ = next(iter(runs.values()))
    originals = first.load("x_test").x[: len(first.load("projections"))]
    shown = {
        delta: (run.load("projections"), run.load("samples").x)
        for delta, (run, *_) in by_delta(runs).items()
    }
    return Content(figures={"": delta_rows(originals, shown)})


def _figure_7(runs: Runs) -> Content:
    return Content(figures={"": rejection_blocks(*_projected(runs, 8))})


def _projected(runs: Runs, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Load the first test images and their projections by the only run."""
    ((run,),) = runs.values()
    return run.load("x_test").x[:count], run.load("projections")[:count]


TARGETS = {
    "figure-1": Target("A Gaussian fitted by two divergences", {}, _figure_1),
    "figure-2": Target("The parts of images on and off a manifold", {"PR-D": PR_D}, _figure_2),
    **{
        f"figure-{number}": Target(
            f"Samples of the methods of table {table}", needs_of(paper_cells(table)), _samples
        )
        for number, table in TABLE_OF.items()
    },
    "figure-4": Target("PR-D with other parameters of the Huber function", BY_DELTA, _figure_4),
    "figure-6": Target(
        "Samples from manifolds of dimension 100, 3072 → 500 → 100", DIM_100, _samples
    ),
    "figure-7": Target("What PR-D rejects", {"PR-D": PR_D}, _figure_7),
}
