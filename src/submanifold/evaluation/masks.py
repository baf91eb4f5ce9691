"""Whether values are missing where they should be: a density of the mask given the other values."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import scipy

Columns: TypeAlias = "Sequence[int] | np.ndarray"

MAX_WEIGHTS = 2**17  # of all columns; wider tables have no density of the mask
MAX_STEPS, DECIMALS = 200, 4
RIDGE = 1.0  # squared weights are added with it to the negative log-likelihood of all rows
LARGEST = 3.0  # standard deviations to which values are clipped


def fit_mask(x: np.ndarray, missing: np.ndarray, columns: Columns) -> np.ndarray:
    r"""Fit whether each column is missing, by a logistic regression on the others.

    .. math:: \log p(m \mid x) = \sum_j \log \sigma(s_j\, (b_j + w_j^T x_{-j} + v_j^T x_{-j}^2)),
              \qquad s_j = 2 m_j - 1

    Missing values of x and of its squares are 0, the mean. Returns the weights and then the
    intercept of each column, (M, 2D + 1); (0, 2D + 1) if there would be too many.

    Args:
        x: Standardized rows (N, D), whose missing values may be any numbers.
        missing: Mask (N, M) of the columns that may have missing values.
        columns: Their numbers (M,).

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(500, 2))
        >>> missing = x[:, :1] > 1  # the second column is missing where the first one is large
        >>> weights = fit_mask(x, missing, [1])
        >>> mask_log_prob(weights, np.array([[-2.0, 0], [2, 0]]), missing[:2] | True, [1]).round(1)
        array([-7.7, -0. ])
    """
    size, own = 2 * x.shape[1] + 1, np.array(columns)
    if missing.shape[1] * size > MAX_WEIGHTS:
        return np.zeros((0, size))
    features, signs = _features(x, missing, columns), 2.0 * missing - 1
    is_used = np.ones((missing.shape[1], size))
    is_used[np.arange(len(own)), own] = is_used[np.arange(len(own)), own + x.shape[1]] = 0

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(is_used.shape) * is_used
        margins = signs * (features @ weights.T)
        slopes = -signs * scipy.special.expit(-margins)
        penalty = weights * np.append(np.full(size - 1, RIDGE), 0)
        value = np.logaddexp(0, -margins).sum() + (penalty * weights).sum() / 2
        return value, ((slopes.T @ features + penalty) * is_used).ravel()

    start = np.zeros(is_used.shape)
    share = missing.mean(0).clip(1e-3, 1 - 1e-3)
    start[:, -1] = scipy.special.logit(share)
    found = scipy.optimize.minimize(
        objective, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": MAX_STEPS}
    )
    return (found.x.reshape(is_used.shape) * is_used).round(DECIMALS)


def mask_log_prob(
    weights: np.ndarray, x: np.ndarray, missing: np.ndarray, columns: Columns
) -> np.ndarray:
    """Compute log p(mask) (N,) in nats with the weights of :func:`fit_mask`."""
    margins = (2.0 * missing - 1) * (_features(x, missing, columns) @ np.asarray(weights).T)
    return -np.logaddexp(0, -margins).sum(1)


def _features(x: np.ndarray, missing: np.ndarray, columns: Columns) -> np.ndarray:
    """Return x (N, D) and its squares, less their means, with 0 for missing values; and ones."""
    values = np.nan_to_num(np.asarray(x, np.float64)).clip(-LARGEST, LARGEST)
    is_known = np.ones(values.shape)
    is_known[:, list(columns)] = ~missing
    squares = (values**2 - 1) * is_known
    return np.concatenate([values * is_known, squares, np.ones((len(x), 1))], axis=1)
