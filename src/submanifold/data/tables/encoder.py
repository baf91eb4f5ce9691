"""Rows as standardized vectors: dequantization, noise for missing values, and densities of both."""

import zlib
from collections.abc import Sequence

import numpy as np
import scipy  # submodules load on first use

from submanifold.data.tables.columns import Categorical, Logarithmic, Varying

TAIL = 0.2  #: Part of the outer intervals of categories that becomes an exponential tail.
LOG_2_PI = float(np.log(2 * np.pi))
MAX_LOGARITHM = 300.0  #: Beyond it squares of values are too large for float64.
HASH_STEPS, MAX_HASHED = 2.0**16, 2.0**32  #: Rounding of standardized values before their hash.
SMALLEST_NOISE = 2.0**-54  # 0 would be an infinite number of the normal distribution


class RowEncoder:
    """Encodes the numbers of all columns at once.

    The numbers (N, D), float64, are those of the ``encode`` of the columns: NaN where a value is
    missing, integers of discrete columns.

    Example:
        >>> from submanifold.data.tables.columns import Quantized
        >>> age = Quantized.fit(np.array([20.0, 21, 24]), grid=(1.0, 0), name="age", dtype="int64")
        >>> encoder = RowEncoder([age])
        >>> x, log_weights = encoder.encode(np.array([[0.0], [4.0]]), np.full((2, 1), 0.5))
        >>> encoder.decode(x, np.zeros((2, 1), bool)).tolist()
        [[0.0], [4.0]]
    """

    def __init__(self, columns: Sequence[Varying]) -> None:
        self.offset = np.array([column.offset for column in columns], np.float64)
        self.scale = np.array([column.scale for column in columns], np.float64)
        self.is_discrete = np.array([column.is_discrete for column in columns], bool)
        counts = np.array([column.category_count for column in columns], np.float64)
        self.categorical = np.flatnonzero(np.isfinite(counts))
        self.counts = counts[self.categorical]
        self.steps = np.array(
            [1.0 if isinstance(column, Categorical) else column.step or 1.0 for column in columns]
        )
        logarithmic = {n: c for n, c in enumerate(columns) if isinstance(c, Logarithmic)}
        self.logarithmic = np.array([*logarithmic], int)
        steps = self.steps[self.logarithmic]
        self.starts = np.array([c.origin for c in logarithmic.values()], np.float64) / steps
        self.widths = np.array([c.linear_width for c in logarithmic.values()], np.float64) / steps

    def encode(self, numbers: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        r"""Dequantize and standardize numbers (N, D), with noise in (0, 1) of the same shape.

        Noise is added to integers, and a missing value is the quantile of N(0, 1) at the noise.
        Returns x, float32 (N, D), and log-weights -log q (N,) of the noise given the numbers in
        standard units, but for a constant.
        """
        is_missing, log_weights = np.isnan(numbers), np.zeros(len(numbers))
        z = numbers + noise * self.is_discrete
        if len(self.categorical):
            categories, of_noise = numbers[:, self.categorical], noise[:, self.categorical]
            line = to_line(categories, of_noise, self.counts)
            z[:, self.categorical] = line
            log_weights += np.nan_to_num(tail_log_weight(line, self.counts)).sum(1)
        if self.is_discrete[self.logarithmic].any():
            slopes = self._log_slopes(z) - self._log_slopes(self.middles(numbers))
            log_weights += np.nan_to_num(slopes).sum(1)
        x = self.standardize(z).astype(np.float32)
        # float32 may round to another integer
        moved = self.is_discrete & ~is_missing & (self._round(x) != numbers)
        if moved.any():
            x[moved] = self.standardize(self.middles(numbers))[moved]
        if is_missing.any():
            normal = scipy.special.ndtri(noise[is_missing])
            x[is_missing] = normal
            rows = np.nonzero(is_missing)[0]
            log_weights += np.bincount(rows, (normal**2 + LOG_2_PI) / 2, len(numbers))
        return x, log_weights

    def decode(self, x: np.ndarray, is_missing: np.ndarray) -> np.ndarray:
        """Map vectors x (N, D) to numbers, NaN where values are missing (N, D)."""
        return np.where(is_missing, np.nan, self._round(x))

    def standardize(self, z: np.ndarray) -> np.ndarray:
        """Map dequantized numbers z (N, D) to vectors x, float64 (N, D)."""
        x = z.copy()
        x[:, self.logarithmic] = np.arcsinh(self._ratios(z))
        x -= self.offset
        x /= self.scale
        return x

    def log_dets(self, x: np.ndarray, is_missing: np.ndarray) -> np.ndarray:
        """Return the log-determinants (N,) of the map of dequantized values to vectors x (N, D).

        In the middle of the step of discrete columns; missing values have a determinant of 1.
        """
        log_dets = np.tile(-np.log(self.scale * self.steps), (len(x), 1))
        log_dets[:, self.logarithmic] += self._log_slopes(self.middles(self._round(x)))
        return np.where(is_missing, 0, log_dets).sum(1)

    def middles(self, numbers: np.ndarray) -> np.ndarray:
        """Return the middles of the steps of discrete columns, and the numbers of others."""
        return numbers + 0.5 * self.is_discrete

    def _ratios(self, z: np.ndarray) -> np.ndarray:
        """Return the values of logarithmic columns in units of their linear widths, (N, L)."""
        return (z[:, self.logarithmic] + self.starts) / self.widths

    def _log_slopes(self, z: np.ndarray) -> np.ndarray:
        """Return the logarithms of the derivatives of the logarithms by z, (N, L)."""
        return -np.log(self.widths) - np.log1p(self._ratios(z) ** 2) / 2

    def _round(self, x: np.ndarray) -> np.ndarray:
        numbers = x * self.scale
        numbers += self.offset
        logarithms = numbers[:, self.logarithmic].clip(-MAX_LOGARITHM, MAX_LOGARITHM)
        numbers[:, self.logarithmic] = self.widths * np.sinh(logarithms) - self.starts
        np.floor(numbers, out=numbers, where=self.is_discrete)
        numbers[:, self.categorical] = numbers[:, self.categorical].clip(0, self.counts - 1)
        return numbers

    def noise(self, numbers: np.ndarray, salt: np.ndarray | int, draws: int = 1) -> np.ndarray:
        """Draw noise in (0, 1), (draws, N, D), which the numbers of a row and its salt determine.

        Numbers are rounded in standardized units, so that a copy of a row in other units has the
        same noise.
        """
        standard = self.standardize(numbers)
        fixed = np.rint(
            HASH_STEPS * np.where(self.is_discrete, numbers, standard).clip(-MAX_HASHED, MAX_HASHED)
        )
        rows = np.where(np.isnan(numbers), -(2.0**62), fixed).astype(np.int64)
        return uniform_by_content(rows, salt, draws)


def uniform_by_content(rows: np.ndarray, salt: np.ndarray | int, draws: int = 1) -> np.ndarray:
    """Draw numbers in (0, 1), (draws, N, D), by the content of each row of integers and its salt.

    Example:
        >>> noise = uniform_by_content(np.array([[1, 2], [3, 4], [1, 2]]), salt=7)
        >>> noise.shape, bool((noise[0, 0] == noise[0, 2]).all())
        ((1, 3, 2), True)
    """
    noise = np.empty((len(rows), draws, rows.shape[1]))
    salts = np.broadcast_to(np.asarray(salt, np.uint64), len(rows))
    for row, content, of_row in zip(np.ascontiguousarray(rows), noise, salts, strict=True):
        key = np.array([zlib.crc32(row), of_row], np.uint64)
        np.random.Generator(np.random.Philox(key=key)).random(out=content)
    return noise.transpose(1, 0, 2).clip(SMALLEST_NOISE)


def to_line(categories: np.ndarray, noise: np.ndarray, count: np.ndarray | int) -> np.ndarray:
    r"""Map categories 0, ..., count - 1 and noise in (0, 1) to numbers.

    Category k becomes a number z of :math:`[k, k + 1)`, uniform noise of the dequantization. The
    first and the last interval extend to infinity: their outer :math:`\tau` (:data:`TAIL`) is
    mapped to an exponential tail. With the density q of z, a density p on the line gives

    .. math:: E_q[p(z) / q(z)] = \int_{I_k} p(z)\, dz,

    the probability of the category, and these sum to one (compare the argmax surjections of
    Hoogeboom et al. 2021, which need a coordinate for each category).

    Example:
        >>> to_line(np.array([0, 1, 2]), np.array([0.5, 0.5, 1 - 1e-4]), 3).round(1)
        array([0.5, 1.5, 4.3])
    """
    z = categories + noise
    return z + _beyond(count - z) - _beyond(z)


def tail_log_weight(z: np.ndarray, count: np.ndarray | int) -> np.ndarray:
    """Return minus the log-density of numbers z of :func:`to_line` given their category."""
    left, right = 1 - z / TAIL, 1 - (count - z) / TAIL
    return left.clip(min=0) + right.clip(min=0)


def _beyond(distance: np.ndarray) -> np.ndarray:
    """Return how far a distance from the outer end is moved outwards; 0 outside of the tail."""
    inside = distance.clip(2.0**-40, TAIL)  # rounding may make it 0
    return inside - TAIL * (1 + np.log(inside / TAIL))
