"""Images that show what a model has learned: projections, neighbors of samples, traversals."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from submanifold.data.batches import Batch, Batches, fixed_batches
from submanifold.data.events import EventsLike
from submanifold.evaluation.baselines import pca_projection
from submanifold.evaluation.reconstruction import SHOWN_DIMS
from submanifold.evaluation.samples import stored
from submanifold.flows.context import Context
from submanifold.models import Hierarchy, Model

COORDINATES, STEPS, DEVIATIONS, OF_CLASS = 8, 7, 3.0, 8
MEASURED = 256  # images that measure the mean and the standard deviation of coordinates
CHUNK = 1024

Arrays = dict[str, np.ndarray]


@torch.no_grad()
def project_all(model: Model, images: EventsLike, pca: np.ndarray) -> Arrays:
    """Project uint8 images (N, ...) onto the manifold, and by PCA if it has enough stored axes."""
    x, context = _batch(model, images)
    projections = {"encoder": model.encoder_projection(x, context)}
    if model.dim < model.event_dim:
        projections["default"] = model.project(x, context=context)
        projections["nearest"] = model.project(x, nearest=True, context=context)
    if (projected := pca_projection(pca, x, model.dim)) is not None:
        projections["pca"] = projected
    return {name: stored(projected) for name, projected in projections.items()}


@torch.no_grad()
def interpolate(model: Model, images: EventsLike, steps: int) -> np.ndarray:
    """Interpolate between the encoder projections of two images on the manifold.

    A conditional model decodes all points given the context of the first image.
    """
    x, context = next(fixed_batches(images, 2, next(model.parameters()).device))
    first, last = model.encode(x, context=context)[0]
    return _decode(model, interpolate_latents(first, last, steps), context)


def interpolate_latents(a: Tensor, b: Tensor, steps: int) -> Tensor:
    r"""Interpolate from a (d,) to b (d,), both included, along the great circle of directions.

    :math:`\|u\|^2` changes linearly, and with it :math:`\log N(u; 0, I)`, but no other density.
    """
    weight = torch.linspace(0, 1, steps, dtype=a.dtype, device=a.device)[:, None]
    angle = torch.arccos((a @ b / (a.norm() * b.norm())).clamp(-1, 1)).clamp(1e-4, np.pi - 1e-4)
    ends = ((1 - weight) * angle).sin() * a / a.norm() + (weight * angle).sin() * b / b.norm()
    squared_norm = (1 - weight) * a.square().sum() + weight * b.square().sum()
    return F.normalize(ends, dim=1) * squared_norm.sqrt()


@torch.no_grad()
def project_by_dim(model: Hierarchy, images: EventsLike, pca: np.ndarray) -> Arrays:
    """Find nearest projections of images onto the nested manifolds of a hierarchy, beside PCA's.

    The ``dims`` are those of :data:`SHOWN_DIMS` at which there are both. Projections are uint8,
    (dims, N, ...).
    """
    x, context = _batch(model, images)
    largest = min(model.max_dim, model.event_dim - 2, len(pca) - 1)
    dims = [dim for dim in SHOWN_DIMS if dim <= largest] or [min(model.dim, largest)]
    views = [model.at_dim(dim) for dim in dims]
    return {
        "dims": np.array(dims),
        "nearest": _stack(view.project(x, nearest=True, context=context) for view in views),
        "pca": _stack(
            projected for dim in dims if (projected := pca_projection(pca, x, dim)) is not None
        ),
    }


@torch.no_grad()
def traverse(model: Model, images: EventsLike) -> np.ndarray:
    """Change the first coordinates of the first image on the manifold, one at a time.

    The coordinates are those of the manifold's stage, ordered by its rotation if it has one,
    without later reparametrizations. They vary from -3 to 3 standard deviations around the mean
    over the first 256 images. The result is (coordinates, 7, ...). A mixture keeps the chart.
    """
    if isinstance(model, Hierarchy):
        model = Hierarchy(model.stages, model.dim)
    x, context = _batch(model, images[:MEASURED])
    u = model.encode(x, context=context)[0]
    coordinates = model.coordinates(u)
    mean, deviation = coordinates.mean(0), coordinates.std(0, correction=0)
    index = torch.arange(min(COORDINATES, coordinates.shape[1]))
    count, steps = len(index), torch.linspace(-DEVIATIONS, DEVIATIONS, STEPS).to(u)
    changed = u[:1].repeat(count * STEPS, 1).view(count, STEPS, -1)
    changed[index, :, index] = mean[index, None] + deviation[index, None] * steps
    decoded = _decode(model, changed.flatten(0, 1), context)
    return decoded.reshape(count, STEPS, *decoded.shape[1:])


def sample_by_class(model: Model, classes: int) -> np.ndarray:
    """Draw samples (classes, 8, ...), with the same coordinates u for all classes."""
    device = next(model.parameters()).device

    def samples(label: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        context = torch.full((OF_CLASS,), label, device=device)
        return model.sample(OF_CLASS, generator=generator, context=context)

    return _stack(map(samples, range(classes)))


def nearest_images(images: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Return the numbers (n,) of the candidates that are nearest to images."""
    flat = images.reshape(len(images), -1).astype(np.float64)
    best, numbers = np.full(len(flat), np.inf), np.zeros(len(flat), int)
    for start in range(0, len(candidates), CHUNK):
        chunk = candidates[start : start + CHUNK].reshape(-1, flat.shape[1]).astype(np.float64)
        distances = np.square(chunk).sum(1) - 2 * flat @ chunk.T  # up to the images' own norms
        closest = distances.argmin(1)
        values = distances[np.arange(len(flat)), closest]
        numbers = np.where(values < best, start + closest, numbers)
        best = np.minimum(values, best)
    return numbers


def pixel_errors(images: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """Compute squared errors (...,) of uint8 images (..., channels, height, width) in [0, 1]."""
    difference = images.astype(np.float32) - originals.astype(np.float32)
    return np.square(difference / 256).mean(axis=(-3, -2, -1))


def _batch(model: Model, images: EventsLike) -> Batch:
    device = next(model.parameters()).device
    return next(iter(Batches(images, len(images), device=device)))


def _decode(model: Model, u: Tensor, context: Context | None) -> np.ndarray:
    """Decode coordinates (n, d), given the context of the first image."""
    if context is not None:
        context = context.rows([0]).repeat(len(u))
    return stored(model.decode(u, context=context))


def _stack(images: Iterable[Tensor]) -> np.ndarray:
    return np.stack([*map(stored, images)])
