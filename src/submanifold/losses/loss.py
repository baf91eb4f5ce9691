"""The loss of Algorithm 1: the negative log-likelihood and penalties, a function of an encoding."""

from typing import Any, Self

import torch
from pydantic import model_validator
from torch import Tensor

from submanifold.common.errors import unexpected
from submanifold.common.settings import Settings
from submanifold.losses.encoding import Encoding
from submanifold.losses.reconstruction import Reconstruction, weighted_mean
from submanifold.losses.terms import Likelihood, OffManifold, Term
from submanifold.losses.volume import ManifoldLikelihood


class Loss(Settings):
    r"""The loss :math:`\sum_k w_k\, t_k(h)`; in Algorithm 1, two terms.

    .. math:: \ell = c\, \frac{-\log p(h)}{D \log 2}
              + \lambda\, \frac1D \sum_i r(h_i - \tilde h_i), \qquad \tilde h = f^{-1}(u, 0)

    with the signs of :ref:`theory-3-1`. Its fields are the registered terms, each with its weight;
    those of weight 0 are omitted. A training accepts any function of an :class:`Encoding` that
    returns named tensors, of which ``loss`` is minimized.

    Example:
        >>> flow = Hierarchy([Stage(RealNVP(8), dim=4)])
        >>> loss = Loss(reconstruction={"penalty": "mse", "weight": 10.0})
        >>> sorted(loss(encode(flow, torch.randn(3, 8))))
        ['bits_per_dim', 'likelihood', 'loss', 'mse', 'reconstruction']
    """

    likelihood: Likelihood = Likelihood()
    reconstruction: Reconstruction = Reconstruction()
    off_manifold: OffManifold = OffManifold()
    manifold_likelihood: ManifoldLikelihood = ManifoldLikelihood()

    @model_validator(mode="after")
    def _check_terms(self) -> Self:
        if not self.terms:
            expected = "a positive weight of this or of another term"
            raise unexpected("likelihood.weight", expected, "0 for all", "Set one")
        return self

    def __call__(self, encoding: Encoding) -> dict[str, Tensor]:
        """Compute the loss and its terms, means over the batch.

        Returns ``loss``, the weighted terms by name, ``bits_per_dim`` of the noisy h, if the model
        has a density on all of space, and ``mse`` of the projection in the penalty's space, if it
        is computed. Without gradients, in a validation, the ``mse`` is always computed, at the
        model's own dimension.
        """
        model, penalty, terms = encoding.model, self.reconstruction, {}
        validates = not torch.is_grad_enabled()
        residuals = penalty.residuals(encoding) if penalty.weight else None
        for name, term in self.terms.items():
            value = penalty(encoding, residuals) if term is penalty else term(encoding)
            terms[name] = term.weight * value
        values: dict[str, Any] = {"loss": sum(terms.values()), **terms}
        if model.has_density:
            values["bits_per_dim"] = model.to_bits_per_dim(encoding.log_prob).mean()
        if validates and (residuals is None or penalty.random_dim):
            residuals = penalty.model_copy(update={"random_dim": None}).residuals(encoding)
        if residuals is not None:
            errors, weights = residuals
            weights = None if penalty.random_dim and not validates else weights
            values["mse"] = weighted_mean(errors.square(), weights)
        return values

    @property
    def is_density_alone(self) -> bool:
        """Whether the loss depends on the log-density only."""
        return all(isinstance(term, Likelihood) for term in self.terms.values())

    @property
    def terms(self) -> dict[str, Term]:
        """The terms with a weight, by name."""
        terms = {name: getattr(self, name) for name in Loss.model_fields}
        return {name: term for name, term in terms.items() if term.weight > 0}
