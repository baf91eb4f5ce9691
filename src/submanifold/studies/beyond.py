"""Past the paper: density and reconstruction of every method, at equal seconds of training."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from submanifold.common.device import choose_device
from submanifold.common.files import read_json, write_json
from submanifold.common.progress import track
from submanifold.data.batches import Batches
from submanifold.data.groups import groups_of
from submanifold.evaluation.baselines import PCA, pca_batches
from submanifold.evaluation.intervals import mean_interval
from submanifold.evaluation.likelihood import (
    dequantized_log_probs,
    per_event,
    to_bits_per_dim,
)
from submanifold.evaluation.measure import sample_quality
from submanifold.evaluation.reconstruction import (
    NEAREST_BATCH_SIZE,
    psnr,
    reconstruction,
    squared_errors,
)
from submanifold.evaluation.samples import stored
from submanifold.models import Hierarchy
from submanifold.models.model import NEAREST_STEPS
from submanifold.plots.comparisons import frontier
from submanifold.plots.paper import sample_panels
from submanifold.studies.experiments import Experiment
from submanifold.studies.pca_flow import pca_flow
from submanifold.studies.record import with_record
from submanifold.studies.tables import over_seeds, written

DIMS = (100, 500, 1000)
MAIN_DIM = 500
DATASETS = ("celeba", "photos", "lsun_bedroom")
SAMPLES = 1000
NEAREST = 256
SHOWN_DIMS, SHOWN_TEMPERATURES, SHOWN = (50, 200, 500, 1000), (0.5, 0.7, 1.0), 5
VERSION = 4
"""Raise it when a measurement here changes."""

OURS = "nested-then-flow"
RECORD = Path("docs/beyond.csv")
"""What was measured before, on this machine or another: used where there is no run."""


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        name: What it is called.
        run: The label of its experiments.
        artifact: Its model in their catalog.
        ours: Whether it is one of ours, measured at every dimension.
    """

    name: str
    run: str
    artifact: str = "hierarchy"
    ours: bool = False


ROWS = (
    Row("Glow, by likelihood alone; its coarsest latents", "Glow-rotated", "phase_1.model", True),
    Row("… rotated", "Glow-rotated", "hierarchy", True),
    Row("likelihood, then penalty, not rotated", "penalty-after", "hierarchy", True),
    Row("nested, at one dimension", "nested-500", "hierarchy", True),
    Row("nested", "nested", "hierarchy", True),
    Row("nested, then a flow on its code", OURS, ours=True),
    Row("H-MM, rotated", "H-MM-rotated"),
    *(Row(f"{method}{optimizer}", f"{method}{run}")
      for method in ("PR-M", "PR-D", "EE-M", "H-MM", "DNF", "DNF-code")
      for run, optimizer in ((" at 100", ""), ("", ""), (" at 1000", ""), (", Adam", ", Adam"))),
)  # fmt: skip
MAIN = next(row.name for row in ROWS if row.run == OURS)
"""The row of the default, which the goals are about."""
PCA_ROW = Row("PCA, then a flow", OURS)


def measure(experiment: Experiment, row: Row) -> list[dict[str, Any]]:
    """Measure a row's model at its dimensions, or find it done.

    Returns:
        For each dimension ``dim``, ``bpd``, ``encoder`` and ``nearest`` (with their ``mse``),
        ``pca``, ``precision``, ``recall`` and ``kid``, and the ``seconds`` of training.
    """
    folder = experiment.project / "data" / "07_model_output" / experiment.key
    path = folder / f"beyond-{row.artifact.replace('.', '-')}-{VERSION}.json"
    found = read_json(path)
    if found is None:
        found = _measure(experiment, row)
        write_json(path, found)
    return found


def _measure(experiment: Experiment, row: Row) -> list[dict[str, Any]]:
    device = choose_device(experiment.parameters["device"])
    model: Hierarchy = experiment.load(row.artifact).to(device)
    train, test = experiment.load("x_train"), experiment.load("x_test")
    pca = PCA.fit(pca_batches(train))
    (log_prob,) = dequantized_log_probs(model, test, 1, device)
    groups = groups_of(experiment.groups, "test")
    bits = mean_interval(to_bits_per_dim(log_prob, test), groups)
    before = _density_before(experiment, row, test, device)
    some = Batches(test[:NEAREST], NEAREST_BATCH_SIZE, device=device)
    dims = DIMS if row.ours else (model.dim,)
    rows = []
    for (dim,) in track([[dim] for dim in dims], f"{experiment.name}, {row.name}", len(dims)):
        at = model.at_dim(dim)
        nearest = partial(at.project, steps=NEAREST_STEPS)
        errors = {
            "encoder": squared_errors(at.project, some),
            "nearest": squared_errors(nearest, some),
        }
        generator = torch.Generator().manual_seed(0)
        samples = np.concatenate([
            stored(at.sample(250, generator=generator)) for _ in range(SAMPLES // 250)
        ])  # fmt: skip
        quality = sample_quality(train, test, samples, "auto", device, experiment.groups)
        rows.append({
            "dim": dim,
            "bpd": bits,
            "before": before,
            **{name: reconstruction(each, groups=groups) for name, each in errors.items()},
            "pca": _pca_error(pca, some, dim, groups),
            "precision": quality["precision"], "recall": quality["recall"], "kid": quality["kid"],
            "seconds": _seconds(experiment, row),
            "n": len(some), "n_test": len(test),
        })  # fmt: skip
    return rows


def _density_before(
    experiment: Experiment, row: Row, test: np.ndarray, device: torch.device
) -> float | None:
    """Bits per dimension of the main method's first phase, which is likelihood alone."""
    if row.run != OURS:
        return None
    first: Hierarchy = experiment.load("phase_1.model").to(device)
    (log_prob,) = dequantized_log_probs(first, test, 1, device)
    return float(to_bits_per_dim(log_prob, test).mean())


def measure_pca(experiment: Experiment, seed: int) -> list[dict[str, Any]]:
    """Measure PCA followed by a flow on an experiment's data, as :func:`measure`, or find it."""
    folder = experiment.project / "data" / "07_model_output"
    folder /= experiment.configuration.artifact_keys["data"]
    path = folder / f"pca-flow-{seed}-{VERSION}.json"
    found = read_json(path)
    if found is None:
        found = [_measure_pca(experiment, seed, dim) for dim in DIMS]
        write_json(path, found)
    return found


def _measure_pca(experiment: Experiment, seed: int, dim: int) -> dict[str, Any]:
    train, valid, test = (experiment.load(f"x_{part}") for part in ("train", "valid", "test"))
    groups, on = groups_of(experiment.groups, "test"), choose_device("cpu")
    fitted = pca_flow(train, valid, test, dim, seed, SAMPLES, groups)
    quality = sample_quality(train, test, fitted["samples"], "auto", on, experiment.groups)
    some = Batches(test[:NEAREST], NEAREST_BATCH_SIZE)
    error = _pca_error(PCA.fit(pca_batches(train)), some, dim, groups)
    return {
        "dim": dim, "bpd": fitted["bits_per_dim"], "pca": error, "seconds": fitted["seconds"],
        "encoder": {"mse": error}, "nearest": {"mse": error},
        "precision": quality["precision"], "recall": quality["recall"], "kid": quality["kid"],
        "n": len(some), "n_test": len(test),
    }  # fmt: skip


def _pca_error(pca: PCA, batches: Batches, dim: int, groups: np.ndarray | None) -> dict[str, Any]:
    """On the images that the other errors are measured on."""
    return mean_interval(per_event(lambda x: pca.squared_errors(x)[:, dim], batches), groups)


def _seconds(experiment: Experiment, row: Row) -> float:
    """Of all phases up to the model."""
    phase = row.artifact.partition(".")[0].removeprefix("phase_")
    last = int(phase) if phase.isdigit() else None
    return sum(history["seconds"] for history in experiment.histories()[:last])


def make(runs: Mapping[str, Sequence[Experiment]], content: Callable[..., Any]) -> Any:
    """Make the page: a table of each data set, a verdict on each goal, and pictures."""
    data = pd.DataFrame([
        {"data": dataset, "row": row.name, "seed": seed, **_flat(measured)}
        for row in (*ROWS, PCA_ROW)
        for dataset in DATASETS
        for seed, experiment in enumerate(runs.get(f"{dataset}: {row.run}", ()))
        for measured in (
            measure_pca(experiment, seed) if row is PCA_ROW else measure(experiment, row)
        )
    ])  # fmt: skip
    experiment = next(iter(runs.values()))[0]
    order = [row.name for row in (*ROWS, PCA_ROW)]
    data, recorded = with_record(data, experiment.project / RECORD, order, ("seed", "dim"))
    tables, figures = {}, {}
    for dataset in [name for name in DATASETS if name in set(data["data"])]:
        some = data[data["data"] == dataset]
        tables[f"{dataset}"] = _table(some)
        tables[f"{dataset}, the goals"] = _goals(some)
        figures[f"{dataset}: bits per dimension against squared error, d = {MAIN_DIM}"] = frontier(
            _points(some)
        )
        if f"{dataset}: {OURS}" in runs:
            figures[f"{dataset}: samples of ours, by dimension and temperature"] = _samples(
                runs[f"{dataset}: {OURS}"][0]
            )
    notes = [
        "Errors are on pixels in [0, 1], of the first "
        f"{int(data['n'].max())} test images (bits per dimension of all of them); in "
        "brackets 95% intervals: over test images, or the groups that they have, with one seed, "
        "over seeds by Student's t with more. PSNR is that of the mean squared error. The nearest "
        "point is that of three Gauss-Newton steps, whose error is an upper bound.",
        f"KID, precision and recall are of {SAMPLES} samples at temperature 1, on principal "
        f"components of pixels. {MAIN[0].upper()}{MAIN[1:]}: at another dimension than {MAIN_DIM} "
        "coordinates beyond d are left out of samples, or are normal.",
        "Steps were chosen for about equal seconds of an idle machine; seconds are the least of "
        "the seeds', with whatever else the machine did.",
        "What holds the bits back is said in the goals: the part before the penalty is the price "
        "of the time that rotations and penalty take, the rest the penalty's own. The encoder's "
        "error wants a larger penalty than the nearest point's, which bits pay for: "
        "[defaults.md](defaults.md).",
        "Rotations of the latents that depend on the point were tried, and gain nothing after the "
        "penalised training: [point-rotations.md](point-rotations.md).",
    ]
    notes += _missing(data)
    if recorded:
        notes.append(f"{recorded} lines of the data were measured before, and are from {RECORD}.")
    return content(tables, figures, data, notes)


def _missing(data: pd.DataFrame) -> list[str]:
    """Say which rows of the table there is no run of."""
    there = set(zip(data["data"], data["row"], strict=True))
    notes = []
    for dataset in DATASETS:
        wanted = [row.name for row in (*ROWS, PCA_ROW)
                  if dataset == DATASETS[0] or not row.name.endswith(", Adam")]  # fmt: skip
        absent = [name for name in dict.fromkeys(wanted) if (dataset, name) not in there]
        if absent:
            notes.append(f"Not run on {dataset} yet: {'; '.join(absent)}.")
    return notes


def _flat(measured: Mapping[str, Any]) -> dict[str, Any]:
    flat = {name: measured[name] for name in ("dim", "seconds", "n", "n_test")}
    several = {name: measured[name] for name in ("bpd", "pca", "precision", "recall", "kid")}
    several |= {name: measured[name]["mse"] for name in ("encoder", "nearest")}
    for name, value in several.items():
        flat |= {name: value.get("value"), f"{name}_low": value.get("low"),
                 f"{name}_high": value.get("high")}  # fmt: skip
    return flat | {"before": measured.get("before")}


def _table(data: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for (name, dim), group in data.groupby(["row", "dim"], sort=False):

        def mean(column: str, group: pd.DataFrame = group) -> dict[str, Any]:
            ends = {"value": column, "low": f"{column}_low", "high": f"{column}_high"}
            return over_seeds([
                {end: None if pd.isna(row[name]) else row[name] for end, name in ends.items()}
                for _, row in group.iterrows()
            ])  # fmt: skip

        pca = mean("pca")["value"]
        rows.append({
            "method": name,
            "d": dim,
            "seeds": len(group),
            "BPD": written(mean("bpd"), ".3f"),
            "MSE, encoder": written(mean("encoder"), ".5f"),
            "of PCA's": f"{mean('encoder')['value'] / pca:.2f}",
            "MSE, nearest point": written(mean("nearest"), ".5f"),
            "of PCA's ": f"{mean('nearest')['value'] / pca:.2f}",
            "PSNR, encoder / nearest": f"{psnr(mean('encoder')['value']):.1f} / "
                                       f"{psnr(mean('nearest')['value']):.1f}",
            "MSE of PCA": f"{pca:.5f}",
            "precision": written(mean("precision"), ".2f"),
            "recall": written(mean("recall"), ".2f"),
            "KID": written(mean("kid"), ".3f"),
            "seconds": f"{group['seconds'].min():.0f}",  # to which other work only adds
        })  # fmt: skip
    return pd.DataFrame(rows)


def _goals(data: pd.DataFrame) -> pd.DataFrame:
    """Each goal of the main method: what is wanted, what was reached, and by how much it misses.

    What stands beside the plain Glow's, or PCA's, is compared seed by seed: runs of one seed start
    from the same weights.
    """
    ours, plain = (data[data["row"] == name] for name in (MAIN, ROWS[0].name))
    rows: list[tuple[str, float | None, pd.Series, str]] = []

    def at(frame: pd.DataFrame, column: str, dim: int) -> pd.Series:
        return frame[frame["dim"] == dim].set_index("seed")[column]

    density = at(plain, "bpd", MAIN_DIM)
    rows.append(("BPD above the plain Glow's", 0.01, at(ours, "bpd", MAIN_DIM) - density, "+.3f"))
    # the rest of it is the penalty's, as a rotation costs nothing
    before = at(ours, "before", MAIN_DIM) - density
    rows.append(("… before the penalty, for less time of likelihood", None, before, "+.3f"))
    for dim in sorted(set(ours["dim"])):
        nearest = {100: 0.8, 500: 0.8, 1000: 1.0}[dim]
        for column, wanted in (("nearest", nearest), ("encoder", 1.5)):
            label = "nearest point" if column == "nearest" else "encoder"
            rows.append((f"MSE of the {label}, of PCA's, d = {dim}", wanted,
                         at(ours, column, dim) / at(ours, "pca", dim), ".2f"))  # fmt: skip
    goals = []
    for name, most, reached, form in rows:
        of_seeds = reached.dropna().astype(float).tolist()
        if of_seeds:
            found = over_seeds(of_seeds)
            missed = found["value"] - (found["value"] if most is None else most)
            goals.append({
                "goal": name, "at most": "" if most is None else f"{most:{form}}",
                "reached": written(found, form), "seeds": len(of_seeds),
                "": "" if most is None else "met" if missed <= 0 else f"missed by {missed:{form}}",
            })  # fmt: skip
    return pd.DataFrame(goals)


def _points(data: pd.DataFrame) -> dict[str, tuple[float, float, float]]:
    """By row: bits per dimension, and squared error of encoder and nearest point, at one d."""
    at = data[data["dim"] == MAIN_DIM]
    points = {}
    for name, group in at.groupby("row", sort=False):
        bits, encoder, nearest = group[["bpd", "encoder", "nearest"]].mean()
        points[str(name)] = (bits, encoder, nearest)
    if len(at):
        pca = at["pca"].mean()
        points["PCA"] = (float("nan"), pca, pca)
    return points


def _samples(experiment: Experiment) -> Figure:
    model: Hierarchy = experiment.load("hierarchy")
    panels = {}
    for dim in SHOWN_DIMS:
        for temperature in SHOWN_TEMPERATURES:
            generator = torch.Generator().manual_seed(0)
            drawn = model.at_dim(dim).sample(SHOWN**2, temperature, generator)
            panels[f"d = {dim}, temperature {temperature:g}"] = stored(drawn)
    return sample_panels(panels, columns=len(SHOWN_TEMPERATURES), per_row=SHOWN)
