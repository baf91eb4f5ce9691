"""The related systems under one trainer: which finds the manifold, and which the density."""

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from submanifold.data.synthetic import MANIFOLDS, manifold
from submanifold.plots.comparisons import frontier, number_grids
from submanifold.studies.experiments import Experiment
from submanifold.studies.paper import published
from submanifold.studies.record import with_record
from submanifold.studies.related_measures import (
    measure_images,
    measure_pca_flow,
    measure_points,
)
from submanifold.studies.tables import over_seeds, written

Changes = tuple[tuple[str, Any], ...]
Measured = dict[str, Any]


class System(NamedTuple):
    """A row of the tables.

    Attributes:
        method: Whose settings it is made of.
        changes: What is changed in them.
        shares: Of the steps on points, by training phase.
        steps: Of the same on images, for about equal seconds.
        stages: How many it has.
        least_dim: Of the manifolds that it is another system on than the one it is made of.
        has_density: Whether it has one on all of space.
        has_manifold: Whether it has one to project onto.
    """

    method: str
    changes: Changes = ()
    shares: Mapping[int, float] = {1: 1.0}
    steps: Mapping[int, int] = {1: 2600}
    stages: int = 1
    least_dim: int = 1
    has_density: bool = True
    has_manifold: bool = True


ONCE, TWICE, AFTER = {1: 1.0}, {1: 2 / 3, 2: 1 / 3}, {1: 0.6, 3: 0.4}
IN_TURNS = {1: 1 / 3, 2: 1 / 6, 3: 1 / 3, 4: 1 / 6}
OURS, OURS_THEN_FLOW = "nested (ours)", "nested, then a flow (ours)"
PCA_FLOW = "PCA, then a flow"
SYSTEMS = {
    PCA_FLOW: System(  # a rotated affine flow is PCA
        "PR-M-rotated",
        (("stage_1.flow.type", "affine"), ("phase_1.training.learning_rate", 0.03)),
        {1: 2 / 3, 3: 1 / 3},
        {},
        2,
    ),
    "likelihood alone, rotated": System("Glow-rotated"),
    OURS: System("nested", (), AFTER, {1: 1800, 3: 200}),
    OURS_THEN_FLOW: System(
        "nested-then-flow", (), {1: 0.5, 3: 0.25, 5: 0.25}, {1: 1800, 3: 200, 5: 200}, 2
    ),
    "PR-M": System("PR-M", (), ONCE, {1: 1000}, 2),
    "H-MM": System("H-MM", (), TWICE, {1: 1200, 2: 100}, 2),
    "DNF": System("DNF", (), ONCE, {1: 1000}, 2),
    "M-flow": System("M-flow", (), TWICE, {1: 1400, 2: 200}, 2),
    "M-flow, alternating": System(
        "M-flow-alternating", (), IN_TURNS, {1: 700, 2: 100, 3: 700, 4: 100}, 2
    ),
    "PIE": System("PIE"),
    "rectangular flow": System("rectangular", (), ONCE),
    "principal flow": System(
        "Glow-rotated", (("phase_1.non_orthogonality.weight", 1.0),), ONCE, least_dim=2
    ),
    "canonical flow": System(
        "rectangular", (("phase_1.off_diagonal.weight", 1.0),), ONCE, least_dim=2
    ),
    "autoencoder, then a flow": System(
        "autoencoder", (), TWICE, {1: 2400, 2: 200}, 2, has_density=False
    ),
    "conformal embedding": System("conformal", (), ONCE, {1: 1200}, 2, has_density=False),
    "Trumpet": System("trumpet", (), TWICE, {1: 2400, 2: 200}, 2, has_density=False),
    "SoftFlow": System("SoftFlow", has_manifold=False),
    "noisy injective flow": System("NIF", (), ONCE, {1: 2400}, 2),
    "two charts": System("multi-chart", (), ONCE, {1: 700}),
    "four charts": System("multi-chart", (("charts", 4),)),
    "Gaussianization": System("Glow-rotated", (("stage_1.flow.type", "gaussianization"),)),
}

POINT_STEPS = 600
POINTS: Changes = (
    ("training.batch_size", 256), ("training.learning_rate", 0.005),
    ("training.muon_lr", 0.02), ("training.validate_every", 50),
)  # fmt: skip
WEIGHTS = {
    "linear_gaussian": 10.0, "circle": 20.0, "von_mises_circle": 3.0, "sphere": 30.0,
    "vmf_sphere": 30.0, "torus": 1.0, "swiss_roll": 0.03, "paraboloid": 10.0, "thin_spiral": 1.0,
}  # fmt: skip
"""Manifolds, and the penalty's weight that conf/ has for each."""
AGAINST_SHRINKING = 30


def of_points(name: str, system: System) -> Changes:
    """The changes that train a system on the points of a manifold."""
    changes = [("dataset", name), ("method", system.method), *POINTS]
    changes += [(f"phase_{n}.training.steps", round(POINT_STEPS * share))
                for n, share in system.shares.items()]  # fmt: skip
    if system.stages == 2:  # couplings cannot bend a line
        changes.append(("stage_2.flow.type", "gaussianization"))
    if name == "linear_gaussian" and system.method != "H-MM":  # whose stages narrow on it
        changes += [(f"stage_{n + 1}.dim", manifold(name).dim) for n in range(system.stages)]
    if system.method in ("nested", "nested-then-flow"):
        changes += [("phase_3.reconstruction.weight", WEIGHTS[name]),
                    ("phase_3.reconstruction.random_dim", None)]  # fmt: skip
    if system.method == "rectangular":  # a density on the manifold rewards one that shrinks
        changes.append(("phase_1.reconstruction.weight", AGAINST_SHRINKING * WEIGHTS[name]))
    if system.method == "SoftFlow":  # whose samples are of all latents
        changes.append(("stage_1.dim", None))
    if system.method in ("SoftFlow", "DNF"):
        changes.append(("phase_1.input_noise", manifold(name).noise or 0.05))
    return (*changes, *system.changes)


class Images(NamedTuple):
    """Images that the systems are compared on.

    Attributes:
        recipe: Of the data.
        dim: d.
        ood: What `ood` is set to.
    """

    recipe: str
    dim: int
    ood: str


IMAGES = {
    "Fashion-MNIST, d = 20": Images("fashion_mnist", 20, "mnist"),
    "Fashion-MNIST, d = 64": Images("fashion_mnist", 64, "mnist"),
    "CelebA, d = 500": Images("celeba-Glow", 500, "photos"),
}
LARGEST_VOLUME = 64  # above, a step of what is trained by the manifold's volume takes a minute
OF_VOLUME = ("rectangular flow", "canonical flow", "principal flow")
DERIVATIVES = 2000  # of each event in all of their steps, a step taking one for each dimension
ON_POINTS_ALONE = ("four charts", "Gaussianization")


def of_images(images: Images, system: System) -> Changes:
    """The changes that train a system on images."""
    changes: list[tuple[str, Any]] = [("method", system.method)]
    changes += [(f"phase_{n}.training.steps", steps) for n, steps in system.steps.items()]
    if system.method == "SoftFlow":
        return (*changes, *system.changes)
    if system.method == "H-MM":
        changes.append(("stage_1.dim", 2 * images.dim))
        changes.append(("stage_2.dim", images.dim))
    else:
        changes += [(f"stage_{n + 1}.dim", images.dim) for n in range(system.stages)]
    return (*changes, *system.changes)


def needs() -> dict[str, tuple[str, Changes]]:
    """The experiments, by labels ``<data>: <row>``: a recipe, and what is changed in it."""
    found: dict[str, tuple[str, Changes]] = {}
    for data in MANIFOLDS:
        for name, system in SYSTEMS.items():
            if manifold(data).dim >= system.least_dim:
                found[f"{data}: {name}"] = "circle", of_points(data, system)
    for data, images in IMAGES.items():
        for name, system in SYSTEMS.items():
            too_large = name in OF_VOLUME and images.dim > LARGEST_VOLUME
            if name in OF_VOLUME:
                system = system._replace(steps={1: DERIVATIVES // images.dim})
            if name not in (*ON_POINTS_ALONE, PCA_FLOW) and not too_large:
                found[f"{data}: {name}"] = images.recipe, of_images(images, system)
    return found


RECORD = Path("docs/related.csv")
FOUND = {"share": 0.5, "divergence": 0.1}
"""At most which share of the data's distance, and how many nats, is a manifold or density found."""
COLUMNS = {
    "divergence": ("nats above the truth", ".3f"),
    "manifold_divergence": ("… on the manifold", ".3f"),
    "nearest_distance": ("nearest point to the true one", ".3g"),
    "projection_distance": ("encoder's", ".3g"),
    "sample_median": ("sample to the manifold, median", ".3g"),
    "non_orthogonality": ("non_orthogonality, bits", ".3f"),
    "bits_per_dim": ("BPD", ".3f"),
    "encoder": ("MSE, encoder", ".5f"),
    "nearest": ("MSE, nearest point", ".5f"),
    "pca": ("MSE of PCA", ".5f"),
    "precision": ("precision", ".2f"),
    "recall": ("recall", ".2f"),
    "kid": ("KID", ".3f"),
    "auroc.density": ("AUROC, density", ".3f"),
    "auroc.encoder_distance": ("AUROC, distance", ".3f"),
    "auroc.combination": ("AUROC, all scores", ".3f"),
    "seconds": ("seconds", ".0f"),
}
"""What is measured, in the order of columns: how it is headed, and written."""


def measured(runs: Mapping[str, Sequence[Experiment]]) -> pd.DataFrame:
    """Measure all runs: ``data``, ``row``, ``seed``, ``measure``, ``value``, ``low``, ``high``."""
    lines = []
    for label, experiments in runs.items():
        data, _, row = label.partition(": ")
        for seed, experiment in enumerate(experiments):
            of_row = {row: _measure(data, experiment)}
            if data in IMAGES and row == OURS:
                about = IMAGES[data]
                of_row[PCA_FLOW] = measure_pca_flow(experiment, about.dim, seed, about.ood)
            lines += [
                {"data": data, "row": name, "seed": seed, "measure": measure,
                 **{end: each.get(end) for end in ("value", "low", "high")}}
                for name, found in of_row.items() for measure, each in found.items()
            ]  # fmt: skip
    columns = ["data", "row", "seed", "measure", "value", "low", "high"]
    return pd.DataFrame(lines, columns=columns)


def _measure(data: str, experiment: Experiment) -> Measured:
    if data in IMAGES:
        return measure_images(experiment, IMAGES[data].ood)
    return measure_points(experiment)


def make(runs: Mapping[str, Sequence[Experiment]], content: Callable[..., Any]) -> Any:
    """Make the page: what each system finds, at what price; then all that was measured."""
    project = next(iter(runs.values()))[0].project
    keys = ("measure", "seed")
    data, recorded = with_record(measured(runs), project / RECORD, list(SYSTEMS), keys)
    means = _over_seeds(data)
    points = {name: means[name] for name in MANIFOLDS if name in means}
    images = {name: means[name] for name in IMAGES if name in means}
    tables, figures, notes = {}, {}, []
    if points:
        shares, nats = _grid(points, _share), _grid(points, _nats)
        tables["What each system finds, at what price"] = _summary(shares, nats, points)
        figures[
            "Left: mean distance of a point's nearest one on the learned manifold from its nearest "
            "one on the true manifold, as a share of the points' own distance from it. Right: "
            "divergence from the true density, in nats"
        ] = number_grids({"manifold: share of the noise": shares, "density: nats": nats}, (0.01, 1))
    tables["When to take which"] = pd.DataFrame(
        [(wanted, *each) for wanted, each in GUIDE.items()], columns=["wanted", "take", "because"]
    )
    for name, rows in (points | images).items():
        tables[name] = _table(rows)
        frontier_of = _of_images if name in images else _of_points
        notes += _dominated(name, rows, frontier_of)
    for name, rows in images.items():
        figures[f"{name}: bits per dimension against squared error"] = frontier(_bits(rows))
    for caption, table in published("related").items():
        tables[f"Published: {caption}"] = table
    notes = [*ABOUT, *notes, *_missing(data)]
    if recorded:
        notes.append(f"{recorded} lines of the data were measured before, and are from {RECORD}.")
    return content(tables, figures, data, notes)


OOD = dict.fromkeys(f"{each.ood} ({name.partition(',')[0]})" for name, each in IMAGES.items())
ABOUT = (
    f"Points: {POINT_STEPS} steps of 256 points in all phases together, with one optimizer and the "
    "same couplings where a system has any; the penalty's weight is the data set's, which was "
    "chosen for the paper's methods, and thin_spiral's for ours, on another seed; rectangular and "
    f"canonical flows have {AGAINST_SHRINKING} times that, as a density on the manifold alone "
    "rewards one that shrinks to nothing, as it did with the weight of the others. A manifold is "
    f"found where that share is at most {FOUND['share']:g}, a density where the divergence is at "
    f"most {FOUND['divergence']:g} nats.",
    "On the manifold: -log of the learned density at the projections, less that of the true one at "
    "the true projections. It says something only where the manifold is found.",
    "Images: steps were chosen for about equal seconds. Errors are on pixels in [0, 1], of 256 "
    "test images, bits of 1,000; KID, precision and recall are of 1,000 samples at temperature 1, "
    f"on principal components of pixels. AUROC is of ood from {'; '.join(OOD)}: of the "
    "density on all of space, of the encoder's distance, and of all quick scores by their joint "
    "distribution on validation images; PCA's are its components' and a Gaussian's.",
    "Seconds are the least of the seeds', with whatever else the machine did.",
    "Distances of points are means, that of samples is a median: a chart or a decoder goes on "
    "beyond the data, and a sample of its tail can fly off so far that it alone makes the mean "
    "(`sample_distance` in the data).",
    "In brackets 95% intervals: over test data, or the groups that they have, with one seed, over "
    "seeds by Student's t with more.",
    "Systems without a density on all of space, or without a manifold, have a dash for it: none "
    "can be computed.",
)


GUIDE = {
    "an exact density on all of space and the manifold, in one model": (
        OURS,
        "the likelihood first, then a short penalty: about the time of the likelihood alone",
    ),
    "the same, and samples from few coordinates": (
        OURS_THEN_FLOW,
        "the code that the penalty leaves is no standard normal; a flow on it takes seconds, and "
        "leaves the manifold as it is",
    ),
    "the same of a closed manifold, or one with holes or many turns": (
        "two charts or more",
        "one chart is a bent plane, has to cut it, and pays in density and distance; a chart costs "
        "as much time as a model",
    ),
    "a density alone": (
        "likelihood alone; charts where the manifold is closed or turns often",
        "a flow of one piece loses density where it has to cut; its first coordinates, rotated or "
        "not, are no manifold where the true one is curved",
    ),
    "the manifold alone, or a density on it": (
        "M-flow; autoencoder or Trumpet, then a flow, where seconds count",
        "whose density on all of space is none (or, of M-flow, not trained)",
    ),
    "samples without the noise of the data": (
        "SoftFlow",
        "it has no manifold to encode or to project onto",
    ),
    "coordinates that meet at right angles": (
        "principal or canonical flow",
        "every step takes a derivative for each coordinate",
    ),
    "a manifold that is a part of a plane or a sphere, with a volume that is a scalar": (
        "conformal embedding",
        "by Liouville's theorem it can be nothing else in one piece",
    ),
}


def _over_seeds(data: pd.DataFrame) -> dict[str, dict[str, Measured]]:
    """By data and row: each measure over seeds, and how many ``seeds``."""
    found: dict[str, dict[str, Measured]] = {}
    clean = data.astype(object).where(data.notna(), None)
    for (name, row, measure), group in clean.groupby(["data", "row", "measure"], sort=False):
        seeds = group[["value", "low", "high"]].to_dict("records")
        of_row = found.setdefault(str(name), {}).setdefault(str(row), {})
        is_time = measure == "seconds"  # to which other work of the machine only adds
        of_row[str(measure)] = min(seeds, key=itemgetter("value")) if is_time else over_seeds(seeds)
        of_row["seeds"] = max(of_row.get("seeds", 0), len(seeds))
    return found


def _share(found: Measured) -> float | None:
    nearest = found.get("nearest_distance", {}).get("value")
    return None if nearest is None else nearest / found["data_distance"]["value"]


def _nats(found: Measured) -> float | None:
    return found.get("divergence", {}).get("value")


def _grid(
    points: Mapping[str, Mapping[str, Measured]], read: Callable[[Measured], float | None]
) -> pd.DataFrame:
    return pd.DataFrame(
        {name: {row: read(found) for row, found in rows.items()} for name, rows in points.items()},
        dtype=float,
    ).reindex([row for row in SYSTEMS if any(row in rows for rows in points.values())])


def _summary(
    shares: pd.DataFrame, nats: pd.DataFrame, points: Mapping[str, Mapping[str, Measured]]
) -> pd.DataFrame:
    """For each system: which manifolds and densities it finds, and its seconds beside ours."""
    rows = []
    for row in shares.index:
        tried = [name for name, found in points.items() if row in found]
        times = [found[row]["seconds"]["value"] / found[OURS]["seconds"]["value"]
                 for found in points.values() if row in found and OURS in found]  # fmt: skip
        of_manifold, of_density = (
            [name for name in tried if table.loc[row, name] <= at_most]
            for table, at_most in ((shares, FOUND["share"]), (nats, FOUND["divergence"]))
        )
        system = SYSTEMS[row]
        rows.append({
            "system": row,
            **_found(tried, of_manifold, system.has_manifold, "manifolds found", "not found"),
            **_found(tried, of_density, system.has_density, "densities found", "not found "),
            "seconds, ours = 1": f"{sum(times) / len(times):.1f}" if times else "–",
        })  # fmt: skip
    return pd.DataFrame(rows)


def _found(
    tried: Sequence[str], found: Sequence[str], is_any: bool, count: str, others: str
) -> dict[str, str]:
    if not is_any:
        return {count: "none to find", others: ""}
    missed = ", ".join(name for name in tried if name not in found)
    return {count: f"{len(found)} of {len(tried)}", others: missed}


def _table(rows: Mapping[str, Measured]) -> pd.DataFrame:
    shown = [name for name in COLUMNS if any(name in found for found in rows.values())]
    return pd.DataFrame([
        {"system": row, "seeds": rows[row]["seeds"],
         **{COLUMNS[name][0]: written(rows[row].get(name, {}), COLUMNS[name][1]) for name in shown}}
        for row in SYSTEMS if row in rows
    ])  # fmt: skip


def _of_points(found: Measured) -> tuple[float | None, float | None]:
    return _nats(found), found.get("nearest_distance", {}).get("value")


def _of_images(found: Measured) -> tuple[float | None, float | None]:
    bits, nearest = (found.get(name, {}).get("value") for name in ("bits_per_dim", "nearest"))
    return bits, nearest


def _dominated(
    data: str,
    rows: Mapping[str, Measured],
    read: Callable[[Measured], tuple[float | None, float | None]],
) -> list[str]:
    """Say which of ours no system beats in density and manifold at once, or which ones beat it."""
    ours = [row for row in (OURS, OURS_THEN_FLOW) if row in rows]
    better = {
        own: [row for row, found in rows.items() if _before(read(found), read(rows[own]))]
        for own in ours
    }
    unbeaten = [own for own in ours if not better[own]]
    if not ours or unbeaten:
        return [f"{data}: {own} is on the frontier of density and manifold." for own in unbeaten]
    others = [row for row in better[ours[0]] if row not in ours]
    return [f"{data}: {ours[0]} is not on the frontier; better in both: {', '.join(others)}."]


def _before(a: tuple[float | None, float | None], b: tuple[float | None, float | None]) -> bool:
    return all(x is not None and y is not None and x < y for x, y in zip(a, b, strict=True))


def _bits(rows: Mapping[str, Measured]) -> dict[str, tuple[float, float, float]]:
    """By row: bits per dimension, and both squared errors; PCA's has no bits."""
    points = {row: (float(found["bits_per_dim"]["value"]), found["encoder"]["value"],
                    found["nearest"]["value"])
              for row, found in rows.items() if None not in _of_images(found)}  # fmt: skip
    for found in rows.values():
        if "pca" in found:
            points["PCA"] = (float("nan"), found["pca"]["value"], found["pca"]["value"])
    return points


def _missing(data: pd.DataFrame) -> list[str]:
    """Say which systems there is no run of, on which data."""
    there = set(zip(data["data"], data["row"], strict=True))
    wanted: dict[str, list[str]] = {}
    for label in needs():
        name, _, row = label.partition(": ")
        if (name, row) not in there:
            wanted.setdefault(name, []).append(row)
    return [f"Not run on {name}: {', '.join(rows)}." for name, rows in wanted.items()]
