"""Measurements of trained models, cached as JSON."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from submanifold.common.device import choose_device
from submanifold.common.files import read_json, write_json
from submanifold.data.batches import Batches
from submanifold.data.splits import groups_of
from submanifold.evaluation.baselines import PCA, pca_batches
from submanifold.evaluation.intervals import mean_interval, median_interval
from submanifold.evaluation.likelihood import dequantized_log_probs, per_event, to_bits_per_dim
from submanifold.evaluation.ood import add_groups, measure_ood, score_parts
from submanifold.evaluation.reconstruction import NEAREST_BATCH_SIZE, reconstruction, squared_errors
from submanifold.evaluation.sample_quality import sample_quality
from submanifold.evaluation.samples import stored
from submanifold.evaluation.scores import QUICK
from submanifold.evaluation.truth import against_truth
from submanifold.models import Model
from submanifold.models.density import on_manifold
from submanifold.studies.experiments import CachedRun

POINT_SAMPLES, IMAGE_SAMPLES, SAMPLED_AT_ONCE = 2000, 1000, 250
PROJECTED = 256
"""Test images whose projections are measured."""
MEASURES_VERSION = 5
"""Part of the names of cached files. Increase it when a measurement changes."""

Measured = dict[str, dict[str, Any]]
"""``value``, and mostly ``low`` and ``high``, by measure."""


def cached(run: CachedRun, key: str, name: str, measure: Callable[[], Any]) -> Any:
    """Read the measurements of a run, or of its data, or make and write them."""
    folder = run.project / "data" / "07_model_output" / key
    path = folder / f"{name}-{MEASURES_VERSION}.json"
    found = read_json(path)
    if found is None:
        found = measure()
        write_json(path, found)
    return found


def load_model(run: CachedRun, artifact: str = "hierarchy") -> Any:
    """Load a model of a run to its device."""
    return run.load(artifact).to(choose_device(run.settings.device))


def training_seconds(run: CachedRun, phases: int | None = None) -> dict[str, float]:
    """Total seconds of the first phases, or of all."""
    return {"value": sum(history["seconds"] for history in run.histories()[:phases])}


@torch.no_grad()
def measure_points(run: CachedRun) -> Measured:
    """Compare a model of points with the true manifold and density.

    Returns:
        The measures of :func:`submanifold.evaluation.truth.against_truth`; ``nearest_distance``,
        of nearest projections to the true projections; ``data_distance`` and ``sample_median``,
        of test points (mean) and samples (median) to the true manifold; ``non_orthogonality``, if
        d > 1; ``seconds``. Projections are not measured if d = D.
    """
    model: Model = run.load("hierarchy")
    data: Any = run.settings.data
    truth, test = data.manifold, run.load("x_test")
    generator = torch.Generator().manual_seed(0)
    samples = model.sample(POINT_SAMPLES, generator=generator).double().numpy()
    found = against_truth(model, truth, test, samples)
    x, true = torch.from_numpy(np.asarray(test)), truth.project(test)
    if model.dim < model.event_dim:
        nearest = model.project(x, exact=True).double().numpy()
        found["nearest_distance"] = mean_interval(np.linalg.norm(nearest - true, axis=1))
    else:
        del found["projection_distance"]
    non_orthogonality = on_manifold(model, x).non_orthogonality.double().numpy()
    if np.isfinite(non_orthogonality).all() and model.dim > 1:
        found["non_orthogonality"] = mean_interval(non_orthogonality)
    return {
        **{name: each for name, each in found.items() if isinstance(each, dict)},
        "data_distance": mean_interval(np.linalg.norm(test - true, axis=1)),
        "sample_median": median_interval(np.linalg.norm(samples - truth.project(samples), axis=1)),
        "seconds": training_seconds(run),
    }


def bits_per_dim(run: CachedRun, model: Model, count: int | None = None) -> dict[str, Any]:
    """Bits per dimension of the first test images, or of all, with its interval."""
    test = run.load("x_test")[:count]
    (log_prob,) = dequantized_log_probs(model, test, 1, choose_device(run.settings.device))
    return mean_interval(to_bits_per_dim(log_prob, test), groups_of(run.groups, "test"))


def measure_images(run: CachedRun, models: Sequence[Model]) -> list[Measured]:
    """Measure projections and samples of models of images.

    Returns:
        For each model ``precision``, ``recall`` and ``kid`` of samples at temperature 1; if
        d < D also ``encoder`` and ``nearest``, the mean squared errors of both projections, and
        ``pca``, that of PCA with d components.
    """
    device = choose_device(run.settings.device)
    batches = Batches(run.load("x_test")[:PROJECTED], NEAREST_BATCH_SIZE, device=device)
    groups = groups_of(run.groups, "test")
    pca = PCA.fit(pca_batches(run.load("x_train")))
    found = []
    for model in models:
        measured: Measured = {}
        if model.dim < model.event_dim:
            projections: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
                "encoder": model.encoder_projection,
                "nearest": partial(model.project, exact=True),
            }
            for name, project in projections.items():
                errors = squared_errors(project, batches)
                measured[name] = reconstruction(errors, groups=groups)["mse"]
            measured["pca"] = pca_error(pca, model.dim, batches, groups)
        generator = torch.Generator().manual_seed(0)
        samples = np.concatenate([
            stored(model.sample(SAMPLED_AT_ONCE, generator=generator))
            for _ in range(IMAGE_SAMPLES // SAMPLED_AT_ONCE)
        ])  # fmt: skip
        found.append(measured | sample_metrics(run, samples, device))
    return found


def measure_aurocs(run: CachedRun, model: Model, ood: str) -> Measured:
    """AUROC of the quick scores, the linear scores, and their combinations, as ``auroc.<score>``.

    The out-of-distribution images are those of the parameter ``ood``.
    """
    other = run.changed("ood", ood)
    if not other.catalog.exists("x_ood"):
        other.run("x_ood")
    train, valid, test = (run.load(f"x_{part}") for part in ("train", "valid", "test"))
    of_valid = groups_of(run.groups, "valid")
    scored = score_parts(model, train, valid, test, other.load("x_ood"), QUICK, of_valid)
    ood_groups = other.load("ood_groups") if other.catalog.exists("ood_groups") else {}
    scored = add_groups(scored, groups_of(run.groups, "test"), groups_of(ood_groups, "ood"))
    scores = measure_ood(scored)["scores"]
    return {f"auroc.{name}": each["auroc"] for name, each in scores.items()}


def sample_metrics(run: CachedRun, samples: np.ndarray, device: torch.device) -> Measured:
    """Precision, recall and KID of samples."""
    train, test = run.load("x_train"), run.load("x_test")
    quality = sample_quality(train, test, samples, "auto", device, run.groups)
    return {name: quality[name] for name in ("precision", "recall", "kid")}


def pca_error(pca: PCA, dim: int, batches: Batches, groups: np.ndarray | None) -> dict[str, Any]:
    """Mean squared error of PCA with ``dim`` components, with its interval."""
    return mean_interval(per_event(lambda x: pca.squared_errors(x)[:, dim], batches), groups)
