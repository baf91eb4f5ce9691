"""Second components of densities; those of vectors have weights that held-out events choose."""

import copy
import math
import warnings
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from submanifold.common.progress import ProgressBar
from submanifold.data.batches import fixed_batches
from submanifold.data.events import EventsLike, as_events
from submanifold.evaluation.likelihood import log_prob, table_of
from submanifold.evaluation.scores import SCALE_BATCH_SIZE, best_noise_scale
from submanifold.flows import is_noise_conditional
from submanifold.models import Model, NormalComponents, UniformComponent

WIDE_WEIGHTS = 0.01, 0.1  #: Limits of the weight of the wide component.
WEIGHT_STEPS = 200  #: Of the EM algorithm for the weights.
MAX_HELD_OUT = 2000  #: Held-out events that choose the weights.
COMPONENTS = 1, 2, 4, 8, 16, 32, 64, 128  #: Of Gaussian mixtures, until two are not better.
MIXTURE_ROWS = 25_600  #: Training events, the first ones, that a Gaussian mixture is fitted to.
FEW_ROWS = 10  #: Training events for each component; with fewer there is no such mixture.
MANY_ROWS = 200  #: Training events for each component that determine its covariance.
RIDGES, RIDGE_OF_MANY = (1e-4, 1e-2), 1e-6
"""Variances that are added to each, where events are fewer than :data:`MANY_ROWS`, and else."""
MIXTURE_ELEMENTS = 2**14  #: Of all covariances of a Gaussian mixture, which takes longer with them.

AnyModel = TypeVar("AnyModel", bound=Model)


def with_defensive_component(
    model: AnyModel, train: EventsLike, held_out: EventsLike, device: torch.device
) -> AnyModel:
    """Return a model with a :class:`.DefensiveComponent`, if its density is on R^D.

    That of images is uniform on their range of values. That of vectors is normal: held-out events
    (N, D) choose a Gaussian mixture, and by maximum likelihood the weights of the flow, of the
    mixture and of the wide component; of a noise-conditional model at its best noise scale. The
    components are fitted to ``train`` (N, D). ``model.data`` describes the images, or the table if
    the events are rows of one.
    """
    if not model.has_density or not len(held_out):
        return model
    if len(model.event_shape) > 1:
        bounded = copy.deepcopy(model)
        bounded.defensive = UniformComponent(*model.data["value_range"])
        return bounded
    table, held_out = table_of(model), as_events(held_out)[:MAX_HELD_OUT]
    mixed = copy.deepcopy(model).to(device)
    scale = best_noise_scale(mixed, held_out) if is_noise_conditional(mixed) else None
    like = next(model.parameters()).dtype

    @torch.no_grad()
    def log_probs(component: NormalComponents | None) -> Tensor:
        mixed.defensive = None if component is None else component.to(device, like)
        batches = fixed_batches(held_out, SCALE_BATCH_SIZE, device)
        parts = [log_prob(mixed, x, context, table, scale) for x, context in batches]
        return torch.cat(parts).double()

    x, maskable = as_events(train).x, [] if table is None else table.maskable.tolist()
    wide = NormalComponents.fit(x, 1.0, maskable)
    parts = [wide]
    if (mixture := best_gaussian_mixture(x, held_out.x, maskable)) is not None:
        parts.append(mixture)
    weights = mixture_weights(torch.stack([log_probs(part) for part in (None, *parts)]))
    mixed.defensive = _join(parts, weights[1:].tolist()).to(device, like)
    return mixed


def mixture_weights(log_probs: Tensor) -> Tensor:
    """Compute the weights of a mixture of the flow, the wide component, and others.

    They maximize the likelihood of held-out events by the EM algorithm, from the log-densities
    (components, n) of each. One event more that all components explain equally keeps each weight
    above zero; that of the wide component is within :data:`WIDE_WEIGHTS`.

    Example:
        >>> mixture_weights(torch.tensor([[0.0, 0.0, -9.0], [-9.0, -9.0, -9.0], [-9.0, -9.0, 0.0]]))
        tensor([0.5833, 0.0833, 0.3333])
    """
    count = len(log_probs)
    log_probs = log_probs.nan_to_num(-torch.inf, posinf=-torch.inf)
    weights = torch.full_like(log_probs[:, 0], 1 / count)
    for _ in range(WEIGHT_STEPS):
        shares = (log_probs + weights.log()[:, None]).softmax(0)
        weights = (shares.nansum(1) + 1 / count) / (shares.isfinite().all(0).sum() + 1)
    wide = weights[1].clamp(*WIDE_WEIGHTS)
    weights = weights * (1 - wide) / (1 - weights[1])
    weights[1] = wide
    return weights


def best_gaussian_mixture(
    train: np.ndarray, held_out: np.ndarray, maskable: Sequence[int] = ()
) -> NormalComponents | None:
    """Fit Gaussian mixtures to events (n, D), and return that of the largest density of others.

    None if the events are too few, or of too many columns.
    """
    x, dim = np.asarray(train[:MIXTURE_ROWS], np.float64), train.shape[1]
    center, width = x.mean(0), x.std(0)
    width[width == 0] = 1.0
    x, held_out = (x - center) / width, (held_out - center) / width  # ridges have these units
    counts = [
        count
        for count in COMPONENTS
        if len(x) >= FEW_ROWS * count and count * dim**2 <= MIXTURE_ELEMENTS
    ]
    best, largest, misses = None, -math.inf, 0
    with ProgressBar("fitting Gaussian mixtures", "components", sum(counts)) as progress:
        for count in counts:
            misses += 1
            for ridge in RIDGES if len(x) < MANY_ROWS * count else [RIDGE_OF_MANY]:
                mixture = _fit(x, count, ridge)
                if (log_prob := mixture.score(held_out)) > largest:
                    best, largest, misses = mixture, log_prob, 0
            progress.update(count)
            if misses == 2:
                break
    if best is None:
        return None
    component = NormalComponents(dim, 1.0, maskable, best.weights_.tolist())
    covariances = best.covariances_ * np.outer(width, width)
    return component.set(center + width * best.means_, covariances)


def _fit(x: np.ndarray, components: int, ridge: float) -> Any:
    from sklearn.mixture import GaussianMixture  # loads slowly

    options: Any = {"max_iter": 50, "init_params": "k-means++", "random_state": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the iterations may not suffice
        return GaussianMixture(components, reg_covar=ridge, **options).fit(x)


def _join(parts: Sequence[NormalComponents], weights: Sequence[float]) -> NormalComponents:
    """Join components with their weights, whose sum is that of the result."""
    total = sum(weights)
    shares = [
        weight / total * share
        for part, weight in zip(parts, weights, strict=True)
        for share in part.shares
    ]
    joined = NormalComponents(parts[0].dim, total, parts[0].maskable, shares)
    joined.means = torch.cat([part.means for part in parts])
    joined.scales = torch.cat([part.scales for part in parts])
    return joined
