"""Metrics of a model's density and reconstruction on test data."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from submanifold.common.progress import track
from submanifold.data.batches import Batches
from submanifold.evaluation.intervals import Interval, mean_interval
from submanifold.evaluation.likelihood import (
    BATCH_SIZE,
    dequantized_log_probs,
    importance_log_prob,
    noisy_log_prob,
    per_event,
    to_bits_per_dim,
)
from submanifold.evaluation.reconstruction import NEAREST_BATCH_SIZE, reconstruction, squared_errors
from submanifold.models import Hierarchy, Model, on_manifold
from submanifold.models.diagnostics import is_overfitted, manifold_overfitting
from submanifold.models.model import NEAREST_STEPS

VOLUME_IMAGES = 8
NEAREST_EVENTS = 512
OVERFITTING_EVENTS = 5000
OVERFITTED = (
    "not reported: the data are close to the manifold, and the residual is a smooth function of "
    "the position on it. Data without noise have no density on all of space, and their likelihood "
    "has no maximum (manifold overfitting)"
)
NO_DENSITY = (
    "not available: a stage is not invertible, so there is a density on the manifold but not on "
    "all of space"
)


@dataclass(frozen=True)
class ModelEvaluation:
    """A model and test data (N, ...) with shared intermediate results.

    Attributes:
        baselines: The result of :func:`submanifold.evaluation.baselines.fit_baselines`.
        input_noise: Standard deviation of the noise that the density was trained with.
        dequantizations: Number of noise draws of the importance-weighted bound for images.
        groups: Group numbers of test images, (N,).
    """

    model: Model
    test: np.ndarray
    baselines: Mapping[str, Any]
    input_noise: float
    dequantizations: int
    device: torch.device
    groups: np.ndarray | None = None

    @cached_property
    def batches(self) -> Batches:
        """Batches of all test data."""
        return Batches(self.test, BATCH_SIZE, device=self.device)

    @property
    def of_images(self) -> bool:
        """Whether the data are images rather than points."""
        return not self.batches.is_continuous

    @cached_property
    def reconstruction(self) -> dict[str, Any]:
        """Squared errors of the encoder projection."""
        batches = track(self.batches, "projecting", len(self.test))
        return self.summarize(squared_errors(self.model.project, batches))

    @cached_property
    def nearest_reconstruction(self) -> dict[str, Any]:
        """Squared errors of the nearest projection of some events; empty where d = D."""
        if self.model.dim == self.model.event_dim:
            return {}
        some = Batches(self.test[:NEAREST_EVENTS], NEAREST_BATCH_SIZE, device=self.device)
        project = partial(self.model.project, steps=NEAREST_STEPS)
        batches = track(some, "nearest projections", len(some))
        return self.summarize(squared_errors(project, batches))

    def summarize(self, errors: np.ndarray) -> dict[str, Any]:
        """Summarize squared errors, (N,)."""
        return reconstruction(errors, self.of_images, self.groups)

    @cached_property
    def overfitting(self) -> dict[str, float]:
        """Signs of manifold overfitting; empty for images, which have noise."""
        if self.of_images or not self.model.has_density:
            return {}
        some = torch.cat(list(self.batches))[:OVERFITTING_EVENTS]
        thickness, correlation = manifold_overfitting(self.model, some)
        return {"thickness": thickness, "neighbour_correlation": correlation}

    @cached_property
    def log_probs(self) -> np.ndarray:
        """Log-densities in nats, (draws, N); one draw for points."""
        if self.of_images:
            return dequantized_log_probs(self.model, self.test, self.dequantizations, self.device)
        batches = track(self.batches, "bits per dimension", len(self.test))
        return per_event(self.model.log_prob, batches)[None]

    @cached_property
    def volume(self) -> Any:
        """Density on the manifold and non-orthogonality of its metric, for a few images."""
        some = next(iter(self.batches))[:VOLUME_IMAGES]
        return on_manifold(self.model, some, generator=torch.Generator().manual_seed(0))

    def bits_interval(self, log_prob: np.ndarray) -> Interval:
        """Return the mean bits per dimension of log-densities in nats, (N,)."""
        return mean_interval(to_bits_per_dim(log_prob, self.test), self.groups)


def bits_per_dim(evaluation: ModelEvaluation) -> Interval:
    """Compute bits per dimension, for images with one draw of dequantization noise."""
    if not evaluation.model.has_density:
        return {"value": None, "why": NO_DENSITY}
    if evaluation.overfitting and is_overfitted(*evaluation.overfitting.values()):
        return {"value": None, "why": OVERFITTED}
    return evaluation.bits_interval(evaluation.log_probs[0])


def bits_per_dim_importance(evaluation: ModelEvaluation) -> Interval | None:
    """Compute the importance-weighted bound on bits per dimension of images."""
    if not (evaluation.of_images and evaluation.model.has_density):
        return None
    interval = evaluation.bits_interval(importance_log_prob(evaluation.log_probs))
    return interval | {"draws": evaluation.dequantizations}


def bits_per_dim_noisy(evaluation: ModelEvaluation) -> Interval | None:
    """Compute bits per dimension with the input noise of a DNF."""
    if not (evaluation.input_noise > 0 and evaluation.model.has_density):
        return None
    return evaluation.bits_interval(
        noisy_log_prob(evaluation.model, evaluation.batches, evaluation.input_noise)
    )


def manifold_nll(evaluation: ModelEvaluation) -> Interval | None:
    """Compute the negative log-density in nats on the manifold at the projections of images."""
    if not evaluation.of_images:
        return None
    nll = mean_interval(-evaluation.volume.log_prob.double().cpu().numpy(), evaluation.groups)
    return nll | {"estimate_error": float(evaluation.volume.error.mean())}


def non_orthogonality(evaluation: ModelEvaluation) -> Interval | None:
    """Compute the non-orthogonality of the manifold's coordinates at images, where it is exact."""
    if not evaluation.of_images:
        return None
    values = evaluation.volume.non_orthogonality.double().cpu().numpy()
    return mean_interval(values, evaluation.groups) if np.isfinite(values).all() else None


def stage_1_mse(evaluation: ModelEvaluation) -> Interval | None:
    """Compute the mean squared error of the first stage of a hierarchy alone."""
    if not isinstance(evaluation.model, Hierarchy):
        return None
    if len(evaluation.model.stages) == 1:
        return evaluation.reconstruction["mse"]
    first = evaluation.model.part(1, 1)
    return evaluation.summarize(squared_errors(first.project, evaluation.batches))["mse"]
