"""Measurements of trained models, cached as JSON."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from submanifold.common.device import choose_device
from submanifold.data.batches import Batches
from submanifold.evaluation.baselines import PCA
from submanifold.evaluation.intervals import mean_interval, median_interval
from submanifold.evaluation.likelihood import dequantized_log_probs, per_event, to_bits_per_dim
from submanifold.evaluation.ood import measure_ood, score_parts
from submanifold.evaluation.reconstruction import NEAREST_BATCH_SIZE, reconstruction, squared_errors
from submanifold.evaluation.sample_quality import sample_quality
from submanifold.evaluation.samples import stored
from submanifold.evaluation.scores import QUICK
from submanifold.evaluation.truth import against_truth
from submanifold.models import Model
from submanifold.models.density import manifold_density
from submanifold.runs.experiments import CachedRun
from submanifold.studies.results import Measured

POINT_SAMPLES, IMAGE_SAMPLES, SAMPLED_AT_ONCE = 2000, 1000, 250
TEST_POINTS = 1000
PROJECTED = 256  # test images whose projections are measured


@torch.no_grad()
def measure_points(run: CachedRun) -> Measured:
    """Compare a model of points with the true manifold and density by :func:`.against_truth`.

    Also measure the distances of nearest from true projections, and of points and samples from the
    manifold. There are no projections if d = D.
    """
    model: Model = run.load("hierarchy")
    data: Any = run.settings.data
    truth, test = data.manifold, run.load("x_test").x[:TEST_POINTS]
    generator = torch.Generator().manual_seed(0)
    samples = model.sample(POINT_SAMPLES, generator=generator).double().numpy()
    measured = against_truth(model, truth, test, samples)
    x, true = torch.from_numpy(test), truth.project(test)
    if model.dim < model.event_dim:
        nearest = model.project(x, nearest=True).double().numpy()
        measured["nearest_distance"] = mean_interval(np.linalg.norm(nearest - true, axis=1))
    else:
        del measured["projection_distance"]
    non_orthogonality = manifold_density(model, x).non_orthogonality.double().numpy()
    if np.isfinite(non_orthogonality).all() and model.dim > 1:
        measured["non_orthogonality"] = mean_interval(non_orthogonality)
    return {
        **{name: value for name, value in measured.items() if isinstance(value, dict)},
        "data_distance": mean_interval(np.linalg.norm(test - true, axis=1)),
        "sample_median": median_interval(np.linalg.norm(samples - truth.project(samples), axis=1)),
        "seconds": {"value": run.seconds()},
    }


def bits_per_dim(run: CachedRun, model: Model, count: int | None = None) -> dict[str, Any]:
    """Bits per dimension of the first test images, or of all, with its interval."""
    test = run.load("x_test")[:count]
    (log_prob,) = dequantized_log_probs(model, test, 1, choose_device(run.settings.device))
    return mean_interval(to_bits_per_dim(log_prob, test.x), test.groups)


def measure_images(run: CachedRun, models: Sequence[Model]) -> list[Measured]:
    """Measure samples of models of images and, if d < D, their projections and those by PCA."""
    device = choose_device(run.settings.device)
    test = run.load("x_test")
    batches = Batches(test[:PROJECTED], NEAREST_BATCH_SIZE, device=device)
    train, groups = run.load("x_train"), test[:PROJECTED].groups
    pca = PCA.fit(train.x)
    by_model = []
    for model in models:
        measured: Measured = {}
        if model.dim < model.event_dim:
            projections: dict[str, Callable[[Tensor], Tensor]] = {
                "encoder": model.encoder_projection,
                "default": model.project,
                "nearest": partial(model.project, nearest=True),
            }
            for name, project in projections.items():
                errors = squared_errors(project, batches)
                measured[name] = reconstruction(errors, groups=groups)["mse"]
            pca_errors = per_event(pca.squared_errors, batches)[:, model.dim]
            measured["pca"] = mean_interval(pca_errors, groups)
        generator = torch.Generator().manual_seed(0)
        samples = np.concatenate(
            [
                stored(model.sample(SAMPLED_AT_ONCE, generator=generator))
                for _ in range(IMAGE_SAMPLES // SAMPLED_AT_ONCE)
            ]
        )
        quality = sample_quality(train, test, samples, None, device)
        names = "precision", "recall", "kid", "frechet_distance"
        by_model.append(measured | {name: quality[name] for name in names})
    return by_model


def measure_aurocs(run: CachedRun, model: Model, ood: str) -> Measured:
    """AUROC of quick and linear scores and of their combinations, as ``auroc.<score>``."""
    other = run.with_params({"ood": ood})
    if not other.catalog.exists("x_ood"):
        other.run("x_ood")
    train, valid, test = (run.load(f"x_{part}") for part in ("train", "valid", "test"))
    scored = score_parts(model, train, valid, test, other.load("x_ood"), QUICK)
    scores = measure_ood(scored)["scores"]
    return {f"auroc.{name}": measured["auroc"] for name, measured in scores.items()}
