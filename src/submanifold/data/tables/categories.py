r"""Categories as intervals that cover the real line, so that their probabilities sum to one.

Category k of K becomes a number of :math:`[k, k + 1)`, uniform noise of the dequantization. The
first and the last interval extend to infinity: their outer :math:`\tau` (:data:`TAIL`) is mapped
to an exponential tail. With the density q of this number, a density p on the line gives

.. math:: E_q[p(z) / q(z)] = \int_{I_k} p(z)\, dz,

the probability of the category, and these sum to one (compare the argmax surjections of Hoogeboom
et al. 2021, which need a coordinate for each category).
"""

import numpy as np

TAIL = 0.2
"""Part of the outer intervals that becomes an exponential tail; the others are uniform."""


def to_line(category: np.ndarray, noise: np.ndarray, count: int) -> np.ndarray:
    """Map categories 0, ..., count - 1 and noise in (0, 1) to numbers.

    Example:
        >>> to_line(np.array([0, 1, 2]), np.array([0.5, 0.5, 1 - 1e-4]), 3).round(1)
        array([0.5, 1.5, 4.3])
    """
    z = category + noise
    return z + _beyond(count - z) - _beyond(z)


def from_line(z: np.ndarray, count: int) -> np.ndarray:
    """Return the categories whose intervals contain numbers; inverts :func:`to_line`."""
    return np.floor(z).clip(0, count - 1)


def log_slope(z: np.ndarray, count: int) -> np.ndarray:
    """Compute the log-derivative of :func:`to_line` by the noise, -log q(z), from its result."""
    return (1 - z / TAIL).clip(min=0) + (1 - (count - z) / TAIL).clip(min=0)


def _beyond(distance: np.ndarray) -> np.ndarray:
    """Return how far a distance from the outer end is moved outwards; 0 outside of the tail."""
    inside = distance.clip(2.0**-40, TAIL)  # rounding may make it 0
    return inside - TAIL * (1 + np.log(inside / TAIL))
