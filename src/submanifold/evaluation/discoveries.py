"""Selection of anomalies among many events, and how many of the selected may be normal."""

import numpy as np
import scipy

SIMULATIONS = 2000
CONFIDENCE = 0.95
MAX_BLOCKING = 20  # anomalous calibration events that a person can look at
MAX_LEVELS = 2000  # p-values, evenly spaced, at which numbers of normal events are bounded


def select(p_values: np.ndarray, fdr: float) -> np.ndarray:
    """Select events (N,) of which at most a fraction ``fdr`` is normal on average: booleans (N,).

    The Benjamini-Hochberg procedure (1995), which is valid for conformal p-values that share a
    calibration (Bates et al. 2023).
    """
    return scipy.stats.false_discovery_control(p_values) <= fdr


def blocking(p_values: np.ndarray, fdr: float, calibrated: int) -> int:
    """Count the most anomalous calibration events without which :func:`select` selects events.

    It is the smallest such number up to 20, and 0 if there is none.

    Example:
        >>> p_values = np.array([4 / 1000] * 10 + [0.5] * 490)  # three of 999 are as anomalous
        >>> blocking(p_values, fdr=0.1, calibrated=999)
        3
    """
    ranks = p_values * (calibrated + 1)
    for count in range(1, min(MAX_BLOCKING + 1, calibrated)):
        if select((ranks - count).clip(1) / (calibrated + 1 - count), fdr).any():
            return count
    return 0


def false_discovery_bound(p_values: np.ndarray, fdr: float, calibrated: int) -> int:
    r"""Bound, with a confidence of 95%, how many of the events of :func:`select` are normal.

    If all m events were normal, as those that are ``calibrated``, the shares of them between two
    neighboring p-values would be Dirichlet(1, ..., 1), and their numbers multinomial (Vovk 2012).
    Simulations of these numbers give b(t), which the number of normal events with a p-value of at
    most t exceeds for some t up to ``fdr`` in at most 5% of cases: the global envelope of
    Myllymäki et al. (2017), as Gazin, Blanchard & Roquain (2024) use it. So the bound is

    .. math:: \min_t\; b(t) + |\{i \text{ selected}: p_i > t\}|

    Example:
        >>> p_values = np.array([0.001] * 40 + [0.5] * 60)
        >>> false_discovery_bound(p_values, fdr=0.1, calibrated=999)
        2
    """
    chosen = p_values[select(p_values, fdr)]
    levels = np.arange(1, int(fdr * (calibrated + 1)) + 1)
    if not len(chosen) or not len(levels):
        return len(chosen)
    levels = np.unique(np.linspace(1, levels[-1], min(len(levels), MAX_LEVELS)).astype(int))
    rng = np.random.default_rng(0)
    gaps = np.diff(levels, prepend=0, append=calibrated + 1)
    shares = rng.gamma(gaps, size=(SIMULATIONS, len(gaps)))  # normalized: Dirichlet(gaps)
    numbers = rng.multinomial(len(p_values), shares / shares.sum(1, keepdims=True))
    counts = numbers[:, :-1].cumsum(1)
    # share of the simulations that are at least as large at a level; the smallest over levels
    larger = 1 - (scipy.stats.rankdata(counts, method="min", axis=0) - 1) / SIMULATIONS
    least = np.quantile(larger.min(1), 1 - CONFIDENCE, method="lower")
    bounds = np.where(larger >= least, counts, 0).max(0)
    above = [(chosen > level / (calibrated + 1) * (1 + 1e-9)).sum() for level in levels]
    return int(min((bounds + above).min(), len(chosen)))
