"""Restoration: the posterior of an image, given an observation of it and a model of images."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from submanifold.common.errors import UserError
from submanifold.common.progress import ProgressBar
from submanifold.inverse.latents import latents_of
from submanifold.inverse.linear import LARGEST_OBSERVATION, Ensemble, GaussianPosterior
from submanifold.inverse.operators import Operator
from submanifold.inverse.posterior import (
    COARSE_NOISE,
    EventPosterior,
    Posterior,
    has_forward_mode,
    is_affine,
)
from submanifold.inverse.sampler import TargetDensity, r_hat, sample
from submanifold.models import Model

BATCH = 32
"""Images that are restored at a time."""
ITERATIONS, CHAINS = 30, 4
"""Default number of iterations of the sampler, and chains for each image."""


class Restoration(NamedTuple):
    """The posterior of images, pixels in [0, 1].

    Attributes:
        image: Posterior mean, (batch, channels, height, width), in [0, 1].
        std: Posterior standard deviation of each pixel, in the shape of the image.
        acceptance: Acceptance rate of the sampler for each image, (batch,).
        samples: Samples of the posterior, (samples, batch, channels, height, width), in [0, 1].
        r_hat: Potential scale reduction for each image, (batch,): about 1 if the chains of the
            sampler have converged. Far above, the standard deviations are mostly those of the
            starts.
        mode: Mode of the posterior in the model's latents, around which the sampler starts, in the
            shape of the image; None if the noise is 0.04 or more, or if the operator has no
            forward-mode derivative.
    """

    image: Tensor
    std: Tensor
    acceptance: Tensor
    samples: Tensor
    r_hat: Tensor
    mode: Tensor | None = None


def restore(
    model: Model,
    y: Tensor,
    operator: Operator | Any,
    noise: float | None = None,
    *,
    dim: int | None = None,
    iterations: int = ITERATIONS,
    generator: torch.Generator | None = None,
) -> Restoration:
    r"""Sample the posterior of images x, given observations :math:`y = A(x) + \sigma \epsilon`.

    The prior is the density of a trained model without a flow on its coordinates, and
    :math:`\epsilon \sim N(0, I)`. A first estimate is the best linear one for the contrast of each
    image (:class:`submanifold.inverse.linear.LinearEstimator`), or, for noise below 0.04, the mode,
    which Gauss-Newton steps find. Four chains of Hamiltonian Monte Carlo start around it, with the
    covariance of the errors of linear estimates: in images if the noise is below 0.04, the operator
    is affine and the model has the covariance of its training data, ``model.gaussian``
    (:class:`submanifold.inverse.posterior.EventPosterior`), otherwise in latents
    (:class:`submanifold.inverse.posterior.Posterior`). A model of vectors works in the same way; x
    and y are then vectors in the units of the model. A conditional model is used inside of
    :func:`submanifold.flows.conditioning`, with one context for all images.

    Args:
        model: A model of images.
        y: Observations, in the shape of A(x).
        operator: A differentiable function A of images (batch, channels, height, width) in [0, 1],
            such as those of :mod:`submanifold.inverse.operators`, or an object of
            ``deepinv.physics``.
        noise: Standard deviation :math:`\sigma`, in the units of y; by default that of the noise
            model of a deepinv object.
        dim: Restrict the images to the manifold of this dimension. By default the prior is the
            density on all of space.
        iterations: Iterations of each chain; the first third is discarded.
        generator: Generator on the CPU. Images are restored in batches of 32; the samples of an
            image depend slightly on the others of its batch.

    Returns:
        The posterior mean, standard deviations, acceptance rates and samples, on the device of the
        model.

    Raises:
        UserError: An argument does not fit the model.

    Example:
        >>> from submanifold.flows import Glow
        >>> from submanifold.inverse import Superresolve
        >>> from submanifold.models import Hierarchy, Stage
        >>> model = Hierarchy([Stage(Glow((1, 8, 8), levels=2, steps=1, width=4), dim=9)]).eval()
        >>> y = torch.rand(2, 1, 4, 4)
        >>> restored = restore(model, y, Superresolve(2), noise=0.05, iterations=6)
        >>> restored.image.shape, restored.std.shape
        (torch.Size([2, 1, 8, 8]), torch.Size([2, 1, 8, 8]))
    """
    latents = latents_of(model, dim)
    operator, noise = _resolve(operator, noise)
    if iterations < 3:
        raise UserError(
            f"iterations: expected 3 or more, got {iterations}. Use such as {ITERATIONS}."
        )
    weight = next(model.parameters())
    with torch.no_grad():
        x = latents.decode(weight.new_zeros(1, latents.dim))
        shape = operator(x).shape[1:]
    if y.shape[1:] != shape or not len(y) or y.dtype != weight.dtype:
        expected = ", ".join(map(str, ["batch", *shape]))
        raise UserError(
            f"y: expected {weight.dtype} of shape ({expected}), that of operator(x), got {y.dtype} "
            f"of shape {tuple(y.shape)}. Pass observations of this operator."
        )
    of_images = len(model.event_shape) == 3
    has_fine_noise = noise < COARSE_NOISE
    uses_mode = has_fine_noise and has_forward_mode(operator, x)
    linear: Ensemble | GaussianPosterior
    if (
        has_fine_noise
        and latents.log_prob is not None
        and latents.gaussian is not None
        and y[0].numel() <= LARGEST_OBSERVATION
        and is_affine(operator, x)
    ):
        linear = GaussianPosterior(latents.gaussian, operator, noise, generator)
    else:
        linear = Ensemble(latents, operator, noise, weight, generator)
    parts = []
    batches = y.to(weight.device).split(BATCH)
    with ProgressBar("restoring", "iterations", iterations * len(batches)) as progress:
        for batch in batches:
            posterior = Posterior(latents, operator, batch, noise, generator)
            linear = linear.scaled(posterior.y)
            with torch.no_grad():
                x = linear.estimate(posterior.y)
                x = x.clamp(0, 1) if of_images else x
                z = latents.encode(x).nan_to_num(0.0, 0.0, 0.0)
            z = posterior.mode(z) if uses_mode else z
            with torch.no_grad():
                mode = latents.decode(z)
                mode = mode.clamp(0, 1) if of_images else mode
                deviations = linear.draw(CHAINS // 2 * len(batch))
                starts = mode.repeat(CHAINS, *(1 for _ in x.shape[1:]))
                starts = starts + torch.cat([deviations, -deviations])
            target: TargetDensity = posterior
            if isinstance(linear, GaussianPosterior):
                target = EventPosterior(latents, operator, batch, linear)
            else:
                starts = starts.clamp(0, 1) if of_images else starts
                starts = latents.encode(starts).nan_to_num(0.0, 0.0, 0.0)
            samples, acceptance = sample(target, starts, CHAINS, iterations, progress.update)
            samples = samples.clamp(0, 1) if of_images else samples
            reduction, samples = r_hat(samples), samples.flatten(0, 1)
            parts.append((samples.mean(0), samples.std(0), acceptance, samples, reduction, mode))
    image, std, rates, drawn, reductions, modes = zip(*parts, strict=True)
    return Restoration(
        torch.cat(image), torch.cat(std), torch.cat(rates), torch.cat(drawn, 1),
        torch.cat(reductions), torch.cat(modes) if uses_mode else None,
    )  # fmt: skip


def as_pixels(images: np.ndarray) -> Tensor:
    """Convert bytes to pixels in [0, 1], the centres of their intervals.

    Example:
        >>> as_pixels(np.array([0, 255], np.uint8)).tolist()
        [0.001953125, 0.998046875]
    """
    return (torch.from_numpy(np.array(images)).float() + 0.5) / 256


def _resolve(operator: Any, noise: Any) -> tuple[Operator, float]:
    """Return an operator and the noise; those of an object of deepinv.physics are its parts."""
    if hasattr(operator, "A") and hasattr(operator, "noise_model"):
        noise = getattr(operator.noise_model, "sigma", None) if noise is None else noise
        operator = operator.A
    if not callable(operator):
        raise UserError(
            f"operator: expected a function of images, got {type(operator).__name__}. Use one of "
            "submanifold.inverse.operators."
        )
    if noise is None or not 0 < float(noise) < float("inf"):
        raise UserError(f"noise: expected a number above 0, got {noise}. Use such as 0.01.")
    return operator, float(noise)
