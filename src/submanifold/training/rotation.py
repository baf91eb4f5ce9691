r"""The rotation that orders latents by their contribution to the data (method.md 6.1)."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from safetensors import SafetensorError
from torch import Tensor

from submanifold.common import distributed
from submanifold.common.device import autocast, choose_precision
from submanifold.common.progress import ProgressBar
from submanifold.common.settings import Settings
from submanifold.data.batches import Batches
from submanifold.flows import Rotation
from submanifold.flows.orthogonal import tail_sums
from submanifold.geometry.linearization import Linearization
from submanifold.models import Hierarchy
from submanifold.models.io import load_tensors, save_tensors

log = logging.getLogger(__name__)

PROBES_PER_AXIS = 8
PROBES_PER_EVENT = 4
HELD_OUT_EVERY = 8
LARGEST_RATIO = 16.0  # of a probe's squared norm to the median
SUBSPACE_ITERATIONS = 3
OVERSAMPLING = 16
SAVE_EVERY = 30.0  # seconds
SPLITS = ("fitted", "held_out")


class RotationSettings(Settings):
    """A phase that rotates the latents of a stage, without training.

    Attributes:
        rotate: Number of the stage.
        probes: Number of vector-Jacobian products that estimate E[J^T J]; None is 8 per axis that
            is chosen: all latents, or the leading axes if there are too many for a matrix.
    """

    rotate: int = Field(gt=0)
    probes: int | None = Field(default=None, gt=0)

    @property
    def stages(self) -> tuple[int, ...]:
        """Number of the stage that changes."""
        return (self.rotate,)

    @property
    def terms(self) -> dict[str, Any]:
        """Empty: there is no loss."""
        return {}


@dataclass
class _Progress:
    """How many rounds of probes are done; saved as JSON."""

    round: int = 0
    probes: int = 0
    left_out: int = 0
    seconds: float = 0.0


@torch.no_grad()
def fit_rotation(
    model: Hierarchy,
    batches: Batches,
    probes: int | None = None,
    outer: Hierarchy | None = None,
    first: int = 0,
    folder: Path | None = None,
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

    One probe in eight is held out and chooses no axis. The eigenvalues that the rotation stores are
    the mean :math:`(q_i^T g)^2` of these, an unbiased estimate of the diagonal of C in the rotated
    frame; a fit of one round holds nothing out. Those of the other probes are biased, the leading
    ones upwards. The difference of the two errors after d latents bounds the cost of the sampling
    error. Several processes (:mod:`submanifold.common.distributed`) share the images.

    Args:
        model: The model on its device; its last stage gets a :class:`.Rotation` if it has none.
        batches: Input of its first stage.
        probes: Number of probes; None is 8 per axis that is chosen.
        outer: The frozen stages before it.
        first: The first training step whose batch is used.
        folder: Where progress is saved, from which a killed fit resumes.
        name: Name in messages.

    Returns:
        ``probes``, ``left_out``, ``seconds``, and by d in ``dims`` the first-order mean squared
        error: ``mse`` on the held-out probes (sums of the eigenvalues) and ``fitted_mse`` on the
        others.
    """
    stage = model.stages[-1]
    rotation = stage.rotation or stage.add_rotation()
    per_round = PROBES_PER_EVENT * batches.batch_size
    rounds = math.ceil((probes or PROBES_PER_AXIS * rotation.directions) / per_round)
    blocks = [slice(0, stage.latent_dim)]
    if stage.off_manifold_scale != 1:
        blocks = [slice(0, stage.dim), slice(stage.dim, stage.latent_dim)]
    axes = (_AllAxes if rotation.is_dense else _LeadingAxes)(rotation, blocks, rounds)
    compute = _probe_function(model, batches, outer, first)
    path = folder / "rotation.safetensors" if folder else None
    progress = _restore(path, axes.sums, axes.device)
    if progress.round:
        log.info("%s: resuming at probe %d", name, progress.probes)
    distributed.barrier()  # before another process writes the file
    saved = time.monotonic()
    started = saved - progress.seconds
    with ProgressBar(name, "probes", axes.rounds * per_round, progress.probes) as meter:
        for index in range(progress.round, axes.rounds):
            drawn = compute(index).float()
            norms = drawn.square().sum(1)
            inliers = drawn[norms <= LARGEST_RATIO * norms.nanmedian()]
            axes.add(index, inliers)
            progress.round, progress.probes = index + 1, progress.probes + len(drawn)
            progress.left_out += len(drawn) - len(inliers)
            progress.seconds = time.monotonic() - started
            meter.update(len(drawn))
            if path and distributed.rank() == 0 and time.monotonic() - saved > SAVE_EVERY:
                saved = time.monotonic()
                sums = {key: each.cpu() for key, each in axes.sums.items()}
                save_tensors(sums, path, {"state": asdict(progress)})
    errors = axes.fit()
    if path and distributed.rank() == 0:
        path.unlink(missing_ok=True)
    dims = [d for d in _log_spaced(stage.latent_dim) if d < len(errors["mse"])]
    event_dim = (outer or model).event_dim
    return {
        "probes": progress.probes - progress.left_out,
        "left_out": progress.left_out,
        "dims": dims,
        **{key: [float(each[d]) / event_dim for d in dims] for key, each in errors.items()},
        "seconds": time.monotonic() - started,
    }


def _probe_function(
    model: Hierarchy, batches: Batches, outer: Hierarchy | None, first: int
) -> Callable[[int], Tensor]:
    """Return a function that computes the probes of a round, (probes, latent_dim)."""
    flow = model.stages[-1].flow
    inner = model.part(1, len(model.stages) - 1) if len(model.stages) > 1 else None
    weight = next(model.parameters())
    precision = choose_precision("auto", weight)
    image_shape = (outer or model).event_shape

    def encode(h: Tensor) -> Tensor:
        return flow(h if inner is None else inner.encode(h)[0])[0]

    def decode(z: Tensor) -> Tensor:
        x = flow.inverse(z)
        x = x if inner is None else inner.decode(x)
        return x if outer is None else outer.decode(x)

    def compute(index: int) -> Tensor:
        h = batches.at(first + index)
        signs = [torch.randint(2, (len(h), *image_shape), generator=batches.generator,
                               device=h.device) for _ in range(PROBES_PER_EVENT)]  # fmt: skip
        with autocast(weight.device, precision):
            at = Linearization(decode, encode(distributed.shard(h)))
            probes = [at.vjp(2 * distributed.shard(each).to(h.dtype) - 1) for each in signs]
        return distributed.all_gather(torch.cat(probes))

    return compute


class _AllAxes:
    """All axes of each block: eigenvectors of the sum of the probes' outer products.

    Attributes:
        sums: The state that a killed fit resumes from.
        rounds: Number of rounds.
    """

    def __init__(self, rotation: Rotation, blocks: list[slice], rounds: int) -> None:
        self.rotation, self.blocks, self.rounds = rotation, blocks, rounds
        self.device = rotation.eigenvalues.device
        dim = rotation.event_shape[0]
        self.sums = {name: torch.zeros(dim, dim, device=self.device) for name in SPLITS}
        self.sums |= {f"{name}_count": torch.zeros((), device=self.device) for name in SPLITS}

    def add(self, index: int, probes: Tensor) -> None:
        """Add the probes (batch, D) of one round."""
        for split in _splits(index, self.rounds):
            self.sums[split].addmm_(probes.T, probes)
            self.sums[f"{split}_count"] += len(probes)

    def fit(self) -> dict[str, Tensor]:
        """Set the rotation; returns both squared errors after the first d latents, (D + 1,)."""
        fitted, held_out = (self.sums[each].div_(self.sums[f"{each}_count"]) for each in SPLITS)
        axes, values, eigenvalues = torch.zeros_like(fitted), [], []
        for block in self.blocks:
            ascending, vectors = torch.linalg.eigh(fitted[block, block])
            axes[block, block] = vectors = vectors.flip(1)
            values.append(ascending.flip(0).clamp_min(0))
            eigenvalues.append((vectors * (held_out[block, block] @ vectors)).sum(0).clamp_min(0))
        self.rotation.fit(self.rotation.inverse(axes.T).T, torch.cat(eigenvalues))
        return {
            "mse": tail_sums(torch.cat(eigenvalues)),
            "fitted_mse": tail_sums(torch.cat(values)),
        }


class _LeadingAxes:
    """The leading axes of the first block, by subspace iteration with new probes in each iteration.

    Attributes:
        sums: The state that a killed fit resumes from.
        rounds: Number of rounds.
    """

    def __init__(self, rotation: Rotation, blocks: list[slice], rounds: int) -> None:
        self.rotation, self.block = rotation, blocks[0]
        self.device = rotation.eigenvalues.device
        self.per_iteration = max(1, rounds // SUBSPACE_ITERATIONS)
        self.rounds = SUBSPACE_ITERATIONS * self.per_iteration
        generator = torch.Generator().manual_seed(0)
        size = min(rotation.directions + OVERSAMPLING, self.block.stop)
        image = torch.zeros(rotation.event_shape[0], size)
        image[self.block] = torch.randn(self.block.stop, size, generator=generator)
        self.sums = {"image": image.to(self.device)}

    def add(self, index: int, probes: Tensor) -> None:
        """Add the probes (batch, D) of one round."""
        sums, index = self.sums, index % self.per_iteration
        if index == 0:
            sums["basis"] = torch.linalg.qr(sums["image"]).Q.contiguous()
            sums["image"] = torch.zeros_like(sums["basis"])
            size = sums["basis"].shape[1]
            sums["held_out"] = torch.zeros(size, size, device=self.device)
            for name in (f"{split}_{sum_}" for split in SPLITS for sum_ in ("total", "count")):
                sums[name] = torch.zeros((), device=self.device)
        projected = probes @ sums["basis"]
        for split in _splits(index, self.per_iteration):
            if split == "fitted":
                sums["image"][self.block].addmm_(probes[:, self.block].T, projected)
            else:
                sums["held_out"].addmm_(projected.T, projected)
            sums[f"{split}_total"] += probes.square().sum()
            sums[f"{split}_count"] += len(probes)

    def fit(self) -> dict[str, Tensor]:
        """Set the rotation; returns both squared errors after the first d latents, (k + 1,)."""
        sums, count = self.sums, self.rotation.directions
        dim = len(sums["basis"])
        fitted = sums["basis"].T @ sums["image"] / sums["fitted_count"]
        held_out = sums["held_out"] / sums["held_out_count"]
        totals = {split: sums[f"{split}_total"] / sums[f"{split}_count"] for split in SPLITS}
        values, vectors = torch.linalg.eigh(fitted)
        values, vectors = values.flip(0)[:count].clamp_min(0), vectors.flip(1)[:, :count]
        leading = (vectors * (held_out @ vectors)).sum(0).clamp_min(0)
        rest = (totals["held_out"] - leading.sum()).clamp_min(0) / max(dim - count, 1)
        axes = sums["basis"] @ vectors
        eigenvalues = torch.cat([leading, rest.expand(dim - count)])
        self.rotation.fit(self.rotation.inverse(axes.T).T, eigenvalues)
        return {
            "mse": tail_sums(eigenvalues)[: count + 1],
            "fitted_mse": totals["fitted"] - F.pad(values.cumsum(0), (1, 0)),
        }


def _splits(index: int, rounds: int) -> tuple[str, ...]:
    """Splits that a round's probes belong to: one of the two, or both if there is one round."""
    if rounds == 1:
        return SPLITS
    every = min(HELD_OUT_EVERY, rounds)
    return ("held_out",) if index % every == every - 1 else ("fitted",)


def _restore(path: Path | None, sums: dict[str, Tensor], device: torch.device) -> _Progress:
    """Load the sums of a killed fit, if there is a valid file."""
    if path is None:
        return _Progress()
    try:
        tensors, header = load_tensors(path)
        progress = _Progress(**header["state"])
    except (FileNotFoundError, SafetensorError, KeyError, ValueError):
        return _Progress()
    sums.update({key: each.to(device) for key, each in tensors.items()})
    return progress


def _log_spaced(dim: int, points: int = 40) -> list[int]:
    """Dimensions from 1 to D at equal ratios."""
    return sorted({round(dim ** (n / points)) for n in range(points + 1)})
