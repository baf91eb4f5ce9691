"""Hamiltonian Monte Carlo in several chains, with a metric that follows the posterior."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from submanifold.inverse.posterior import Posterior

LEAPFROG_STEPS = 16
BURN_IN = 1 / 3  # share of the iterations whose samples are discarded
TARGET_ACCEPTANCE, SHRINKAGE = 0.7, 0.1
FIRST_STEP_SIZE, LARGEST_FIRST_STEP_SIZE, JITTER = 0.01, 0.12, 0.2
ADAPT_EVERY = 3  # iterations between adaptations of the metric


@torch.no_grad()
def sample(
    target: Posterior, x: Tensor, chains: int, iterations: int, progress: Callable[[int], Any]
) -> tuple[Tensor, Tensor]:
    """Draw samples by Hamiltonian Monte Carlo (Neal 2011), with 16 leapfrog steps an iteration.

    The first third of the iterations is the burn-in, in which dual averaging (Hoffman & Gelman
    2014, section 3.2) adapts the step size of each pair of chains to an acceptance rate of 0.7, and
    the metric is adapted.

    The velocities of the second half of the chains are those of the first with the opposite sign.
    If their starts are symmetric about the mean of a Gaussian, so are their samples, whose mean is
    exact.

    The starts x are an even number of copies of a batch, (chains * batch, ...). ``progress`` is
    called with 1 after each iteration. Returns decoded samples after the burn-in, (samples, chains,
    batch, ...), and acceptance rates (batch,).
    """
    half, burn_in = len(x) // 2, math.ceil(BURN_IN * iterations)
    metric = target.metric(x)
    energy, gradient = target.energy(x), target.gradient(x)
    center = math.log(LARGEST_FIRST_STEP_SIZE)
    log_step = torch.full_like(energy, math.log(FIRST_STEP_SIZE))
    averaged, deficit = log_step, torch.zeros_like(energy)
    acceptance, samples = torch.zeros_like(energy), []
    column = (-1, *(1 for _ in x.shape[1:]))
    for iteration in range(iterations):
        size = (log_step if iteration < burn_in else averaged).exp()
        uniform = torch.rand(2, half, generator=target.generator).to(energy).repeat(1, 2)
        size = (size * (1 + JITTER * (2 * uniform[0] - 1))).view(column)
        drawn = metric.draw(half)
        velocity = torch.cat([drawn, -drawn])
        before = energy + metric.precision_product(velocity) / 2
        new, new_gradient = x, gradient
        acceleration = metric.covariance_product(gradient)
        for _ in range(LEAPFROG_STEPS):
            velocity = velocity - size / 2 * acceleration
            new = new + size * velocity
            new_gradient = target.gradient(new)
            acceleration = metric.covariance_product(new_gradient)
            velocity = velocity - size / 2 * acceleration
        new_energy = target.energy(new)
        after = new_energy + metric.precision_product(velocity) / 2
        rate = (before - after).exp().nan_to_num(0.0).clamp_max(1.0)
        accepted = uniform[1] < rate
        x = torch.where(accepted.view(column), new, x)
        gradient = torch.where(accepted.view(column), new_gradient, gradient)
        energy = torch.where(accepted, new_energy, energy)
        if iteration >= burn_in:
            acceptance = acceptance + rate / (iterations - burn_in)
            events = target.decode(x)
            samples.append(events.view(chains, -1, *events.shape[1:]))
        else:
            count = iteration + 1
            # the same for both chains of a pair, so that rounding errors do not grow
            shared = rate.view(2, -1).mean(0).repeat(2)
            deficit = deficit + TARGET_ACCEPTANCE - shared
            log_step = center - math.sqrt(count) / SHRINKAGE * deficit / (count + 10)
            averaged = averaged + count**-0.75 * (log_step - averaged)
            if count % ADAPT_EVERY == 0 and count < burn_in - 1:
                metric = target.metric(x)
        progress(1)
    return torch.stack(samples), acceptance.view(chains, -1).mean(0)


def r_hat(samples: Tensor) -> Tensor:
    r"""Compute the potential scale reduction (Gelman & Rubin 1992) of each event, (batch,).

    It is :math:`\sqrt{(W + B) / W}`, about 1 for chains that have converged: B is the variance
    between the means of the chains, W that within the chains, both averaged over the elements of an
    event. The samples are (samples, chains, batch, ...).
    """
    flat = samples.flatten(3)
    within, between = flat.var(0).mean((0, 2)), flat.mean(0).var(0).mean(1)
    return (1 + between / within).sqrt()
