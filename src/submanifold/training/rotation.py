r"""The rotation that orders latents by their contribution to the data (:ref:`theory-6-1`)."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from submanifold.common import distributed
from submanifold.common.device import autocast, choose_precision
from submanifold.common.errors import unexpected
from submanifold.common.progress import ProgressBar
from submanifold.common.settings import Settings
from submanifold.common.threads import ThreadTuner
from submanifold.data.batches import Batches
from submanifold.flows.orthogonal import tail_sums
from submanifold.geometry.linearization import Linearization
from submanifold.models import Hierarchy
from submanifold.training import checkpoint
from submanifold.training.checkpoint import WEIGHTS, Identity, hash_weights

PROBES_PER_AXIS, PROBES_PER_EVENT, HELD_OUT_EVERY = 8, 4, 8
LARGEST_RATIO = 16.0  # of a probe's squared norm to the median
ENOUGH_PROBES = 4  # for each latent, not to shrink their covariance
BAND_SAMPLE = 256
SUBSPACE_ITERATIONS, OVERSAMPLING = 2, 64
CHUNK = 256  # probes that are converted to float32 at once
SAVE_EVERY = 30.0  # seconds
CURVE_POINTS = 40


class RotationSettings(Settings):
    """A phase that rotates the latents of a stage, without training.

    Attributes:
        rotate: Number of the stage whose latents are rotated.
        probes: Number of vector-Jacobian products that estimate E[J^T J]; None is 8 for each axis
            that is chosen.
    """

    rotate: int = Field(gt=0)
    probes: int | None = Field(default=None, gt=0)

    @property
    def stages(self) -> tuple[int, ...]:
        """Number of the stage that changes."""
        return (self.rotate,)


@torch.no_grad()
def fit_rotation(
    model: Hierarchy,
    batches: Batches,
    probes: int | None = None,
    outer: Hierarchy | None = None,
    folder: str | Path | None = None,
    name: str = "rotation",
) -> dict[str, Any]:
    r"""Rotate the latents of a model's last stage so that the leading ones contribute most.

    To first order, omitting the latents after d costs :math:`\sum_{i>d} q_i^T C q_i / D` for axes q
    and :math:`C = \mathrm{E}[J^T J]`, with the Jacobian J of the decoder by the latents at data.
    The optimal axes are the eigenvectors of C in order of decreasing eigenvalues. A probe is one
    vector-Jacobian product :math:`g = J^T s` with random signs s, so that
    :math:`\mathrm{E}[g g^T] = C`. Probes whose squared norm exceeds 16 times the median are left
    out, as a few decoders are nearly singular. If sigma_v is not 1, the axes of u and of v are
    chosen separately, because a joint rotation would change the density.

    An earlier rotation is the start: :func:`principal_axes` needs fewer probes in its frame. Of at
    most 4,096 latents all axes are chosen. Of more latents, the leading 2 d axes are chosen; the
    others span the rest in any order, and their eigenvalues are equal.

    One probe in eight is held out and chooses no axis. The eigenvalues that the rotation stores are
    the mean :math:`(q_i^T g)^2` of these, an unbiased estimate of the diagonal of C in the rotated
    frame. A fit of one round holds nothing out. Several processes share the images.

    The last stage gets a :class:`.Rotation` if it has none. ``outer`` are the frozen stages before
    the model. The number of probes is by default 8 for each axis that is chosen. A killed fit
    resumes from a checkpoint in the folder, which then has the result; one of another model, other
    data or another number of probes raises a UserError.

    Returns ``probes``, ``seconds``, and by d in ``dims`` the first-order mean squared error ``mse``
    on the held-out probes (sums of the eigenvalues).
    """
    stage = model.stages[-1]
    rotation = stage.rotation or stage.add_rotation()
    per_round = PROBES_PER_EVENT * batches.batch_size
    rounds = math.ceil((probes or PROBES_PER_AXIS * rotation.directions) / per_round)
    identity = {
        **batches.identity,
        "batch_size": batches.batch_size,
        "probes": rounds * per_round,
        "dim": model.dim,
        WEIGHTS: hash_weights([model, outer]),
    }
    stored = _Checkpoint(Path(folder, "rotation.safetensors") if folder else None, identity)
    if stored.fitted is not None:
        rotation.load_state_dict(stored.tensors)
        return stored.fitted
    distributed.barrier()  # before another process writes the file
    drawn = stored.rounds(batches.device)
    with ProgressBar(name, "probes", rounds * per_round, len(drawn) * per_round) as meter:
        for computed, inliers in _draw_rounds(model, batches, outer, range(len(drawn), rounds)):
            drawn.append(inliers)
            meter.update(len(computed))
            stored.write_rounds(drawn)
    kept = sum(map(len, drawn))
    fitting, testing = _hold_out(drawn)
    if min(len(fitting), len(testing)) < 2:
        fix = "Train this stage again, with a lower training.learning_rate"
        got = f"{kept or 'none'} in {rounds * per_round} probes"
        raise unexpected(name, "finite derivatives of the decoder", got, fix)
    mse = _set_rotation(stage, fitting, testing)
    dims = _spaced(stage.latent_dim, len(mse))
    event_dim = (outer or model).event_dim
    fitted = {
        "probes": kept,
        "dims": dims,
        "mse": [float(mse[d]) / event_dim for d in dims],
        "seconds": stored.seconds(),
    }
    stored.write(rotation.state_dict(), fitted=fitted)
    return fitted


class _Checkpoint:
    """The file of a fit, if it has one: the probes of its first rounds, or its result.

    Attributes:
        tensors: The probes of each round, or the rotation of a fit that has ended.
        fitted: What :func:`fit_rotation` returned, of a fit that has ended.
    """

    def __init__(self, path: Path | None, identity: Identity) -> None:
        self.path, self.identity = path, identity
        stored = checkpoint.read(identity, path) if path else None
        self.tensors, header = ({}, {}) if stored is None else stored
        self.fitted: dict[str, Any] | None = header.get("fitted")
        self.written = time.monotonic()
        self.started = self.written - header.get("seconds", 0.0)

    def seconds(self) -> float:
        """Return the duration of the fit, with that of a killed one that it resumes."""
        return time.monotonic() - self.started

    def rounds(self, device: torch.device) -> list[Tensor]:
        """Return the probes of the first rounds."""
        return [self.tensors[str(number)].to(device) for number in range(len(self.tensors))]

    def write_rounds(self, drawn: Sequence[Tensor]) -> None:
        """Write the probes of the first rounds, but not more often than every 30 seconds."""
        if time.monotonic() - self.written > SAVE_EVERY:
            self.written = time.monotonic()
            tensors = {str(number): rows for number, rows in enumerate(drawn)}
            self.write(tensors, seconds=self.seconds())

    def write(self, tensors: Mapping[str, Tensor], **header: Any) -> None:
        """Write tensors and a header, if there is a file."""
        if self.path:
            checkpoint.write(self.path, self.identity, tensors, **header)


def _hold_out(drawn: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the probes that choose axes, and those that do not; they are the same of one round."""
    every = min(HELD_OUT_EVERY, len(drawn))
    testing = drawn[every - 1 :: every]
    fitting = [rows for number, rows in enumerate(drawn) if number % every < every - 1]
    return torch.cat(fitting or testing), torch.cat(testing)


def _spaced(latent_dim: int, count: int) -> list[int]:
    """Return dimensions from 1 to ``latent_dim``, at equal ratios, below ``count``."""
    spaced = {round(latent_dim ** (n / CURVE_POINTS)) for n in range(CURVE_POINTS + 1)}
    return sorted(d for d in spaced if d < count)


def _draw_rounds(
    model: Hierarchy, batches: Batches, outer: Hierarchy | None, numbers: Iterable[int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the probes of each round, and those of them that are not far too large."""
    rotation, tuner = model.stages[-1].rotation, ThreadTuner(batches.device)
    precision = torch.float32 if rotation and rotation.is_dense else torch.bfloat16
    for number in numbers:
        with tuner.unit():
            computed = draw_probes(model, batches, outer, number).float()
        norms = computed.square().sum(1)
        is_finite = norms.isfinite()
        limit = LARGEST_RATIO * norms[is_finite].median()
        yield computed, computed[is_finite & (norms <= limit)].to(precision)


def draw_probes(model: Hierarchy, batches: Batches, outer: Hierarchy | None, number: int) -> Tensor:
    """Compute the probes of a round, (probes, latent_dim)."""
    *inner, stage = model.stages
    weight, generator = next(model.parameters()), torch.Generator(batches.device)
    h, context = batches.at(number, generator)
    shape = (len(h), *(outer or model).event_shape)
    draw = partial(torch.randint, 2, shape, generator=generator, device=h.device)
    signs = [draw() for _ in range(PROBES_PER_EVENT)]
    context = None if context is None else distributed.shard(context)

    def decode(z: Tensor) -> Tensor:
        x = stage.inverse(z, context)
        for part in reversed(inner):
            x = part.decode(x, context=context)
        return x if outer is None else outer.decode(x, context=context)

    with autocast(weight.device, choose_precision("auto", weight)):
        z = distributed.shard(h)
        for part in inner:
            z = part(z, context)[0]
        at = Linearization(decode, stage.transform(z, context)[0])
        probes = [at.vjp(2 * distributed.shard(sign).to(h.dtype) - 1) for sign in signs]
    return distributed.all_gather(torch.cat(probes))


def _set_rotation(stage: Any, fitted: Tensor, held_out: Tensor) -> Tensor:
    """Set a rotation from probes (n, D); returns the errors after the first d latents, (k + 1,)."""
    rotation, count = stage.rotation, stage.rotation.directions
    size = stage.dim if stage.off_manifold_scale != 1 else stage.latent_dim  # of the first block
    if rotation.is_dense:
        blocks = fitted.tensor_split([size], 1)
        axes = torch.block_diag(*(principal_axes(block) for block in blocks if block.shape[1]))
    else:
        axes = torch.zeros(fitted.shape[1], count, device=fitted.device)
        axes[:size] = principal_axes(fitted[:, :size], count)
    coordinates = torch.cat([chunk.float() @ axes for chunk in held_out.split(CHUNK)])
    eigenvalues = coordinates.square().mean(0)
    if others := len(axes) - count:
        rest = _mean_square(held_out).sum() - eigenvalues.sum()
        eigenvalues = torch.cat([eigenvalues, (rest.clamp_min(0) / others).expand(others)])
    rotation.fit(rotation.inverse(axes.T).T, eigenvalues)
    return tail_sums(eigenvalues)[: count + 1]


def principal_axes(probes: Tensor, count: int | None = None) -> Tensor:
    r"""Estimate the eigenvectors of C with the largest eigenvalues from probes.

    The sample covariance of n probes (n, D) has large errors where n is not much larger than D. If
    n < 4 D, its entries off the diagonal are multiplied by :math:`r_i r_j`, with r² by
    :func:`_signal_shares`. In a frame in which C is nearly diagonal, such as that of an earlier
    rotation, this needs a third to a half of the probes for an equal first-order error. With more
    probes it makes nearest projections worse.

    Returns orthonormal axes (D, ``count``), in the order of decreasing eigenvalues. Fewer than all
    are found by subspace iteration, without a matrix (D, D), from the coordinates with the largest
    diagonal entries.
    """
    diagonal = _mean_square(probes)
    dim, roots = len(diagonal), torch.ones_like(diagonal)
    if len(probes) < ENOUGH_PROBES * dim:
        roots = _signal_shares(probes, diagonal).sqrt()
    rest = (1 - roots.square()) * diagonal
    if count is None:
        covariance = torch.zeros(dim, dim, device=probes.device)
        for chunk in map(Tensor.float, probes.split(CHUNK)):
            covariance.addmm_(chunk.T, chunk)
        covariance *= roots[:, None] * roots / len(probes)
        covariance.diagonal().add_(rest)
        return torch.linalg.eigh(covariance).eigenvectors.flip(1)

    def multiply(columns: Tensor) -> Tensor:
        scaled, product = roots[:, None] * columns, torch.zeros_like(columns)
        for chunk in map(Tensor.float, probes.split(CHUNK)):
            product.addmm_(chunk.T, chunk @ scaled)
        product.mul_((roots / len(probes))[:, None])
        return product.addcmul_(rest[:, None], columns)

    size = min(count + OVERSAMPLING, dim)
    basis = torch.zeros(dim, size, device=probes.device)
    basis[diagonal.argsort(descending=True)[:size], torch.arange(size)] = 1
    for _ in range(SUBSPACE_ITERATIONS - 1):
        basis = torch.linalg.qr(multiply(basis)).Q
    restricted = basis.T @ multiply(basis)
    return basis @ torch.linalg.eigh(restricted).eigenvectors.flip(1)[:, :count]


def _signal_shares(probes: Tensor, diagonal: Tensor) -> Tensor:
    r"""Share (D,) of the squared sample correlations that is not sampling error, by coordinate.

    The mean product of the correlations of both halves of the probes estimates the mean square of
    the true ones. Its ratio to that of the correlations of all probes minimizes the mean squared
    error of scaled correlations, as in Ledoit & Wolf (2004). Each band of coordinates of similar
    variance has its own ratio, from a sample of :data:`BAND_SAMPLE` coordinates.
    """
    dim, half = len(diagonal), len(probes) // 2
    order, shares = diagonal.argsort(descending=True), torch.zeros_like(diagonal)
    edges = [0, *(2**n for n in range(4, 32) if 2 ** (n + 1) <= dim), dim]
    for start, stop in pairwise(edges):
        band = order[start:stop]
        sample = band[:: math.ceil(len(band) / BAND_SAMPLE)]
        scaled = probes[:, sample].float() * diagonal[sample].clamp_min(1e-30).rsqrt()
        first, second = (part.T @ part for part in scaled.split((half, len(scaled) - half)))
        both = first + second
        for matrix in (first, second, both):
            matrix.fill_diagonal_(0)
        signal = (first * second).sum() * (len(probes) ** 2 / (half * (len(probes) - half)))
        shares[band] = (signal / both.square().sum()).nan_to_num(0, 0, 0).clamp(0, 1)
    return shares


def _mean_square(probes: Tensor) -> Tensor:
    sums = [chunk.float().square().sum(0) for chunk in probes.split(CHUNK)]
    return torch.stack(sums).sum(0) / len(probes)
