"""The integral of a density, and a log-determinant, by slow and independent methods."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import scipy  # submodules load on first use; scipy.stats takes half a second
import torch
from torch import Tensor

COMPONENTS, FREEDOM = 16, 5  # of the proposal: normals, and degrees of freedom of the Student-t
BATCH = 1000


def integrate(log_prob: Callable[[Tensor], Tensor], samples: Tensor) -> tuple[float, float]:
    """Estimate the integral of a density p, and its standard error, by bridge sampling.

    ``log_prob`` maps events (n, ...) to nats (n,). Half of the ``samples`` of p, (2n, ...), fit a
    proposal, half of which is a mixture of normals, and half a wider Student-t. n draws of it are
    compared with the other half (Bennett 1976; Meng & Wong 1996, section 3).
    """
    from sklearn.mixture import GaussianMixture

    rows = samples.flatten(1).double().cpu().numpy()
    center, scale = rows.mean(0), rows.std(0)
    fitted, drawn = np.array_split((rows - center) / scale, 2)
    n, dim = drawn.shape
    mixture = GaussianMixture(COMPONENTS, tol=1e-2, max_iter=300, random_state=0).fit(fitted)
    shape = 2 * np.cov(fitted.T).reshape(dim, dim) + 1e-6 * np.eye(dim)
    wide = scipy.stats.multivariate_t(np.zeros(dim), shape, FREEDOM, seed=0)
    proposed = mixture.sample(n // 2)[0], wide.rvs(n - n // 2).reshape(-1, dim)

    def log_ratio(y: np.ndarray) -> np.ndarray:
        log_q = np.logaddexp(mixture.score_samples(y), wide.logpdf(y)) - math.log(2)
        events = torch.from_numpy(center + scale * y).to(samples).view(-1, *samples.shape[1:])
        log_p = torch.cat([*map(log_prob, events.split(BATCH))]).double().cpu().numpy()
        return np.nan_to_num(log_p + np.log(scale).sum() - log_q, nan=-np.inf)

    outside, inside, log_r = log_ratio(np.concatenate(proposed)), log_ratio(drawn), 0.0
    for _ in range(1000):
        parts = scipy.special.log_expit(outside - log_r), scipy.special.log_expit(log_r - inside)
        means = [scipy.special.logsumexp(part) - math.log(n) for part in parts]
        log_r += means[0] - means[1]
    terms = [np.exp(part - mean) for part, mean in zip(parts, means, strict=True)]
    value = float(np.exp(log_r))
    return value, value * math.sqrt(sum(term.var() / n for term in terms))


@torch.enable_grad()
def dense_log_det(forward: Callable[[Tensor], Sequence[Tensor]], x: Tensor) -> Tensor:
    """Compute log|det J| of the first result at x, (batch, ...), by autograd alone: (batch,)."""

    def of(event: Tensor) -> Tensor:
        rows = torch.autograd.functional.jacobian(lambda e: forward(e[None])[0].flatten(), event)
        return torch.linalg.slogdet(rows.flatten(1).detach())[1]

    return torch.stack([*map(of, x)])
