"""Related systems under one trainer: which of them find the manifold, and which the density."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from submanifold.data.synthetic import MANIFOLDS, manifold
from submanifold.evaluation.metrics import NONE
from submanifold.plots.comparisons import frontier, number_grids
from submanifold.runs.experiments import CachedRun
from submanifold.studies import results
from submanifold.studies.comparisons import measures
from submanifold.studies.pages import Content, Params, Runs, Target, read_page
from submanifold.studies.results import Measured, value

PAGE = read_page("comparisons/related")
OURS = "nested (ours)"


class System(NamedTuple):
    """A system in the tables; related.yml explains its settings."""

    params: Params
    point_steps: Mapping[str, int]
    image_steps: Mapping[str, int] = {}
    points: Mapping[str, Any] = {}
    weighted: Mapping[str, float] = {}
    noisy: str | None = None
    dims: Sequence[int] = (1,)
    has_density: bool = True
    has_manifold: bool = True


SYSTEMS = {name: System(**settings) for name, settings in PAGE["systems"].items()}
IMAGES: dict[str, dict[str, Any]] = PAGE["images"]
BITS_IMAGES = 1000
LARGEST_SHARE, LARGEST_DIVERGENCE = 0.5, 0.1  # relative to the distance of the data; in nats


def on_points(data: str, system: System) -> Params:
    """Return the parameters of a system on the points of a manifold."""
    truth = manifold(data)
    params = {"dataset": data, **PAGE["point_training"]}
    params |= {f"{phase}.training.steps": count for phase, count in system.point_steps.items()}
    if len(system.dims) == 2:  # couplings need two coordinates
        params["stage_2.flow.type"] = "gaussianization"
    if data == "linear_gaussian" and system.dims != [2, 1]:  # H-MM reduces the dimension in steps
        params |= {f"stage_{n}.dim": truth.dim for n, _ in enumerate(system.dims or [1], start=1)}
    for phase, factor in system.weighted.items():
        params[f"{phase}.reconstruction.weight"] = factor * PAGE["weights"][data]
    if system.noisy:
        params[f"{system.noisy}.input_noise"] = truth.noise or 0.05
    return {**params, **system.points, **system.params}


def on_images(data: str, dim: int, system: System) -> Params:
    """Return the parameters of a system on images, with a manifold of dimension ``dim``."""
    params = {f"{phase}.training.steps": n for phase, n in system.image_steps.items()}
    params |= {f"stage_{n}.dim": factor * dim for n, factor in enumerate(system.dims, start=1)}
    return {"dataset": data, **params, **system.params}


def needs() -> dict[str, Params]:
    """Return the experiments, by labels ``<data>: <system>``."""
    needs: dict[str, Params] = {}
    for data in MANIFOLDS:
        for name, system in SYSTEMS.items():
            needs[f"{data}: {name}"] = on_points(data, system)
    for data, images in IMAGES.items():
        for name, system in SYSTEMS.items():
            if system.image_steps:
                needs[f"{data}: {name}"] = on_images(images["dataset"], images["dim"], system)
    return needs


def measure_one(run: CachedRun, images: Mapping[str, Any] | None) -> Measured:
    """Measure the model of a run, on points or on images."""

    def measure() -> Measured:
        if images is None:
            return measures.measure_points(run)
        model = run.load_model()
        (measured,) = measures.measure_images(run, [model])
        if model.has_density:
            measured["bits_per_dim"] = measures.bits_per_dim(run, model, BITS_IMAGES)
        aurocs = measures.measure_aurocs(run, model, images["ood"])
        return {**measured, **aurocs, "seconds": {"value": run.seconds()}}

    return run.cached("related", measure)


def make(runs: Runs) -> Content:
    """Make the page: what each system finds and its cost, then all measurements."""
    measured: list[dict[str, Any]] = []
    for name, system, seed, run in results.by_seed(runs):
        one = measure_one(run, IMAGES.get(name))
        measured += results.as_rows(one, data=name, row=system, seed=seed)
    return compare_systems(measured)


def compare_systems(measured: list[dict[str, Any]]) -> Content:
    """Compare what was measured of each system, in rows of :func:`.as_rows`."""
    data = results.in_order(measured, list(SYSTEMS))
    means = results.summarize(data, (*MANIFOLDS, *IMAGES))
    points = {name: rows for name, rows in means.items() if name in MANIFOLDS}
    tables, figures = {}, {}
    if points:
        shares = _grid(points, "nearest_distance") / _grid(points, "data_distance")
        nats = _grid(points, "divergence")
        tables["What each system finds, and its cost"] = _summary(shares, nats, points)
        figures[
            "Left: mean distance from nearest projections to true projections, relative to the "
            "distance from the points to the true manifold. Right: divergence from the true "
            "density, in nats"
        ] = number_grids({"manifold: share of the noise": shares, "density: nats": nats})
    for name in [name for name in IMAGES if name in means]:
        tables[name] = results.table(means[name], "system", PAGE["columns"])
        caption = f"{name}: bits per dimension against squared error"
        figures[caption] = frontier(results.tradeoff(means[name]))
    return results.comparison("related", PAGE, data, tables, figures)


def _grid(points: Mapping[str, Mapping[str, Measured]], measure: str) -> pd.DataFrame:
    """Values of a measure by system and data set."""
    numbers = {
        name: {system: value(row, measure) for system, row in rows.items()}
        for name, rows in points.items()
    }
    grid = pd.DataFrame(numbers, dtype=float)
    return grid.reindex([system for system in SYSTEMS if system in grid.index])


def _summary(
    shares: pd.DataFrame, nats: pd.DataFrame, points: Mapping[str, Mapping[str, Measured]]
) -> pd.DataFrame:
    """Mark what each system finds on each manifold, and count it; its time relative to ours."""
    rows = []
    for name in shares.index:
        system = SYSTEMS[name]
        tried = {data: of for data, of in points.items() if name in of}
        kinds = {
            "M": ("manifolds", system.has_manifold, shares <= LARGEST_SHARE),
            "D": ("densities", system.has_density, nats <= LARGEST_DIVERGENCE),
        }
        row = {"system": name}
        for column, exists, finds in kinds.values():
            count = f"{finds.loc[name, [*tried]].sum()} of {len(tried)}"
            row[column] = count if exists else "not available"
        times = [
            value(of[name], "seconds") / value(of[OURS], "seconds")
            for of in tried.values()
            if OURS in of
        ]
        row["seconds, nested = 1"] = f"{sum(times) / len(times):.1f}" if times else NONE
        for data in points:
            marks = "".join(mark for mark, (*_, finds) in kinds.items() if finds.loc[name, data])
            row[data.replace("_", " ")] = marks if data in tried else NONE
        rows.append(row)
    return pd.DataFrame(rows)


TARGET = Target("Related systems", needs(), make, seeds=True, evaluated=False)
