"""Related systems under one trainer: which of them find the manifold, and which the density."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

import pandas as pd

from submanifold.data.synthetic import MANIFOLDS, manifold
from submanifold.evaluation.metrics import NONE
from submanifold.plots.comparisons import frontier, number_grids
from submanifold.studies.comparisons.measures import (
    Measured,
    bits_per_dim,
    cached,
    load_model,
    measure_aurocs,
    measure_images,
    measure_pca_flow,
    measure_points,
    training_seconds,
)
from submanifold.studies.comparisons.results import (
    cell,
    notes_on_rows,
    published,
    summarize,
    table,
    tradeoff,
    value,
    with_record,
)
from submanifold.studies.experiments import CachedRun
from submanifold.studies.pages import Changes, Content, Need, Runs, Target
from submanifold.studies.seeds import INTERVAL

RECORD = "docs/related.csv"


class System(NamedTuple):
    """A system in the tables.

    Attributes:
        method: The method whose settings it starts from.
        changes: Changes to these settings.
        point_steps: Fraction of the steps on points, by training phase.
        image_steps: Steps on images, by training phase; about equal seconds for all systems.
        stages: Number of stages.
        least_dim: Smallest manifold dimension on which it differs from the method.
        has_density: Whether it has a density on all of space.
        has_manifold: Whether it has a manifold to project onto.
    """

    method: str
    changes: Changes = ()
    point_steps: Mapping[int, float] = {1: 1.0}
    image_steps: Mapping[int, int] = {1: 2600}
    stages: int = 1
    least_dim: int = 1
    has_density: bool = True
    has_manifold: bool = True


ONE, TWO, NESTED = {1: 1.0}, {1: 2 / 3, 2: 1 / 3}, {1: 0.6, 3: 0.4}
ALTERNATING = {1: 1 / 3, 2: 1 / 6, 3: 1 / 3, 4: 1 / 6}
OURS, OURS_THEN_FLOW, PCA_FLOW = "nested (ours)", "nested, then a flow (ours)", "PCA, then a flow"
SYSTEMS = {
    PCA_FLOW: System(  # a rotated affine flow is PCA
        "PR-M-rotated",
        (("stage_1.flow.type", "affine"), ("phase_1.training.learning_rate", 0.03)),
        {1: 2 / 3, 3: 1 / 3}, {}, 2,
    ),
    "likelihood alone, rotated": System("Glow-rotated"),
    OURS: System("nested", (), NESTED, {1: 1800, 3: 200}),
    OURS_THEN_FLOW: System(
        "nested-then-flow", (), {1: 0.5, 3: 0.25, 5: 0.25}, {1: 1800, 3: 200, 5: 200}, 2
    ),
    "PR-M": System("PR-M", (), ONE, {1: 1000}, 2),
    "H-MM": System("H-MM", (), TWO, {1: 1200, 2: 100}, 2),
    "DNF": System("DNF", (), ONE, {1: 1000}, 2),
    "M-flow": System("M-flow", (), TWO, {1: 1400, 2: 200}, 2),
    "M-flow, alternating": System(
        "M-flow-alternating", (), ALTERNATING, {1: 700, 2: 100, 3: 700, 4: 100}, 2
    ),
    "PIE": System("PIE"),
    "rectangular flow": System("rectangular"),
    "principal flow": System(
        "Glow-rotated", (("phase_1.non_orthogonality.weight", 1.0),), least_dim=2
    ),
    "canonical flow": System("rectangular", (("phase_1.off_diagonal.weight", 1.0),), least_dim=2),
    "autoencoder, then a flow": System(
        "autoencoder", (), TWO, {1: 2400, 2: 200}, 2, has_density=False
    ),
    "conformal embedding": System("conformal", (), ONE, {1: 1200}, 2, has_density=False),
    "Trumpet": System("trumpet", (), TWO, {1: 2400, 2: 200}, 2, has_density=False),
    "SoftFlow": System("SoftFlow", has_manifold=False),
    "noisy injective flow": System("NIF", (), ONE, {1: 2400}, 2),
    "two charts": System("multi-chart", (), ONE, {1: 700}),
    "four charts": System("multi-chart", (("charts", 4),)),
    "Gaussianization": System("Glow-rotated", (("stage_1.flow.type", "gaussianization"),)),
}  # fmt: skip
POINTS_ONLY = ("four charts", "Gaussianization")

POINT_STEPS = 600
POINT_TRAINING: Changes = (
    ("training.batch_size", 256), ("training.learning_rate", 0.005),
    ("training.muon_lr", 0.02), ("training.validate_every", 50),
)  # fmt: skip
WEIGHTS = {
    "linear_gaussian": 10.0, "circle": 20.0, "von_mises_circle": 3.0, "sphere": 30.0,
    "vmf_sphere": 30.0, "torus": 1.0, "swiss_roll": 0.03, "paraboloid": 10.0, "thin_spiral": 1.0,
}  # fmt: skip
"""Weight of the reconstruction penalty on each manifold, as in conf/base."""
RECTANGULAR_FACTOR = 30
"""Factor on the weight for a density on the manifold alone, which rewards a shrinking manifold."""


class Images(NamedTuple):
    """A data set of images.

    Attributes:
        config: Name of the file in conf/runs.
        dim: Dimension d of the manifolds.
        ood: The out-of-distribution images.
    """

    config: str
    dim: int
    ood: str


IMAGES = {
    "Fashion-MNIST, d = 20": Images("fashion_mnist", 20, "mnist"),
    "Fashion-MNIST, d = 64": Images("fashion_mnist", 64, "mnist"),
    "CelebA, d = 500": Images("celeba-Glow", 500, "photos"),
}
BITS_IMAGES = 1000
VOLUME_SYSTEMS = ("rectangular flow", "canonical flow", "principal flow")
"""Systems trained with the volume of the manifold: a step computes one derivative per dimension."""
LARGEST_VOLUME, VOLUME_DERIVATIVES = 64, 2000
"""Largest dimension of these, and derivatives per event in all of their steps."""


def point_changes(name: str, system: System) -> Changes:
    """Return the changes that train a system on the points of a manifold."""
    true, method = manifold(name), system.method
    changes = [("dataset", name), ("method", method), *POINT_TRAINING]
    changes += [(f"phase_{n}.training.steps", round(POINT_STEPS * fraction))
                for n, fraction in system.point_steps.items()]  # fmt: skip
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
    return (*changes, *system.changes)


def image_changes(images: Images, system: System) -> Changes:
    """Return the changes that train a system on images."""
    changes: list[tuple[str, Any]] = [("method", system.method)]
    changes += [(f"phase_{n}.training.steps", steps) for n, steps in system.image_steps.items()]
    dims = {"SoftFlow": [], "H-MM": [2 * images.dim, images.dim]}
    of_stages = dims.get(system.method, [images.dim] * system.stages)
    changes += [(f"stage_{n}.dim", dim) for n, dim in enumerate(of_stages, start=1)]
    return (*changes, *system.changes)


def needs() -> dict[str, Need]:
    """Return the experiments, by labels ``<data>: <system>``."""
    found: dict[str, Need] = {}
    for data in MANIFOLDS:
        for name, system in SYSTEMS.items():
            if manifold(data).dim >= system.least_dim:
                found[f"{data}: {name}"] = Need("circle", point_changes(data, system))
    for data, images in IMAGES.items():
        for name, system in SYSTEMS.items():
            if name in VOLUME_SYSTEMS:
                system = system._replace(image_steps={1: VOLUME_DERIVATIVES // images.dim})
                if images.dim > LARGEST_VOLUME:
                    continue
            if name not in (*POINTS_ONLY, PCA_FLOW):
                found[f"{data}: {name}"] = Need(images.config, image_changes(images, system))
    return found


LARGEST_SHARE, LARGEST_DIVERGENCE = 0.5, 0.1
"""Thresholds for a manifold (relative to the data's distance) and for a density (nats)."""
COLUMNS = {
    "seeds": lambda row: row["seeds"]["value"],
    "nats above the truth": cell("divergence", ".3f"),
    "… on the manifold": cell("manifold_divergence", ".3f"),
    "nearest projection to the true one": cell("nearest_distance", ".3g"),
    "encoder projection to the true one": cell("projection_distance", ".3g"),
    "sample to the manifold, median": cell("sample_median", ".3g"),
    "non-orthogonality, bits": cell("non_orthogonality", ".3f"),
    "BPD": cell("bits_per_dim", ".3f"),
    "MSE, encoder projection": cell("encoder", ".5f"),
    "MSE, nearest projection": cell("nearest", ".5f"),
    "MSE of PCA": cell("pca", ".5f"),
    "precision": cell("precision", ".2f"),
    "recall": cell("recall", ".2f"),
    "KID": cell("kid", ".3f"),
    "AUROC, density": cell("auroc.density", ".3f"),
    "AUROC, distance": cell("auroc.encoder_distance", ".3f"),
    "AUROC, all scores": cell("auroc.combination", ".3f"),
    "seconds": cell("seconds", ".0f"),
}
OOD = dict.fromkeys(f"{each.ood} ({name.partition(',')[0]})" for name, each in IMAGES.items())
NOTES = (
    f"Points: {POINT_STEPS} steps with batches of 256 in all phases together, one optimizer, and "
    "the same couplings in all systems that have any. The weight of the penalty is that of the "
    "data set, which was chosen for the paper's methods; that of thin_spiral was chosen for ours, "
    f"on another seed. Rectangular and canonical flows have {RECTANGULAR_FACTOR} times that "
    "weight: a density on the manifold alone rewards a manifold that shrinks to nothing, as it did "
    f"with the weight of the others. A manifold is found if its distance is at most "
    f"{LARGEST_SHARE:g} of the data's, a density if the divergence is at most "
    f"{LARGEST_DIVERGENCE:g} nats.",
    "On the manifold: -log of the learned density at the projections, minus that of the true one "
    "at the true projections. It is meaningful only if the manifold is found.",
    "Images: steps were chosen for about equal seconds. Errors are on pixels in [0, 1], of 256 "
    f"test images; bits of {BITS_IMAGES:,}. KID, precision and recall are of 1,000 samples at "
    "temperature 1, on principal components of pixels. AUROC detects out-of-distribution images "
    f"from {'; '.join(OOD)}: by the density on all of space, the distance to the encoder "
    "projection, and all quick scores by their joint distribution on validation images. PCA uses "
    "its components and a Gaussian instead.",
    "Seconds are the minimum over seeds, and include other load on the machine.",
    "Distances of points are means, that of samples is a median: charts and decoders extend beyond "
    "the data, and a single sample of the tail can dominate the mean (`sample_distance` in the "
    "data).",
    "95% intervals are in brackets: with one seed over test data, or their groups; with more, over "
    "seeds (Student's t).",
    "A dash marks measures that do not exist: systems without a density on all of space, or "
    "without a manifold.",
)


def measure_one(run: CachedRun, images: Images | None) -> Measured:
    """Measure the model of a run, on points or on images."""

    def measure() -> Measured:
        if images is None:
            return measure_points(run)
        model = load_model(run)
        bits = {"bits_per_dim": bits_per_dim(run, model, BITS_IMAGES)} if model.has_density else {}
        (found,) = measure_images(run, [model])
        return {
            **bits, **found, **measure_aurocs(run, model, images.ood),
            "seconds": training_seconds(run),
        }  # fmt: skip

    return cached(run, run.key, "related", measure)


def measured_rows(runs: Runs) -> list[dict[str, Any]]:
    """Measure all runs; the rows have the columns of the record."""
    found: list[dict[str, Any]] = []

    def add(data: str, system: str, seed: int, measured: Measured) -> None:
        found.extend(
            {"data": data, "row": system, "seed": seed, "measure": name,
             **{end: each.get(end) for end in INTERVAL}}
            for name, each in measured.items()
        )  # fmt: skip

    for label, seeds in runs.items():
        data, _, system = label.partition(": ")
        images = IMAGES.get(data)
        for seed, run in enumerate(seeds):
            measured = measure_one(run, images)
            add(data, system, seed, measured)
            if images is not None and system == OURS:
                linear = {"density": "mahalanobis", "encoder_distance": "pca_distance",
                          "combination": "linear_combination"}  # fmt: skip
                aurocs = {f"auroc.{name}": measured[f"auroc.{k}"] for name, k in linear.items()}
                flow = measure_pca_flow(run, images.dim, seed, BITS_IMAGES)
                add(data, PCA_FLOW, seed, flow | aurocs)
    return found


def make(runs: Runs, record: pd.DataFrame | None = None) -> Content:
    """Make the page: what each system finds and its cost, then all measurements."""
    data = with_record(measured_rows(runs), record, list(SYSTEMS), ("measure", "seed"))
    means: dict[str, dict[str, Measured]] = {}
    for name in (*MANIFOLDS, *IMAGES):
        rows = summarize(data[data["data"] == name])
        if rows:
            means[name] = {system: rows[system] for system in SYSTEMS if system in rows}
    points = {name: rows for name, rows in means.items() if name in MANIFOLDS}
    tables, figures, notes = {}, {}, [*NOTES]
    if points:
        shares, nats = _grid(points, _share), _grid(points, lambda row: value(row, "divergence"))
        tables["What each system finds, and its cost"] = _summary(shares, nats, points)
        figures[
            "Left: mean distance from nearest projections to true projections, relative to the "
            "distance from the points to the true manifold. Right: divergence from the true "
            "density, in nats"
        ] = number_grids({"manifold: share of the noise": shares, "density: nats": nats}, (0.01, 1))
    guide = files("submanifold.studies.comparisons").joinpath("guide.csv")
    with guide.open(encoding="utf-8") as file:
        tables["Which system to use"] = pd.read_csv(file)
    for name, rows in means.items():
        tables[name] = table(rows, ("system",), COLUMNS)
        axes = ("bits_per_dim", "nearest") if name in IMAGES else ("divergence", "nearest_distance")
        notes += _dominated(name, rows, axes)
        if name in IMAGES:
            caption = f"{name}: bits per dimension against squared error"
            figures[caption] = frontier(tradeoff(rows, "bits_per_dim"))
    labels = (label.partition(": ") for label in needs())
    wanted = [(name, system) for name, _, system in labels]
    return Content(
        tables | published("related"), figures, data, notes + notes_on_rows(data, wanted, RECORD)
    )


def _share(row: Measured) -> float | None:
    nearest = value(row, "nearest_distance")
    return None if nearest is None else nearest / row["data_distance"]["value"]


def _grid(points: Mapping[str, Mapping[str, Measured]], read: Any) -> pd.DataFrame:
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
        tried = [data for data, row in points.items() if name in row]
        times = [row[name]["seconds"]["value"] / row[OURS]["seconds"]["value"]
                 for row in points.values() if name in row and OURS in row]  # fmt: skip
        counted = {"system": name}
        for kind, suffix, exists, grid, most in (
            ("manifolds", "", system.has_manifold, shares, LARGEST_SHARE),
            ("densities", " ", system.has_density, nats, LARGEST_DIVERGENCE),
        ):
            missed = [data for data in tried if not grid.loc[name, data] <= most]
            count = f"{len(tried) - len(missed)} of {len(tried)}" if exists else "not available"
            counted[f"{kind} found"] = count
            counted[f"not found{suffix}"] = ", ".join(missed) if exists else ""
        mean = f"{sum(times) / len(times):.1f}" if times else NONE
        rows.append({**counted, "seconds, ours = 1": mean})
    return pd.DataFrame(rows)


def _dominated(data: str, rows: Mapping[str, Measured], axes: Sequence[str]) -> list[str]:
    """Note which of our systems are on the frontier of density and manifold, or what beats them."""

    def is_better(a: Measured, b: Measured) -> bool:
        pairs = [(value(a, axis), value(b, axis)) for axis in axes]
        return all(x is not None and y is not None and x < y for x, y in pairs)

    ours = [name for name in (OURS, OURS_THEN_FLOW) if name in rows]
    better = {name: [other for other, row in rows.items() if is_better(row, rows[name])]
              for name in ours}  # fmt: skip
    unbeaten = [name for name in ours if not better[name]]
    if not ours or unbeaten:
        return [f"{data}: {name} is on the frontier of density and manifold." for name in unbeaten]
    others = ", ".join(name for name in better[ours[0]] if name not in ours)
    return [f"{data}: {ours[0]} is not on the frontier; better in both: {others}."]


TARGET = Target(
    "Related systems: which of them find the manifold, and which the density",
    needs(), make, seeds=True, evaluated=False, record=RECORD,
)  # fmt: skip
