"""What the related systems are compared by, on points of a known density and on images."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from submanifold.common.device import choose_device
from submanifold.common.files import read_json, write_json
from submanifold.data.batches import Batches
from submanifold.data.groups import Groups, groups_of
from submanifold.evaluation.baselines import PCA, pca_batches
from submanifold.evaluation.intervals import mean_interval, median_interval
from submanifold.evaluation.likelihood import dequantized_log_probs, per_event, to_bits_per_dim
from submanifold.evaluation.measure import against_truth, sample_quality
from submanifold.evaluation.ood import add_groups, measure_ood, score_parts
from submanifold.evaluation.reconstruction import NEAREST_BATCH_SIZE, reconstruction, squared_errors
from submanifold.evaluation.samples import stored
from submanifold.evaluation.scores import QUICK
from submanifold.models import Model
from submanifold.models.density import on_manifold
from submanifold.models.model import NEAREST_STEPS
from submanifold.studies.experiments import Experiment
from submanifold.studies.pca_flow import pca_flow

SAMPLES = 2000
IMAGE_SAMPLES, SOME, FEW = 1000, 1000, 256
OF_SAMPLES = ("precision", "recall", "kid")
POINTS_VERSION, IMAGES_VERSION = 4, 3
"""Raise one when a measurement here changes."""

Measured = dict[str, Any]


def measure_points(experiment: Experiment) -> Measured:
    """Measure a model of points beside the truth, or find it done.

    Returns:
        What :func:`submanifold.evaluation.measure.against_truth` does; ``nearest_distance``, as its
        ``projection_distance`` of the nearest point; ``data_distance``, of test points themselves
        from the true manifold; ``sample_median``, of samples' distances from it;
        ``non_orthogonality`` of the
        metric, of two coordinates or more; ``seconds`` of training. Nothing of projections where
        there is no manifold.
    """
    return _found(experiment, _measure_points, POINTS_VERSION)


def measure_images(experiment: Experiment, ood: str) -> Measured:
    """Measure a model of images, or find it done.

    Args:
        experiment: Its experiment.
        ood: What `ood` is set to.

    Returns:
        ``bits_per_dim``, ``precision``, ``recall``, ``kid``, ``auroc.<score>`` and ``seconds``;
        where there is a manifold ``encoder`` and ``nearest`` squared errors, and ``pca``.
    """
    return _found(experiment, partial(_measure_images, ood=ood), IMAGES_VERSION)


def _found(experiment: Experiment, measure: Any, version: int) -> Measured:
    path = experiment.project / "data" / "07_model_output" / experiment.key
    path /= f"related-{version}.json"
    found = read_json(path)
    if found is None:
        found = measure(experiment)
        write_json(path, found)
    return found


def _seconds(experiment: Experiment) -> dict[str, float]:
    return {"value": sum(history["seconds"] for history in experiment.histories())}


@torch.no_grad()
def _measure_points(experiment: Experiment) -> Measured:
    model: Model = experiment.load("hierarchy")
    data: Any = experiment.configuration.experiment.data
    truth, test = data.manifold, experiment.load("x_test")
    samples = model.sample(SAMPLES, generator=torch.Generator().manual_seed(0)).double().numpy()
    found = against_truth(model, truth, test, samples)
    x, true = torch.from_numpy(np.asarray(test)), truth.project(test)
    if model.dim < model.event_dim:
        nearest = model.project(x, steps=NEAREST_STEPS).double().numpy()
        found["nearest_distance"] = mean_interval(np.linalg.norm(nearest - true, axis=1))
    else:
        del found["projection_distance"]
    non_orthogonality = on_manifold(model, x).non_orthogonality.double().numpy()
    if np.isfinite(non_orthogonality).all() and model.dim > 1:
        found["non_orthogonality"] = mean_interval(non_orthogonality)
    return {
        **{name: each for name, each in found.items() if isinstance(each, Mapping)},
        "data_distance": mean_interval(np.linalg.norm(test - true, axis=1)),
        "sample_median": median_interval(np.linalg.norm(samples - truth.project(samples), axis=1)),
        "seconds": _seconds(experiment),
    }


def _measure_images(experiment: Experiment, ood: str) -> Measured:
    device = choose_device(experiment.parameters["device"])
    model: Model = experiment.load("hierarchy").to(device)
    train, test = (experiment.load(f"x_{part}") for part in ("train", "test"))
    some = Batches(test[:FEW], NEAREST_BATCH_SIZE, device=device)
    groups = groups_of(experiment.groups, "test")
    found: Measured = {}
    if model.has_density:
        (log_prob,) = dequantized_log_probs(model, test[:SOME], 1, device)
        found["bits_per_dim"] = mean_interval(to_bits_per_dim(log_prob, test[:SOME]), groups)
    generator = torch.Generator().manual_seed(0)
    samples = np.concatenate([
        stored(model.sample(250, generator=generator)) for _ in range(IMAGE_SAMPLES // 250)
    ])  # fmt: skip
    if model.dim < model.event_dim:
        for name, steps in {"encoder": 0, "nearest": NEAREST_STEPS}.items():
            project = partial(model.project, steps=steps)
            found[name] = reconstruction(squared_errors(project, some), groups=groups)["mse"]
        found["pca"] = _pca_error(train, some, model.dim, groups)
    return {
        **found,
        **_of_samples(train, test, samples, device, experiment.groups),
        **_aurocs(experiment, model, ood),
        "seconds": _seconds(experiment),
    }


def measure_pca_flow(experiment: Experiment, dim: int, seed: int, ood: str) -> Measured:
    """Measure PCA followed by a flow on an experiment's data, as :func:`measure_images`.

    Its scores of ood are those of the components and of a Gaussian.
    """
    folder = experiment.project / "data" / "07_model_output"
    folder /= experiment.configuration.artifact_keys["data"]
    path = folder / f"related-{dim}-{seed}-{IMAGES_VERSION}.json"
    found = read_json(path)
    if found is None:
        train, valid, test = (experiment.load(f"x_{part}") for part in ("train", "valid", "test"))
        groups = groups_of(experiment.groups, "test")
        fitted = pca_flow(train, valid, test[:SOME], dim, seed, IMAGE_SAMPLES, groups)
        error = _pca_error(train, Batches(test[:FEW], NEAREST_BATCH_SIZE), dim, groups)
        found = {
            "bits_per_dim": fitted["bits_per_dim"], "encoder": error, "nearest": error,
            "pca": error, "seconds": {"value": fitted["seconds"]},
            **_of_samples(
                train, test, fitted["samples"], choose_device("cpu"), experiment.groups
            ),
        }  # fmt: skip
        write_json(path, found)
    of_model = measure_images(experiment, ood)
    scores = {"density": "mahalanobis", "encoder_distance": "pca_distance",
              "combination": "linear_combination"}  # fmt: skip
    return found | {f"auroc.{name}": of_model[f"auroc.{plain}"] for name, plain in scores.items()}


def _of_samples(
    train: np.ndarray,
    test: np.ndarray,
    samples: np.ndarray,
    device: torch.device,
    groups: Groups,
) -> Measured:
    quality = sample_quality(train, test, samples, "auto", device, groups)
    return {name: quality[name] for name in OF_SAMPLES}


def _pca_error(
    train: np.ndarray, batches: Batches, dim: int, groups: np.ndarray | None
) -> Measured:
    pca = PCA.fit(pca_batches(train))
    return mean_interval(per_event(lambda x: pca.squared_errors(x)[:, dim], batches), groups)


def _aurocs(experiment: Experiment, model: Model, ood: str) -> Measured:
    """Of the quick scores, of linear ones, and of the combination of either."""
    others = experiment.changed("ood", ood)
    if not others.catalog.exists("x_ood"):
        others.run("x_ood")
    train, valid, test = (experiment.load(f"x_{part}") for part in ("train", "valid", "test"))
    of_valid = groups_of(experiment.groups, "valid")
    scored = score_parts(model, train, valid, test, others.load("x_ood"), QUICK, of_valid)
    known = others.load("ood_groups") if others.catalog.exists("ood_groups") else {}
    of_both = groups_of(experiment.groups, "test"), groups_of(known, "ood")
    measured = measure_ood(add_groups(scored, *of_both))["scores"]
    return {f"auroc.{name}": each["auroc"] for name, each in measured.items()}
