"""Restoration: the posterior of an image, given an observation of it and a model of images."""

import logging
from typing import Any, NamedTuple

import numpy as np
import scipy  # submodules load on first use
import torch
from torch import Tensor

from submanifold.common.errors import UserError, unexpected
from submanifold.common.progress import ProgressBar
from submanifold.inverse.linear import LARGEST_OBSERVATION, Ensemble, GaussianPosterior
from submanifold.inverse.operators import Operator
from submanifold.inverse.posterior import Posterior, has_forward_mode, is_affine, latents_of
from submanifold.inverse.sampler import r_hat, sample
from submanifold.models import Model

log = logging.getLogger(__name__)

CONVERGED = 1.1  # largest R-hat of chains whose intervals can be used
BATCH = 32  # images that are restored at a time
ITERATIONS, CHAINS = 30, 4  # of the sampler for each image
LEVEL = 0.9  # of the posterior's intervals whose coverage is measured
# With more noise the mode in latents is a worse restoration than the linear estimate. With less
# noise a sampler in images is faster (docs/evidence/restore.md).
COARSE_NOISE = 0.04


class Restoration(NamedTuple):
    """The posterior of images (batch, channels, height, width), pixels in [0, 1].

    ``r_hat`` is at most 1.1 if the chains of the sampler have converged. Above, the standard
    deviations depend on the starts and can be too small. ``mode`` is that of the posterior in
    latents, None if the noise is 0.04 or more, or if the operator has no forward-mode derivative.
    """

    image: Tensor  # posterior mean
    std: Tensor  # posterior standard deviation of each pixel
    acceptance: Tensor  # acceptance rate of the sampler, (batch,)
    samples: Tensor  # (samples, batch, channels, height, width)
    r_hat: Tensor  # potential scale reduction, (batch,)
    mode: Tensor | None = None


@torch.no_grad()
def restore(
    model: Model,
    y: Tensor,
    operator: Operator | Any,
    noise: float | None = None,
    *,
    dim: int | None = None,
    iterations: int = ITERATIONS,
    generator: torch.Generator | None = None,
    context: Tensor | None = None,
) -> Restoration:
    r"""Sample the posterior of images x, given observations :math:`y = A(x) + \sigma \epsilon`.

    The prior is the density of a trained model without a flow on its coordinates, and
    :math:`\epsilon \sim N(0, I)`. A first estimate is the best linear one for the contrast of each
    image (:class:`.LinearEstimator`), or, for noise below 0.04, the mode, which Gauss-Newton steps
    find. Four chains of Hamiltonian Monte Carlo start around it, with the covariance of the errors
    of linear estimates: in images if the noise is below 0.04, the operator is affine and the model
    has the covariance of its training data, ``model.gaussian``, otherwise in latents
    (:class:`.Posterior`). A model of vectors works in the same way; x and y are then vectors in the
    units of the model.

    Args:
        model: A model of images.
        y: Observations A(x).
        operator: A differentiable function A of images (batch, channels, height, width) in [0, 1],
            such as those of :mod:`submanifold.inverse.operators`, or an object of
            ``deepinv.physics``.
        noise: Standard deviation :math:`\sigma`, in the units of y; by default that of the noise
            model of a deepinv object.
        dim: Restrict the images to the manifold of this dimension.
        iterations: Iterations of each chain; the first third is discarded.
        generator: Generator on the CPU. Images are restored in batches of 32; the samples of an
            image depend slightly on the others of its batch.
        context: The context (1, ...) of all images, for a conditional model.

    An argument that does not fit the model raises a UserError.
    """
    latents = latents_of(model, dim, context)
    operator, noise = _resolve(operator, noise)
    if iterations < 3:
        raise UserError(f"iterations: expected 3 or more, got {iterations}. Use {ITERATIONS}.")
    weight = next(model.parameters())
    x = latents.decode(weight.new_zeros(1, latents.dim))
    shape = operator(x).shape[1:]
    if y.shape[1:] != shape or not len(y) or y.dtype != weight.dtype:
        sizes = ", ".join(map(str, ["batch", *shape]))
        expected = f"{weight.dtype} of shape ({sizes}), that of operator(x)"
        got = f"{y.dtype} of shape {tuple(y.shape)}"
        raise unexpected("y", expected, got, "Pass observations of this operator")
    bounds = (0.0, 1.0) if len(model.event_shape) == 3 else (-torch.inf, torch.inf)
    has_mode = noise < COARSE_NOISE and has_forward_mode(operator, x)
    is_small = noise < COARSE_NOISE and y[0].numel() <= LARGEST_OBSERVATION
    linear: Ensemble | GaussianPosterior
    if is_small and latents.gaussian is not None and is_affine(operator, x):
        linear = GaussianPosterior(latents.gaussian, operator, noise, generator)
    else:
        linear = Ensemble(latents, operator, noise, weight, generator)

    def encode(x: Tensor) -> Tensor:
        return latents.encode(x.clamp(*bounds)).nan_to_num(0.0, 0.0, 0.0)

    parts = []
    batches = y.to(weight.device).flatten(1).split(BATCH)
    with ProgressBar("restoring", "iterations", iterations * len(batches)) as progress:
        for batch in batches:
            posterior = Posterior(latents, operator, batch, noise, generator)
            linear = linear.scaled(batch)
            z = encode(linear.estimate(batch))
            mode = latents.decode(posterior.mode(z) if has_mode else z).clamp(*bounds)
            deviations = linear.draw(CHAINS // 2 * len(batch))
            starts = mode.repeat(CHAINS, *(1 for _ in mode.shape[1:]))
            starts = starts + torch.cat([deviations, -deviations])
            if isinstance(linear, GaussianPosterior):
                posterior = Posterior(latents, operator, batch, noise, generator, linear)
            else:
                starts = encode(starts)
            samples, acceptance = sample(posterior, starts, CHAINS, iterations, progress.update)
            samples = samples.clamp(*bounds)
            reduction, samples = r_hat(samples), samples.flatten(0, 1)
            parts.append((samples.mean(0), samples.std(0), acceptance, samples, reduction, mode))
    image, std, rates, drawn, reductions, modes = zip(*parts, strict=True)
    r_hats = torch.cat(reductions)
    if count := int((r_hats > CONVERGED).sum()):
        log.warning(
            "the chains of %d of %d images have not converged (R-hat %.3g in the median, "
            "expected at most %g): their standard deviations can be too small. Increase "
            "iterations",
            count,
            len(r_hats),
            r_hats.median(),
            CONVERGED,
        )
    return Restoration(
        torch.cat(image),
        torch.cat(std),
        torch.cat(rates),
        torch.cat(drawn, 1),
        r_hats,
        torch.cat(modes) if has_mode else None,
    )


def coverage(restored: Restoration, x: Tensor, level: float = LEVEL) -> np.ndarray:
    """Share of the pixels of each image x inside the normal interval of a level, (batch,)."""
    half_width = float(scipy.stats.norm.ppf((1 + level) / 2)) * restored.std.cpu()
    return ((restored.image.cpu() - x).abs() <= half_width).flatten(1).double().mean(1).numpy()


def _resolve(operator: Any, noise: Any) -> tuple[Operator, float]:
    """Return an operator and the noise; those of an object of deepinv.physics are its parts."""
    if hasattr(operator, "A") and hasattr(operator, "noise_model"):
        noise = getattr(operator.noise_model, "sigma", None) if noise is None else noise
        operator = operator.A
    if not callable(operator):
        fix = "Use one of submanifold.inverse.operators"
        raise unexpected("operator", "a function of images", type(operator).__name__, fix)
    if noise is None or not 1e-18 < float(noise) < 1e18:  # float32 has their squares
        expected = "a number above 1e-18 and below 1e18"
        raise unexpected("noise", expected, noise, "Use such as 0.01")
    return operator, float(noise)
