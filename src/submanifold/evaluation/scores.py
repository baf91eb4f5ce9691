"""How strange an image is to a model: scores, and their tail probabilities under normal data."""

import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from submanifold.common import distributed
from submanifold.common.errors import UserError
from submanifold.common.progress import track
from submanifold.data.batches import Batches
from submanifold.geometry.linearization import jacobian
from submanifold.models import Model
from submanifold.models.model import NEAREST_STEPS, bits_per_dim
from submanifold.models.stage import standard_normal_log_prob

SCORES = {
    "density": "-log p(x), nats",
    "on_manifold": "-log N(u; 0, I), nats",
    "off_manifold": "half the squared norm of v, nats",
    "encoder_distance": "mean squared error of the encoder's projection, pixels from 0 to 1",
    "nearest_distance": "mean squared error of the nearest point, pixels from 0 to 1",
    "complexity": "-log2 p(x) less the bits of the image as a PNG",
    "manifold_density": "-log density on the manifold of the leading coordinates, nats",
    "dimension": "minus the local dimension, by the spectrum of J^T J",
    "typicality": "distance of log p(x) from its median over normal images, nats",
}
"""All of which are larger for what is stranger; typicality needs a calibration."""
QUICK = ("density", "on_manifold", "off_manifold", "encoder_distance", "complexity")
COMBINATION = "combination"
MOST_DEVIATIONS = 8.0
RIDGE = 0.03
TINY, LARGEST = 1e-12, 1e30
GREY_LEVEL = 1 / 256
LEADING = 64
BATCH = 64
LEVELS = np.concatenate([[0.0], 1 / (1 + np.exp(np.linspace(9, -9, 361))), [1.0]])
FOLDS = 10
LEAST = 20
"""Images of a calibration at least: each fit to nine of ten folds then has 18, more than two for
each of the eight scores that are combined at most, and the smallest p-value, 1/21, is below 5%."""


def score_batch(
    model: Model, x: Tensor, images: np.ndarray, names: Iterable[str]
) -> dict[str, Tensor]:
    """Score a batch.

    Args:
        model: The model, on x's device.
        x: The images, dequantised, (batch, channels, height, width) in [-0.5, 0.5).
        images: The same as bytes, uint8.
        names: Of :data:`SCORES`, without ``typicality``.

    Returns:
        Float64 (batch,) by name, without ``density`` and ``complexity`` where the model has no
        density on all of space.
    """
    names = set(names)
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        u, v, log_prob = model(x)
        if model.has_density:
            found["density"] = -log_prob
        found["on_manifold"] = -standard_normal_log_prob(model.coordinates(u))
        found["off_manifold"] = v.square().sum(1) / 2
        if "encoder_distance" in names:
            found["encoder_distance"] = _error(x, model.decode(u))
    if "nearest_distance" in names:
        found["nearest_distance"] = _error(x, model.project(x, steps=NEAREST_STEPS))
    if "complexity" in names and model.has_density:
        bits = model.event_dim * bits_per_dim(log_prob.double(), model.event_dim, 8)
        found["complexity"] = bits - torch.tensor(png_bits(images), device=bits.device)
    if names & {"manifold_density", "dimension"}:
        eigenvalues = leading_spectrum(model, u)
        volume = eigenvalues.clamp_min(1e-12).log().sum(1) / 2
        leading = model.coordinates(u)[:, : eigenvalues.shape[1]]
        log_prob = standard_normal_log_prob(leading) + model.overlap(u)
        found["manifold_density"] = volume - log_prob
        found["dimension"] = -local_dimension(eigenvalues, model.event_dim)
    return {name: found[name].double().detach() for name in SCORES if name in names & found.keys()}


def _error(x: Tensor, projected: Tensor) -> Tensor:
    return (x - projected).square().flatten(1).mean(1)


def leading_spectrum(model: Model, u: Tensor, most: int = LEADING) -> Tensor:
    """Eigenvalues of J^T J at u, of the first coordinates alone, (batch, min(d, most)), ascending.

    J is the decoder's derivative by :meth:`Model.coordinates`; those of a rotated model are in the
    order of what they contribute, so that the first are a manifold of their own. Behind a flow on
    the code they are only roughly in that order (:meth:`Hierarchy.at_dim`).
    """
    count = min(model.coordinates(u).shape[1], most)
    axes = torch.eye(count, u.shape[1], device=u.device).expand(len(u), -1, -1)
    with torch.no_grad():
        columns = jacobian(model.decode, u, axes, batch_size=len(u)).double()
    return torch.linalg.eigvalsh(columns.mT @ columns).clamp_min(0)


def local_dimension(eigenvalues: Tensor, event_dim: int) -> Tensor:
    r"""Count the directions in which an image moves visibly, softly.

    .. math:: \sum_i \frac{\lambda_i}{\lambda_i + D \tau^2}

    over eigenvalues (batch, d) of J^T J; tau is a grey level, so that half a direction counts which
    changes the image by one grey level in the root mean square. To (batch,).
    """
    return (eigenvalues / (eigenvalues + event_dim * GREY_LEVEL**2)).sum(1)


def png_bits(images: np.ndarray) -> np.ndarray:
    """Bits of uint8 images (N, channels, height, width) as PNGs, (N,): Serrà et al. 2020's L(x)."""
    sizes = []
    for image in images:
        buffer = io.BytesIO()
        pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        Image.fromarray(pixels).save(buffer, "png", optimize=True)
        sizes.append(8 * buffer.tell())
    return np.array(sizes, np.float64)


def score(
    model: Model, images: np.ndarray, names: Collection[str] = QUICK, batch_size: int = BATCH
) -> dict[str, np.ndarray]:
    """Score uint8 images (N, channels, height, width), with one dequantisation of each.

    Returns:
        Float64 (N,) by name, as :func:`score_batch`.
    """
    batches = Batches(images, batch_size, device=next(model.parameters()).device)
    found, start = [], 0
    known: list[str] = []
    for x in track(batches, "scoring", len(images)):

        def scores(rows: Tensor, x: Tensor = x, start: int = start) -> Tensor:
            nonlocal known
            by_name = score_batch(model, x[rows], images[start + rows.cpu().numpy()], names)
            known = list(by_name)
            return torch.stack(list(by_name.values()), 1)

        found.append(distributed.by_rows(scores, torch.arange(len(x), device=x.device)))
        start += len(x)
    return dict(zip(known, torch.cat(found).cpu().numpy().T, strict=True))


def calibrate(
    model: Model, images: np.ndarray, device: torch.device, groups: np.ndarray | None = None
) -> dict[str, Any]:
    """Fit a :class:`Calibration` to the quick scores of normal uint8 images (N, ...).

    Args:
        model: The model, which is moved to the device.
        images: Images of the training data's kind that were not trained on.
        device: Where they are scored.
        groups: As of :meth:`Calibration.fit`.

    Returns:
        The calibration, JSON-able; where the images do not suffice the reason alone, as ``why``.
    """
    scores = score(model.to(device), images)
    try:
        return Calibration.fit(scores, QUICK, groups).to_dict()
    except UserError as error:
        return {"why": str(error)}


@dataclass(frozen=True)
class Calibration:
    r"""The scores of normal images, and the p-values of other scores among them.

    It is made of images of the training data's kind that were not trained on, and of nothing else.
    A score's p-value is the share of the normal images, the new one among them, that score at least
    as high. Scores are combined by their joint distribution, that of
    :math:`z_i = \Phi^{-1}(1 - p_i)` taken for normal:

    .. math:: (z - \bar z)^T C^{-1} (z - \bar z)

    with mean and covariance over the same images. A score that is too small for the others is
    anomalous, too (compare the density of states of Morningstar et al. 2021). Beyond the images'
    range z goes on by standard deviations, to 8 at most.

    An image looks more usual by what was fitted to it than a new image does. The combination and
    the typicality of the normal images are therefore cross-fitted: those of one fold of ten use
    what was fitted to the other nine, and a new image is compared with the pooled values of all
    folds (cross-conformal prediction: Vovk 2015), so that at most about a share alpha of normal
    images has a p-value of alpha or less.

    Images may come in groups, such as the patches of one cell of a photograph. A group is in one
    fold, all groups have one weight, and p-values count groups: they are those of an image of a new
    group, and valid for it (hierarchical conformal prediction: Lee, Barber & Willett 2023).

    Attributes:
        count: Images.
        groups: Groups of images; where there are none, every image is one.
        median: Of log p(x), nats; None where there is no density.
        combined: The scores that are combined.
        quantiles: By score, and of the combination, at :data:`LEVELS`.
        mean: Of z, (scores,).
        precision: The inverse of C, (scores, scores).
    """

    count: int
    groups: int
    median: float | None
    combined: tuple[str, ...]
    quantiles: Mapping[str, np.ndarray]
    mean: np.ndarray
    precision: np.ndarray

    @classmethod
    def fit(
        cls,
        scores: Mapping[str, np.ndarray],
        combined: Sequence[str],
        groups: np.ndarray | None = None,
    ) -> "Calibration":
        """Fit to scores of normal images, each (N,).

        Args:
            scores: The scores by name.
            combined: Those to combine, where they are among the scores.
            groups: The group of each image, (N,) integers; by default every image is its own.

        Raises:
            UserError: There are fewer than :data:`LEAST` images, or nearly all are of one group.
        """
        combined = tuple(name for name in combined if name in scores)
        rows = np.arange(len(scores[combined[0]])) if groups is None else groups
        _, group, sizes = np.unique(rows, return_inverse=True, return_counts=True)
        fold = np.random.default_rng(0).permutation(len(sizes))[group] % FOLDS
        folds = [fold == number for number in range(min(FOLDS, len(sizes)))]
        known = cls(len(rows), len(sizes), None, combined, {}, np.zeros(0), np.eye(0))
        if min((~each).sum() for each in folds) < LEAST * (1 - 1 / FOLDS):
            raise UserError(
                f"Validation images for a calibration: expected at least {LEAST}, of which nine "
                f"tenths are outside any one group, got {known.basis}. Give more, such as by "
                "data.counts.valid or with a larger folder."
            )
        weights = 1 / sizes[group]
        held_out: dict[str, np.ndarray] = {}
        for each in folds:
            kept, left = (
                {name: values[own] for name, values in scores.items()} for own in (~each, each)
            )
            for name, values in known._fitted(kept, weights[~each]).complete(left).items():
                held_out.setdefault(name, np.zeros(len(rows)))[each] = values
        known = known._fitted(scores, weights)
        return replace(known, quantiles=_quantiles(held_out, weights))

    def _fitted(self, scores: Mapping[str, np.ndarray], weights: np.ndarray) -> "Calibration":
        """What :meth:`complete` needs, fitted to scores (N,) of images with weights (N,)."""
        count, size = len(weights), len(self.combined)
        median = -float(np.median(scores["density"])) if "density" in scores else None
        known = replace(self, count=count, median=median, quantiles=_quantiles(scores, weights))
        z = known._normal_scores(scores)
        covariance = np.cov(z.T, aweights=weights).reshape(size, size) + RIDGE * np.eye(size)
        mean = np.average(z, axis=0, weights=weights)
        return replace(known, mean=mean, precision=np.linalg.inv(covariance))

    @property
    def basis(self) -> str:
        """What p-values are based on, as text."""
        grouped = "" if self.groups == self.count else f" in {self.groups:,} groups"
        return f"{self.count:,} images{grouped}"

    @property
    def least_tail(self) -> float:
        """The smallest p-value that there can be."""
        return 1 / (self.groups + 1)

    def complete(self, scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Add the ``combination`` and, where there is a ``density``, its ``typicality``."""
        scores = self._with_typicality(scores)
        return {**scores, COMBINATION: self._joint(scores)}

    def tail(self, name: str, values: np.ndarray) -> np.ndarray:
        """p-value of each value, (N,) in [1/(groups + 1), 1]."""
        known = self.quantiles[name]
        # of the negatives, as an equal normal score counts among those that are as large
        above = np.interp(-_finite(values), -known[::-1], 1 - LEVELS[::-1], left=0.0, right=1.0)
        return (1 + self.groups * above) / (self.groups + 1)

    def _with_typicality(self, scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.median is None:
            return dict(scores)
        return {**scores, "typicality": np.abs(scores["density"] + self.median)}

    def _normal_scores(self, scores: Mapping[str, np.ndarray]) -> np.ndarray:
        half = 0.5 / self.count
        levels = torch.special.ndtri(torch.from_numpy(LEVELS.clip(half, 1 - half))).numpy()
        found = []
        for name in self.combined:
            known, values = self.quantiles[name], _finite(scores[name])
            low, high = np.interp([0.159, 0.841], LEVELS, known)
            beyond = values - values.clip(known[0], known[-1])
            z = np.interp(values, known, levels) + beyond / max((high - low) / 2, TINY)
            found.append(z.clip(-MOST_DEVIATIONS, MOST_DEVIATIONS))
        return np.stack(found, 1)

    def _joint(self, scores: Mapping[str, np.ndarray]) -> np.ndarray:
        z = self._normal_scores(scores) - self.mean
        return np.einsum("ni,ij,nj->n", z, self.precision, z)

    def to_dict(self) -> dict[str, Any]:
        """Make it JSON-able, to five digits."""
        quantiles = {name: _digits(values) for name, values in self.quantiles.items()}
        return {
            "count": self.count, "groups": self.groups, "median": self.median,
            "combined": list(self.combined), "quantiles": quantiles, "mean": _digits(self.mean),
            "precision": [_digits(row) for row in self.precision],
        }  # fmt: skip

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> "Calibration":
        """Make it of what :meth:`to_dict` returned."""
        quantiles = {name: np.array(values) for name, values in found["quantiles"].items()}
        return cls(
            found["count"], found["groups"], found["median"], tuple(found["combined"]), quantiles,
            np.array(found["mean"]), np.array(found["precision"]),
        )  # fmt: skip


def _quantiles(scores: Mapping[str, np.ndarray], weights: np.ndarray) -> dict[str, np.ndarray]:
    """Weighted quantiles of scores at :data:`LEVELS`; with equal weights those of NumPy."""
    found = {}
    for name, values in scores.items():
        order = np.argsort(values)
        middles = np.cumsum(weights[order]) - weights[order] / 2
        levels = (middles - middles[0]) / (middles[-1] - middles[0])
        found[name] = np.interp(LEVELS, levels, _finite(values[order]))
    return found


def _finite(values: np.ndarray) -> np.ndarray:
    """What overflows is as large as can be."""
    return np.nan_to_num(values, nan=LARGEST, posinf=LARGEST).clip(-LARGEST, LARGEST)


def _digits(values: np.ndarray) -> list[float]:
    return [float(f"{value:.5g}") for value in values]
