"""The weight of the normal component of a density, which held-out events choose."""

import copy
from typing import TypeVar

import torch
from torch import Tensor

from submanifold.data.batches import fixed_batches
from submanifold.data.events import EventsLike, as_events
from submanifold.evaluation.likelihood import log_prob, table_of
from submanifold.evaluation.scores import SCALE_BATCH_SIZE, best_noise_scale
from submanifold.flows import is_noise_conditional
from submanifold.models import DefensiveComponent, Model

WEIGHTS = 0.01, 0.02, 0.05, 0.1
MAX_HELD_OUT = 2000  #: Held-out events that choose the weight.

AnyModel = TypeVar("AnyModel", bound=Model)


def with_defensive_component(
    model: AnyModel, train: EventsLike, held_out: EventsLike, device: torch.device
) -> AnyModel:
    """Return a model of vectors with a :class:`.DefensiveComponent`; others as they are.

    The weight, 0.01 to 0.1, is that of the largest mean log-density of ``held_out`` events (N, D),
    of a noise-conditional model at its best noise scale. ``train`` (N, D) determines the component.
    ``model.data`` describes the table, if the events are rows of one.
    """
    if not model.has_density or len(model.event_shape) > 1 or not len(held_out):
        return model
    table, held_out = table_of(model), as_events(held_out)[:MAX_HELD_OUT]
    mixed = copy.deepcopy(model).to(device)
    scale = best_noise_scale(mixed, held_out) if is_noise_conditional(mixed) else None

    def log_probs() -> Tensor:
        batches = fixed_batches(held_out, SCALE_BATCH_SIZE, device)
        parts = [log_prob(mixed, x, context, table, scale) for x, context in batches]
        return torch.cat(parts).double()

    with torch.no_grad():
        flow = log_probs()
        maskable = [] if table is None else table.maskable.tolist()
        component = DefensiveComponent.fit(as_events(train).x, 1.0, maskable)
        mixed.defensive = component.to(flow.device, next(model.parameters()).dtype)
        normal = log_probs()
    weights = torch.tensor(WEIGHTS).to(flow)[:, None]
    means = torch.logaddexp((1 - weights).log() + flow, weights.log() + normal).mean(1)
    component.weight = WEIGHTS[int(means.argmax())]
    return mixed
