"""The loss: a weighted sum of terms, each a function of a forward pass."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from submanifold.common.distributed import WHOLE_BATCH, Shard
from submanifold.flows import is_noise_conditional
from submanifold.losses.forward_pass import ForwardPass
from submanifold.losses.terms import Reconstruction, Term, Terms
from submanifold.losses.terms.reconstruction import weighted_mean
from submanifold.models.hierarchy import Hierarchy
from submanifold.models.model import Model


class Objective:
    r"""The loss :math:`\sum_k w_k\, t_k(h)`; in Algorithm 1, two terms.

    .. math:: \ell = c\, \frac{-\log p(h)}{D \log 2}
              + \lambda\, \frac1D \sum_i r(h_i - \tilde h_i), \qquad \tilde h = f^{-1}(u, 0)

    with the signs of :ref:`theory-3-1`. With input noise (the denoising flow, DNF) the density and
    u are those of :math:`h + \sigma_x \epsilon`, and the projection is compared with the clean h
    (:ref:`theory-3-10`). A noise-conditional flow receives the scale of the noise, which is random
    for each event: a uniform fraction of sigma_x (SoftFlow), or log-uniform between a smallest
    scale and sigma_x. With log-uniform scales, other terms than the likelihood are those of the
    clean h at the smallest scale.

    Args:
        terms: Terms by name; those of weight 0 are omitted.
        input_noise: sigma_x, in the units of h.
        outer: The frozen stages before those in training.
        input_noise_min: Smallest noise scale of a noise-conditional flow; None is 0, with uniform
            scales.

    Example:
        >>> flow = Hierarchy([Stage(RealNVP(8), dim=4)])
        >>> loss = Objective(Terms(reconstruction={"penalty": "mse", "weight": 10.0}).terms)
        >>> sorted(loss(flow, torch.randn(3, 8)))
        ['bits_per_dim', 'likelihood', 'loss', 'mse', 'reconstruction']
    """

    def __init__(
        self,
        terms: Mapping[str, Term],
        input_noise: float = 0.0,
        outer: Hierarchy | None = None,
        input_noise_min: float | None = None,
    ):
        self.terms = {name: term for name, term in terms.items() if term.weight > 0}
        self.reconstruction: Any = terms.get("reconstruction", Reconstruction())
        self.input_noise, self.outer, self.input_noise_min = input_noise, outer, input_noise_min

    @property
    def identity(self) -> dict[str, Any]:
        """JSON-able settings of the terms and of the noise."""
        terms = {name: term.model_dump(mode="json") for name, term in self.terms.items()}
        noise = {"input_noise": self.input_noise, "input_noise_min": self.input_noise_min}
        return {"terms": terms, **noise}

    def __call__(
        self,
        model: Model,
        h: Tensor,
        generator: torch.Generator | None = None,
        shard: Shard = WHOLE_BATCH,
        training: bool = True,
        context: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Compute the loss and its terms at events h; arguments as in :class:`ForwardPass`.

        Returns means over the batch: weighted terms by name and their sum ``loss``;
        ``bits_per_dim`` of the noisy input, if the model has a density on all of space; ``mse`` of
        the projection in the penalty's space, if it is computed. Validation (``training=False``)
        always reports it, at the model's own dimension.
        """
        clean = ForwardPass(model, h, h, self.outer, generator, shard, training, None, context)
        noisy, scale = self.add_noise(clean)
        batch = replace(clean, noisy=noisy, noise_scale=scale)
        projected = batch if self.input_noise_min is None else clean
        bits = model.to_bits_per_dim(batch.log_prob).mean() if model.has_density else None
        terms = {}
        for name, term in self.terms.items():
            terms[name] = term.weight * term(batch if name == "likelihood" else projected)
        values: dict[str, Any] = {"loss": sum(terms.values()), **terms}
        if bits is not None:
            values["bits_per_dim"] = bits
        if "reconstruction" in terms or not training:
            penalty = self.reconstruction
            random_dim = penalty.random_dim if training else None
            residuals, weights = projected.residuals(penalty.last_stage, penalty.space, random_dim)
            weights = weights if random_dim is None else None
            values["mse"] = weighted_mean(residuals.square(), weights)
        return values

    def add_noise(self, batch: ForwardPass) -> tuple[Tensor, Tensor | None]:
        """Draw the noisy input, and the scale (batch,) that a noise-conditional model receives."""
        h = batch.clean
        if self.input_noise == 0:
            return h, None
        noise = batch.draw(torch.randn, *h.shape[1:], dtype=h.dtype)
        if not is_noise_conditional(batch.model):
            return h + self.input_noise * noise, None
        scale = fraction = batch.draw(torch.rand)
        if self.input_noise_min is not None:
            fraction = (self.input_noise_min / self.input_noise) ** (1 - scale)
        noise = fraction.view(-1, *(1 for _ in h.shape[1:])).to(h.dtype) * noise
        return h + self.input_noise * noise, scale


def penalized_likelihood(
    penalty: str = "none", input_noise: float = 0.0, outer: Hierarchy | None = None, **settings: Any
) -> Objective:
    """Return the objective of Algorithm 1, with the likelihood in bits per dimension.

    ``penalty`` is ``mse``, ``huber`` or ``none``, and ``settings`` are those of the penalty:
    ``weight``, and ``delta`` for ``huber``. With outer stages it compares images.
    """
    if outer is not None:
        settings["space"] = "image"
    terms = Terms.model_validate({"reconstruction": {"penalty": penalty, **settings}})
    return Objective(terms.terms, input_noise, outer)
