"""The term of the volume element of the manifold."""

import math
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from submanifold.flows.bijection import full_precision
from submanifold.geometry import volume
from submanifold.geometry.linearization import Linearization, jvp
from submanifold.geometry.solvers import conjugate_gradients
from submanifold.losses.encoding import Encoding
from submanifold.losses.terms import Term
from submanifold.models.stage import standard_normal_log_prob

PROBES = 2  #: Probes of each event's volume in a validation, which averages over events.


class ManifoldLikelihood(Term):
    r"""Negative log-density on the manifold, of rectangular flows (Caterini et al. 2021).

    Autoencoders have it as free-form injective flows (Sorrenson et al. 2024).

    .. math:: -\log p_M = -\log N(u; 0, I) + \tfrac12 \log\det J^T J

    in bits per dimension of the manifold. Above ``exact_up_to`` values of training steps omit the
    volume, and validations estimate it (:func:`.estimate_log_volume`).

    Attributes:
        exact_up_to: Largest dimension d for which the full Jacobian is computed; above it gradients
            are estimated, and validations estimate the volume.
        gradient: In training, that of the decoder's volume, or ``encoder``, which estimates it by
            the encoder for any d (:func:`free_form_gradient`).
    """

    exact_up_to: int = Field(default=64, ge=1)
    gradient: Literal["decoder", "encoder"] = "decoder"

    def __call__(self, encoding: Encoding) -> Tensor:
        nats = self._log_volume(encoding) - standard_normal_log_prob(encoding.u)
        return nats.mean() / (encoding.u.shape[1] * math.log(2))

    def _log_volume(self, encoding: Encoding) -> Tensor:
        """Log-volume in nats, (batch,), or an estimate; in training zeros with its gradient."""
        if torch.is_grad_enabled() and self.gradient == "encoder":
            return free_form_gradient(encoding)
        if encoding.u.shape[1] <= self.exact_up_to:
            return volume.jacobian_log_volume(encoding.jacobian())
        if torch.is_grad_enabled():
            return log_volume_gradient(encoding)
        probes, u = torch.Generator().manual_seed(0), encoding.u  # the same in all validations
        with full_precision(u):
            return volume.estimate_log_volume(encoding.decode, u, PROBES, generator=probes)[0]


def log_volume_gradient(encoding: Encoding) -> Tensor:
    r"""Zeros (batch,) whose gradient is an unbiased estimate of the log-volume's.

    .. math:: \nabla \tfrac12 \log\det A = \tfrac12 \operatorname{E}_\epsilon
              \big[(A^{-1}\epsilon)^T (\nabla A)\, \epsilon\big], \qquad A = J^T J,\;
              \epsilon \sim N(0, I)

    with :math:`A^{-1}\epsilon` by conjugate gradients (Caterini et al. 2021).
    """
    u = encoding.u
    noise = encoding.draw(torch.randn, u.shape[1], dtype=u.dtype)
    with full_precision(u):
        at = Linearization(encoding.decode, u)
        solved = conjugate_gradients(lambda p: at.vjp(at.jvp(p)), noise, tolerance=1e-3)
    products = encoding.jacobian(torch.stack([solved, noise], 1))
    product = 0.5 * (products[:, :, 0] * products[:, :, 1]).sum(1)
    return product - product.detach()


def free_form_gradient(encoding: Encoding) -> Tensor:
    r"""Zeros (batch,) whose gradient estimates the log-volume's by the Jacobian of the encoder e.

    .. math:: \nabla \tfrac12 \log\det J^T J \approx
              -\operatorname{E}_\epsilon \big[\epsilon^T (\nabla J_e)\, J \epsilon\big],
              \qquad \epsilon \sim N(0, I)

    It takes one product with each Jacobian, and is unbiased where :math:`J_e` is the pseudoinverse
    of J (Sorrenson et al. 2024, free-form injective flows).
    """
    model, context = encoding.model, encoding.decoder_context
    noise = encoding.draw(torch.randn, encoding.u.shape[1], dtype=encoding.u.dtype)
    with full_precision(noise):
        with torch.no_grad():
            moved = jvp(partial(model.decode, context=context), encoding.u, noise)
        coordinates = jvp(lambda h: model.encode(h, context=context)[0], encoding.h, moved)
    product = -(noise * coordinates).sum(1)
    return product - product.detach()
