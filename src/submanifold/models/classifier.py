"""The Bayes classifier of a model that is conditional on the class."""

from typing import Any

import torch
from torch import Tensor

from submanifold.common.errors import unexpected
from submanifold.flows import Flow, context_of
from submanifold.flows.conditional import ConditionalLatents
from submanifold.flows.context import Context
from submanifold.models.hierarchy import Hierarchy
from submanifold.models.model import Model
from submanifold.models.stage import Stage


@torch.no_grad()
def classify(model: Model, x: Tensor, prior: Tensor | None = None) -> Tensor:
    r"""Compute the posterior probability of each class by Bayes' theorem.

    .. math:: p(y \mid x) = \frac{\pi_y\, p(x \mid y)}{\sum_k \pi_k\, p(x \mid k)}

    Args:
        model: Model that is conditional on a class, with a density on R^D.
        x: Events, (batch, *event_shape).
        prior: Probability :math:`\pi` of each class, (classes,); equal ones by default.

    Returns:
        Probabilities, (batch, classes).

    Example:
        >>> from submanifold.flows import Affine, make_conditional
        >>> from submanifold.models import Hierarchy, Stage
        >>> model = Hierarchy([Stage(make_conditional(Affine(2), classes=3), dim=1)])
        >>> classify(model, torch.randn(4, 2)).shape
        torch.Size([4, 3])
    """
    log_joint = class_log_probs(model, x)
    return (log_joint if prior is None else log_joint + prior.to(log_joint).log()).softmax(1)


def class_log_probs(model: Model, x: Tensor) -> Tensor:
    """Compute log p(x | y) of every class y, (batch, classes).

    A first flow that depends on the class in its latents only is computed once.
    """
    classes = context_of(model).get("classes")
    if classes is None:
        expected = "one that is conditional on a class"
        raise unexpected("model", expected, "another one", "Train it with data.condition=label")
    log_det = x.new_zeros(len(x))
    if isinstance(model, Hierarchy) and model.has_density and model.defensive is None:
        first, *later = model.stages
        flow, *flows = first.flows
        if isinstance(flow, ConditionalLatents) and flow.of_context and not first.noise:
            model._check(x=x)
            x, log_det = flow._forward(x)
            stage = Stage([_OfLatents(flow), *flows], first.dim, first.off_manifold_scale)
            model = Hierarchy([stage, *later])
    labels = torch.arange(classes, device=x.device)[:, None].expand(-1, len(x))
    return torch.stack([model.log_prob(x, label) + log_det for label in labels], 1)


class _OfLatents(Flow):
    """The part of a :class:`.ConditionalLatents` that depends on the class."""

    def __init__(self, flow: Any):
        super().__init__()
        self.event_shape = (flow.latent_dim,)
        self.embedding, self.of_context = flow.embedding, flow.of_context

    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        return self.of_context(x, context)
