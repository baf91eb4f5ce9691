"""Images that show what a model has learned: projections, neighbors of samples, traversals."""

from collections.abc import Iterable
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from submanifold.data.batches import Batches, context_tensor
from submanifold.evaluation.baselines import pca_projection
from submanifold.evaluation.samples import stored
from submanifold.flows import conditioning
from submanifold.models import Hierarchy, Model, Slice

NEAREST_DIMS = 4
COORDINATES, STEPS, DEVIATIONS, OF_CLASS = 8, 7, 3.0, 8
MEASURED = 256
"""Images that measure the mean and the standard deviation of coordinates."""
CHUNK = 1024

Arrays = dict[str, np.ndarray]


@torch.no_grad()
def project_all(model: Model, images: np.ndarray, pca: np.ndarray) -> Arrays:
    """Project images onto the manifold, by encoder, default and nearest projection, and by PCA.

    Args:
        model: The model.
        images: uint8 (N, channels, height, width).
        pca: The result of :func:`~submanifold.evaluation.baselines.stored_axes`.

    Returns:
        uint8 arrays like the images: ``encoder``; ``default`` and ``nearest``, if the dimension is
        smaller than
        that of the images; and ``pca`` with as many axes, if they are stored.
    """
    x = _batch(model, images)
    with _context(model, images):
        found = {"encoder": stored(model.encoder_projection(x))}
        if model.dim < model.event_dim:
            found["default"] = stored(model.project(x))
            found["nearest"] = stored(model.project(x, exact=True))
    if (projected := pca_projection(pca, x, model.dim)) is not None:
        found["pca"] = stored(projected)
    return found


@torch.no_grad()
def project_by_dim(model: Hierarchy, images: np.ndarray, pca: np.ndarray) -> Arrays:
    """Project images onto the nested manifolds of a hierarchy at d = 1, 2, 4, ...

    Args:
        model: The model.
        images: uint8 (N, channels, height, width).
        pca: See :func:`project_all`.

    Returns:
        ``dims``: the powers of two, the model's and the largest dimension. ``encoder``: the
        projections, uint8 (dims, N, ...), and ``default``. ``nearest`` at ``nearest_dims``, and
        ``pca`` at ``pca_dims``, which are some of the dimensions.
    """
    x, largest = _batch(model, images), model.max_dim
    dims = sorted({2**k for k in range(largest.bit_length())} | {model.dim, largest})
    smaller = [dim for dim in dims if dim < model.event_dim]
    every = -(-len(smaller) // NEAREST_DIMS)
    nearest_dims = sorted({*smaller[::-every], model.dim} & {*smaller})
    by_pca = {dim: pca_projection(pca, x, dim) for dim in dims}
    known = {dim: projected for dim, projected in by_pca.items() if projected is not None}
    with _context(model, images):
        nearest = _stack(model.at_dim(dim).project(x, exact=True) for dim in nearest_dims)
        encoder = _stack(model.at_dim(dim).encoder_projection(x) for dim in dims)
        default = _stack(model.at_dim(dim).project(x) for dim in dims)
    return {
        "dims": np.array(dims),
        "encoder": encoder,
        "default": default,
        "nearest_dims": np.array(nearest_dims, int),
        "nearest": nearest,
        "pca_dims": np.array([*known]),
        "pca": _stack(known.values()),
    }


@torch.no_grad()
def traverse(model: Model, images: np.ndarray) -> np.ndarray:
    """Change the first coordinates of an image on the manifold, one at a time.

    The coordinates are those of the manifold's stage, ordered by its rotation if it has one,
    without later reparametrizations. They vary from -3 to 3 standard deviations around the mean
    over the first 256 images.

    Args:
        model: The model; a mixture keeps the chart of the image.
        images: uint8 (N, channels, height, width); the first one is changed.

    Returns:
        uint8 (coordinates, 7, channels, height, width).
    """
    if isinstance(model, Hierarchy) and model.manifold_stage < len(model.stages):
        model = Slice(model, model.dim)
    with _context(model, images[:MEASURED]):
        u = model.encode(_batch(model, images[:MEASURED]))[0]
    coordinates = model.coordinates(u)
    mean, deviation = coordinates.mean(0), coordinates.std(0, correction=0)
    count = min(COORDINATES, coordinates.shape[1])
    changed = u[:1].repeat(count * STEPS, 1).view(count, STEPS, -1)
    steps = torch.linspace(-DEVIATIONS, DEVIATIONS, STEPS).to(u)
    for index in range(count):
        changed[index, :, index] = mean[index] + deviation[index] * steps
    with _context(model, images[:1]):
        decoded = stored(model.decode(changed.flatten(0, 1)))
    return decoded.reshape(count, STEPS, *decoded.shape[1:])


def sample_by_class(model: Model, classes: int) -> np.ndarray:
    """Draw samples of each class, with the same coordinates u for all classes.

    Returns:
        uint8 (classes, 8, channels, height, width).
    """
    device = next(model.parameters()).device
    drawn = []
    for label in range(classes):
        generator, context = torch.Generator().manual_seed(0), torch.tensor([label], device=device)
        drawn.append(stored(model.sample(OF_CLASS, generator=generator, context=context)))
    return np.stack(drawn)


def nearest_images(images: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Find the candidate with the smallest squared pixel distance from each image.

    Args:
        images: uint8 (n, ...).
        candidates: uint8 (N, ...), read in chunks.

    Returns:
        The numbers (n,) of the candidates.
    """
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
    """Compute mean squared errors (...,) of uint8 images (..., channels, height, width).

    Pixels are in [0, 1].
    """
    difference = images.astype(np.float32) - originals.astype(np.float32)
    return np.square(difference / 256).mean(axis=(-3, -2, -1))


def _context(model: Model, images: np.ndarray) -> AbstractContextManager[None]:
    """Condition the model on the context of the images, if they have one."""
    return conditioning(model, context_tensor(images, next(model.parameters()).device))


def _batch(model: Model, images: np.ndarray) -> Tensor:
    device = next(model.parameters()).device
    return next(iter(Batches(images, len(images), device=device)))


def _stack(projections: Iterable[Tensor]) -> np.ndarray:
    return np.stack([stored(each) for each in projections])
