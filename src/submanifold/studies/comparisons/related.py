"""Related systems under one trainer: which of them find the manifold, and which the density."""

from collections.abc import Callable, Mapping, Sequence
from operator import lt
from typing import Any, NamedTuple

import pandas as pd

from submanifold.data.synthetic import MANIFOLDS, manifold
from submanifold.evaluation.metrics import NONE
from submanifold.plots.comparisons import frontier, number_grids
from submanifold.studies.comparisons import measures, results
from submanifold.studies.comparisons.measures import Measured
from submanifold.studies.comparisons.pca_flow import measure_pca_flow
from submanifold.studies.comparisons.results import value
from submanifold.studies.experiments import CachedRun
from submanifold.studies.pages import Changes, Content, Need, Runs, Target, read_page

RECORD = "docs/evidence/related.csv"
PAGE = read_page("comparisons/related")
OURS, OURS_THEN_FLOW, PCA_FLOW = "nested (ours)", "density-first (ours)", "PCA, then a flow"


class System(NamedTuple):
    """A system in the tables; related.yml lists them.

    Attributes:
        method: The method whose settings it starts from.
        changes: Changes to these settings.
        point_steps: Steps on points, by number of the training phase.
        image_steps: Steps on images.
        stages: Number of stages.
        least_dim: Smallest manifold dimension on which it differs from the method.
        has_density: Whether it has a density on all of space.
        has_manifold: Whether it has a manifold to project onto.
    """

    method: str
    changes: Mapping[str, Any] = {}
    point_steps: Mapping[int, int] = {1: 600}
    image_steps: Mapping[int, int] = {1: 2600}
    stages: int = 1
    least_dim: int = 1
    has_density: bool = True
    has_manifold: bool = True


SYSTEMS = {name: System(**settings) for name, settings in PAGE["systems"].items()}
IMAGES: dict[str, dict[str, Any]] = PAGE["images"]
"""Data sets of images: the file in conf/runs, the dimension, and the parameter ``ood``."""
WEIGHTS: dict[str, float] = PAGE["weights"]
POINTS_ONLY = ("four charts", "Gaussianization")
BITS_IMAGES = 1000
RECTANGULAR_FACTOR = 30
"""Factor on the weight for a density on the manifold alone, which rewards a shrinking manifold."""
VOLUME_SYSTEMS = ("rectangular flow", "canonical flow", "principal flow")
"""Systems trained with the volume of the manifold: a step computes one derivative per dimension."""
LARGEST_VOLUME, VOLUME_DERIVATIVES = 64, 2000
"""Largest dimension of these, and derivatives per event in all of their steps."""
LARGEST_SHARE, LARGEST_DIVERGENCE = 0.5, 0.1
"""Thresholds for a manifold (relative to the data's distance) and for a density (nats)."""
LINEAR = {"density": "mahalanobis", "encoder_distance": "pca_distance",
          "combination": "linear_combination"}  # fmt: skip
"""Linear scores that stand for the scores of PCA followed by a flow."""


def point_changes(name: str, system: System) -> Changes:
    """Return the changes that train a system on the points of a manifold."""
    true, method = manifold(name), system.method
    changes = [("dataset", name), ("method", method), *PAGE["point_training"].items()]
    changes += [(f"phase_{n}.training.steps", steps) for n, steps in system.point_steps.items()]
    if system.stages == 2:  # couplings need two coordinates
        changes.append(("stage_2.flow.type", "gaussianization"))
    if name == "linear_gaussian" and method != "H-MM":  # its stages reduce the dimension in steps
        changes += [(f"stage_{n + 1}.dim", true.dim) for n in range(system.stages)]
    if method in ("nested", "nested-then-flow"):
        changes += [("phase_3.reconstruction.weight", WEIGHTS[name]),
                    ("phase_3.reconstruction.random_dim", None)]  # fmt: skip
    if method == "rectangular":
        changes.append(("phase_1.reconstruction.weight", RECTANGULAR_FACTOR * WEIGHTS[name]))
    if method == "SoftFlow":  # it samples all latents
        changes.append(("stage_1.dim", None))
    if method in ("SoftFlow", "DNF"):
        changes.append(("phase_1.input_noise", true.noise or 0.05))
    return (*changes, *system.changes.items())


def image_changes(dim: int, system: System) -> Changes:
    """Return the changes that train a system on images, with a manifold of dimension ``dim``."""
    changes: list[tuple[str, Any]] = [("method", system.method)]
    changes += [(f"phase_{n}.training.steps", steps) for n, steps in system.image_steps.items()]
    dims = {"SoftFlow": [], "H-MM": [2 * dim, dim]}.get(system.method, [dim] * system.stages)
    changes += [(f"stage_{n}.dim", each) for n, each in enumerate(dims, start=1)]
    return (*changes, *system.changes.items())


def needs() -> dict[str, Need]:
    """Return the experiments, by labels ``<data>: <system>``."""
    found: dict[str, Need] = {}
    for data in MANIFOLDS:
        for name, system in SYSTEMS.items():
            if manifold(data).dim >= system.least_dim:
                found[f"{data}: {name}"] = Need("circle", point_changes(data, system))
    for data, images in IMAGES.items():
        dim = images["dim"]
        for name, system in SYSTEMS.items():
            if name in VOLUME_SYSTEMS:
                system = system._replace(image_steps={1: VOLUME_DERIVATIVES // dim})
            is_too_slow = name in VOLUME_SYSTEMS and dim > LARGEST_VOLUME
            if not is_too_slow and name not in (*POINTS_ONLY, PCA_FLOW):
                found[f"{data}: {name}"] = Need(images["config"], image_changes(dim, system))
    return found


def measure_one(run: CachedRun, images: Mapping[str, Any] | None) -> Measured:
    """Measure the model of a run, on points or on images."""

    def measure() -> Measured:
        if images is None:
            return measures.measure_points(run)
        model = measures.load_model(run)
        (found,) = measures.measure_images(run, [model])
        if model.has_density:
            found["bits_per_dim"] = measures.bits_per_dim(run, model, BITS_IMAGES)
        aurocs = measures.measure_aurocs(run, model, images["ood"])
        return {**found, **aurocs, "seconds": measures.training_seconds(run)}

    return measures.cached(run, run.key, "related", measure)


def measured_rows(runs: Runs) -> list[dict[str, Any]]:
    """Measure all runs; the rows have the columns of the record."""
    found = []
    for label, seeds in runs.items():
        data, _, system = label.partition(": ")
        images = IMAGES.get(data)
        for seed, run in enumerate(seeds):
            measured = measure_one(run, images)
            found += results.as_rows(measured, data=data, row=system, seed=seed)
            if images is not None and system == OURS:
                flow = measure_pca_flow(run, images["dim"], seed, BITS_IMAGES)
                flow |= {f"auroc.{name}": measured[f"auroc.{k}"] for name, k in LINEAR.items()}
                found += results.as_rows(flow, data=data, row=PCA_FLOW, seed=seed)
    return found


def make(runs: Runs, record: pd.DataFrame | None = None) -> Content:
    """Make the page: what each system finds and its cost, then all measurements."""
    data = results.with_record(measured_rows(runs), record, list(SYSTEMS))
    means = results.summarize(data, (*MANIFOLDS, *IMAGES))
    points = {name: rows for name, rows in means.items() if name in MANIFOLDS}
    tables, figures = {}, {}
    about = results.about_record(PAGE, data)
    notes = about["notes"]
    if points:
        shares, nats = _grid(points, _share), _grid(points, lambda row: value(row, "divergence"))
        tables["What each system finds, and its cost"] = _summary(shares, nats, points)
        figures[
            "Left: mean distance from nearest projections to true projections, relative to the "
            "distance from the points to the true manifold. Right: divergence from the true "
            "density, in nats"
        ] = number_grids({"manifold: share of the noise": shares, "density: nats": nats}, (0.01, 1))
    tables["Which system to use"] = pd.DataFrame(PAGE["guide"])
    for name, rows in means.items():
        tables[name] = results.table(rows, ("system",), PAGE["columns"])
        axes = ("bits_per_dim", "nearest") if name in IMAGES else ("divergence", "nearest_distance")
        notes += _dominated(name, rows, axes)
        if name in IMAGES:
            caption = f"{name}: bits per dimension against squared error"
            figures[caption] = frontier(results.tradeoff(rows))
    wanted = [(name, system) for name, _, system in (label.partition(": ") for label in needs())]
    notes += results.notes_on_rows(data, wanted, RECORD)
    return Content(tables | results.published("related"), figures, data, **about)


def _share(row: Measured) -> float | None:
    nearest = value(row, "nearest_distance")
    return None if nearest is None else nearest / value(row, "data_distance")


def _grid(
    points: Mapping[str, Mapping[str, Measured]], read: Callable[[Measured], float | None]
) -> pd.DataFrame:
    """Numbers by system and data set."""
    numbers = {name: {system: read(row) for system, row in rows.items()}
               for name, rows in points.items()}  # fmt: skip
    grid = pd.DataFrame(numbers, dtype=float)
    return grid.reindex([system for system in SYSTEMS if system in grid.index])


def _summary(
    shares: pd.DataFrame, nats: pd.DataFrame, points: Mapping[str, Mapping[str, Measured]]
) -> pd.DataFrame:
    """Count the manifolds and densities that each system finds, and its time relative to ours."""
    rows = []
    for name in shares.index:
        system = SYSTEMS[name]
        tried = {data: rows for data, rows in points.items() if name in rows}
        counted = {"system": name}
        for kind, suffix, exists, grid, most in (
            ("manifolds", "", system.has_manifold, shares, LARGEST_SHARE),
            ("densities", " ", system.has_density, nats, LARGEST_DIVERGENCE),
        ):
            missed = [data for data in tried if not grid.loc[name, data] <= most]
            count = f"{len(tried) - len(missed)} of {len(tried)}" if exists else "not available"
            counted[f"{kind} found"] = count
            counted[f"not found{suffix}"] = ", ".join(missed) if exists else ""
        times = [value(of[name], "seconds") / value(of[OURS], "seconds")
                 for of in tried.values() if OURS in of]  # fmt: skip
        mean = f"{sum(times) / len(times):.1f}" if times else NONE
        rows.append({**counted, "seconds, ours = 1": mean})
    return pd.DataFrame(rows)


def _dominated(data: str, rows: Mapping[str, Measured], axes: Sequence[str]) -> list[str]:
    """Note which of our systems are on the frontier of density and manifold, or what beats them."""
    points = {name: [value(row, axis) for axis in axes] for name, row in rows.items()}
    points = {name: point for name, point in points.items() if None not in point}
    ours = [name for name in (OURS, OURS_THEN_FLOW) if name in points]
    better = {name: [other for other, point in points.items() if all(map(lt, point, points[name]))]
              for name in ours}  # fmt: skip
    unbeaten = [name for name in ours if not better[name]]
    if not ours or unbeaten:
        return [f"{data}: {name} is on the frontier of density and manifold." for name in unbeaten]
    others = ", ".join(name for name in better[ours[0]] if name not in ours)
    return [f"{data}: {ours[0]} is not on the frontier; better in both: {others}."]


TARGET = Target(
    "Related systems",
    needs(), make, seeds=True, evaluated=False, record=RECORD,
)  # fmt: skip
