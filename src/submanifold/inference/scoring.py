"""Scores of one's own pictures, with probabilities under the training data."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from submanifold.common.errors import UserError
from submanifold.common.processes import check_memory
from submanifold.common.progress import ProgressBar, track
from submanifold.data.batches import Batches
from submanifold.evaluation.likelihood import to_bits_per_dim
from submanifold.evaluation.samples import stored
from submanifold.evaluation.scores import BATCH, COMBINATION, QUICK, Calibration, score
from submanifold.models import Model
from submanifold.models.model import NEAREST_STEPS

HOTTEST = 10.0


def calibration_of(model: Model) -> Calibration:
    """The calibration that a model carries.

    Raises:
        UserError: It carries none, or one of an earlier version.
    """
    if "groups" not in model.calibration:
        why = model.calibration.get("why") or (
            "Its file was written by an earlier version, or by a phase. Run its experiment again: "
            "the trainings are found, and hierarchy.safetensors is written with one."
        )
        raise UserError(f"The model carries no calibration, and its scores no p-values. {why}")
    return Calibration.from_dict(model.calibration)


def check_calibration(model: Model, alpha: float | None) -> None:
    """Refuse what cannot be answered before any picture is read.

    Args:
        model: The model.
        alpha: The p-value up to which a picture is an ood, if there are to be any.

    Raises:
        UserError: The model carries no calibration, or one without such small p-values.
    """
    calibration = calibration_of(model)
    least = calibration.least_tail
    if alpha is not None and alpha < least:
        raise UserError(
            f"--alpha: expected at least 1/{calibration.groups + 1:,} ({least:.3%}), the "
            f"smallest p-value of a calibration on {calibration.basis}, got {alpha:.3%}. Take a "
            "larger one, or train with more validation images (data.counts.valid)."
        )


def check_images(model: Model, images: np.ndarray) -> None:
    """Check that images have the type and the shape of those that a model was trained on.

    Raises:
        UserError: If they have not, if there are none, or if it was trained on points.
    """
    shape = tuple(model.event_shape)
    if len(shape) != 3:
        raise UserError(
            f"model: expected one of images, got one of points of shape {shape}. Of such a model "
            "samples can be drawn."
        )
    if images.dtype != np.uint8 or images.shape[1:] != shape or not len(images):
        raise UserError(
            f"images: expected uint8 of shape (N, {', '.join(map(str, shape))}) with N at least 1, "
            f"got {images.dtype} of shape {images.shape}. submanifold.inference.Pictures makes "
            "them of files."
        )


def check_sampling(count: int, temperature: float, seed: int) -> None:
    """Check what samples are asked for.

    Raises:
        UserError: If one of the values is not allowed.
    """
    if count < 1:
        raise UserError(f"count: expected 1 or more, got {count}.")
    if not 0 <= temperature <= HOTTEST:  # not a number is refused too
        raise UserError(f"temperature: expected 0 to {HOTTEST:g}, got {temperature}.")
    if not -(2**63) <= seed < 2**63:
        raise UserError(f"seed: expected an integer from -2^63 to 2^63 - 1, got {seed}.")


def score_pictures(
    model: Model, images: np.ndarray, nearest: bool = False, batch_size: int = BATCH
) -> pd.DataFrame:
    """Score uint8 images (N, channels, height, width) that are made as those trained on.

    Returns:
        A row for each image: where the model has a density on all of space, ``log_prob`` (nats),
        ``bits_per_dim``, ``log_prob_off_manifold`` (nats, of v under N(0, I)) and ``complexity``
        (bits); ``log_prob_on_manifold`` (nats, of u), ``encoder_mse`` and with `nearest`
        ``nearest_mse`` (on [0, 1]), and ``p_value``: that an image of the training data's kind
        is as strange as this one.

    Raises:
        UserError: The model carries no calibration, or the images do not fit it.
    """
    check_images(model, images)
    calibration = calibration_of(model)
    names = (*QUICK, "nearest_distance") if nearest else QUICK
    scores = calibration.complete(score(model, images, names, batch_size))
    constant = (model.event_dim - model.dim) / 2 * np.log(2 * np.pi)
    of_space = {}
    if model.has_density:
        of_space = {
            "log_prob": -scores["density"],
            "bits_per_dim": to_bits_per_dim(-scores["density"], images),
            "log_prob_off_manifold": -scores["off_manifold"] - constant,
            "complexity": scores["complexity"],
        }
    columns = of_space | {
        "log_prob_on_manifold": -scores["on_manifold"],
        "encoder_mse": scores["encoder_distance"],
        "p_value": calibration.tail(COMBINATION, scores[COMBINATION]),
        "strangeness": scores[COMBINATION],
    }
    if nearest:
        columns["nearest_mse"] = scores["nearest_distance"]
    return pd.DataFrame(columns)


def scores_table(names: list[str], scores: pd.DataFrame, alpha: float | None) -> pd.DataFrame:
    """Put names first, and say which are ood at a probability, if one is given."""
    table = scores.drop(columns="strangeness")
    table.insert(0, "picture", names)
    if alpha is not None:
        table["ood"] = table["p_value"] <= alpha
    return table


def encode_pictures(
    model: Model, images: np.ndarray, nearest: bool = False, batch_size: int = BATCH
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of uint8 images on the manifold, u (N, d), and off it, v (N, D - d).

    Raises:
        UserError: The images do not fit the model.
    """
    check_images(model, images)
    with torch.no_grad():
        both = [model.encode(x, nearest) for x in _batches(model, images, batch_size, "encoding")]
    u, v = (torch.cat(each).cpu().numpy() for each in zip(*both, strict=True))
    return u, v


def project_pictures(
    model: Model, images: np.ndarray, nearest: bool = False, batch_size: int = BATCH
) -> tuple[np.ndarray, np.ndarray]:
    """Projections of uint8 images (N, ...) as bytes, and their squared errors (N,) on [0, 1].

    Raises:
        UserError: The images do not fit the model.
    """
    check_images(model, images)
    steps, projections, errors = NEAREST_STEPS if nearest else 0, [], []
    with torch.no_grad():
        for x in _batches(model, images, batch_size, "projecting"):
            projected = model.project(x, steps)
            projections.append(stored(projected))
            errors.append((x - projected).square().flatten(1).mean(1))
    return np.concatenate(projections), torch.cat(errors).cpu().numpy()


def sample_pictures(model: Model, count: int, temperature: float, seed: int) -> np.ndarray:
    """Samples from the manifold, uint8 (count, channels, height, width), or points (count, D).

    Raises:
        UserError: One of the values is not allowed, or the samples do not fit in memory.
    """
    check_sampling(count, temperature, seed)
    check_memory("count", count, 2 * _stored_bytes(model))  # they are copied once
    generator, drawn = torch.Generator().manual_seed(seed), []
    with ProgressBar("sampling", "samples", count) as meter:
        for start in range(0, count, BATCH):
            size = min(BATCH, count - start)
            drawn.append(stored(model.sample(size, temperature, generator)))
            meter.update(size)
    return np.concatenate(drawn)


def interpolate_pictures(model: Model, images: np.ndarray, steps: int) -> np.ndarray:
    r"""Go from one of two uint8 images to the other on the manifold, both ends included.

    Directions of u go along the great circle between them, and :math:`|u|^2` changes evenly, so
    that :math:`\log N(u; 0, I)` does: it is constant if both ends have the same.

    Returns:
        uint8 (steps, channels, height, width).

    Raises:
        UserError: The images do not fit the model, or the steps do not fit in memory.
    """
    check_images(model, images)
    check_memory("steps", steps, 2 * _stored_bytes(model) + 12 * model.dim)
    with torch.no_grad():
        (x,) = _batches(model, images, 2, "encoding")
        first, last = model.encode(x)[0]
        points = between(first, last, steps).split(BATCH)
        return np.concatenate([stored(model.decode(u)) for u in points])


def _stored_bytes(model: Model) -> int:
    """Bytes of a sample as an array holds it: those of images are uint8, of points float32."""
    return model.event_dim * (1 if len(model.event_shape) == 3 else 4)


def between(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """Points (steps, d) from a (d,) to b (d,): see :func:`interpolate_pictures`."""
    share = torch.linspace(0, 1, steps, dtype=a.dtype, device=a.device)[:, None]
    angle = torch.arccos((a @ b / (a.norm() * b.norm())).clamp(-1, 1))
    if angle.sin() < 1e-4:
        direction = (1 - share) * a / a.norm() + share * b / b.norm()
        direction = direction / direction.norm(dim=1, keepdim=True).clamp_min(1e-12)
    else:
        first, second = ((1 - share) * angle).sin(), (share * angle).sin()
        direction = (first * a / a.norm() + second * b / b.norm()) / angle.sin()
    return direction * ((1 - share) * a.square().sum() + share * b.square().sum()).sqrt()


def _batches(model: Model, images: np.ndarray, size: int, doing: str) -> Iterator[Tensor]:
    batches = Batches(images, size, device=next(model.parameters()).device)
    return track(batches, doing, len(images))
