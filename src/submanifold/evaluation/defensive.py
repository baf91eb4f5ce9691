"""Normal components of a density and their weights, which held-out events choose."""

import copy
import warnings
from collections.abc import Sequence
from itertools import product
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from submanifold.data.batches import fixed_batches
from submanifold.data.events import EventsLike, as_events
from submanifold.evaluation.likelihood import log_prob, table_of
from submanifold.evaluation.scores import SCALE_BATCH_SIZE, best_noise_scale
from submanifold.flows import is_noise_conditional
from submanifold.models import DefensiveComponent, Model

WEIGHTS = 0.01, 0.02, 0.05, 0.1  #: Of the wide component.
SHARES = 0.0, 0.1, 0.25, 0.5, 0.75, 0.9  #: Of a Gaussian mixture in the rest.
MAX_HELD_OUT = 2000  #: Held-out events that choose the weights.
COMPONENTS, RIDGES = (1, 2, 4, 8, 16, 32), (1e-4, 1e-2)  #: Of Gaussian mixtures, to choose from.
MIXTURE_ROWS = 4000  #: Training events, the first ones, that a Gaussian mixture is fitted to.
ROWS_PER_COMPONENT = 10
MIXTURE_ELEMENTS = 2**14  #: Of all covariances of a Gaussian mixture, which takes longer with them.

AnyModel = TypeVar("AnyModel", bound=Model)


def with_defensive_component(
    model: AnyModel, train: EventsLike, held_out: EventsLike, device: torch.device
) -> AnyModel:
    """Return a model of vectors with a :class:`.DefensiveComponent`; others as they are.

    A Gaussian mixture and the weights, of the wide component 0.01 to 0.1, are those of the largest
    mean log-density of ``held_out`` events (N, D), of a noise-conditional model at its best noise
    scale. The components are fitted to ``train`` (N, D). ``model.data`` describes the table, if the
    events are rows of one.
    """
    if not model.has_density or len(model.event_shape) > 1 or not len(held_out):
        return model
    table, held_out = table_of(model), as_events(held_out)[:MAX_HELD_OUT]
    mixed = copy.deepcopy(model).to(device)
    scale = best_noise_scale(mixed, held_out) if is_noise_conditional(mixed) else None
    like = next(model.parameters()).dtype

    @torch.no_grad()
    def log_probs(component: DefensiveComponent | None) -> Tensor:
        mixed.defensive = None if component is None else component.to(device, like)
        batches = fixed_batches(held_out, SCALE_BATCH_SIZE, device)
        parts = [log_prob(mixed, x, context, table, scale) for x, context in batches]
        return torch.cat(parts).double()

    x, maskable = as_events(train).x, [] if table is None else table.maskable.tolist()
    wide = DefensiveComponent.fit(x, 1.0, maskable)
    mixture = best_gaussian_mixture(x[:MIXTURE_ROWS], held_out.x, maskable)
    flow, of_wide = log_probs(None), log_probs(wide)
    of_mixture = flow if mixture is None else log_probs(mixture)
    _, weight, share = max(
        (_mixed(flow, of_mixture, of_wide, weight, share).mean().item(), -weight, -share)
        for weight in WEIGHTS
        for share in (SHARES if mixture is not None else SHARES[:1])
    )
    mixed.defensive = _join(wide, mixture, -weight, -share).to(device, like)
    return mixed


def best_gaussian_mixture(
    train: np.ndarray, held_out: np.ndarray, maskable: Sequence[int] = ()
) -> DefensiveComponent | None:
    """Fit Gaussian mixtures to events (n, D), and return that of the largest density of others.

    None if the events are too few, or of too many columns.
    """
    from sklearn.mixture import GaussianMixture  # loads slowly

    dim, fitted = train.shape[1], list[GaussianMixture]()
    for count, ridge in product(COMPONENTS, RIDGES):
        if ROWS_PER_COMPONENT * count <= len(train) and count * dim**2 <= MIXTURE_ELEMENTS:
            options: Any = {"max_iter": 50, "init_params": "k-means++", "random_state": 0}
            mixture = GaussianMixture(count, reg_covar=ridge, **options)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the iterations may not suffice
                fitted.append(mixture.fit(np.asarray(train, np.float64)))
    if not fitted:
        return None
    best = max(fitted, key=lambda mixture: mixture.score(held_out))
    component = DefensiveComponent(dim, 1.0, maskable, best.weights_.tolist())
    return component.set(best.means_, best.covariances_)


def _mixed(flow: Tensor, mixture: Tensor, wide: Tensor, weight: float, share: float) -> Tensor:
    terms = (1 - weight) * (1 - share), (1 - weight) * share, weight
    weights = torch.tensor(terms).to(flow).log()
    return (weights[:, None] + torch.stack([flow, mixture, wide])).logsumexp(0)


def _join(
    wide: DefensiveComponent, mixture: DefensiveComponent | None, weight: float, share: float
) -> DefensiveComponent:
    """Join the wide component and those of a mixture with their weights."""
    if mixture is None or share == 0:
        wide.weight = weight
        return wide
    narrow = (1 - weight) * share
    total = weight + narrow
    shares = [weight / total, *(narrow / total * part for part in mixture.shares)]
    joined = DefensiveComponent(wide.dim, total, wide.maskable, shares)
    joined.means = torch.cat([wide.means, mixture.means])
    joined.scales = torch.cat([wide.scales, mixture.scales])
    return joined
