r"""The rotation that orders latents by their contribution to the data (:ref:`theory-6-1`)."""

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
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
from submanifold.models.io import save_tensors
from submanifold.training.checkpoint import first_intact

log = logging.getLogger(__name__)

PROBES_PER_AXIS = 8
PROBES_PER_EVENT = 4
HELD_OUT_EVERY = 8
LARGEST_RATIO = 16.0  # of a probe's squared norm to the median
SUBSPACE_ITERATIONS = 3
OVERSAMPLING = 16
SAVE_EVERY = 30.0  # seconds
SPLITS = ("fitted", "held_out")
CURVE_POINTS = 40


class RotationSettings(Settings):
    """A phase that rotates the latents of a stage, without training.

    Attributes:
        rotate: Number of the stage whose latents are rotated.
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
    frame; those of the other probes are biased, the leading ones upwards. A fit of one round holds
    nothing out. Several processes share the images.

    Args:
        model: The model on its device; its last stage gets a :class:`.Rotation` if it has none.
        batches: Input of its first stage.
        probes: Number of probes; None is 8 per axis that is chosen.
        outer: The frozen stages before it.
        first: The first training step whose batch is used.
        folder: Folder of a checkpoint, from which a killed fit resumes.
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
    axes = _Axes(rotation, blocks, rounds)
    compute = _probe_function(model, batches, outer, first)
    path = folder / "rotation.safetensors" if folder else None
    state: dict[str, Any] = {"round": 0, "left_out": 0, "seconds": 0.0}
    if path and (checkpoint := first_intact(path)):
        state = checkpoint.state
        axes.sums = {key: each.to(axes.device) for key, each in checkpoint.tensors.items()}
        log.info("%s: resuming at probe %d", name, state["round"] * per_round)
    distributed.barrier()  # before another process writes the file
    saved = time.monotonic()
    started = saved - state["seconds"]
    total = axes.rounds * per_round
    with ProgressBar(name, "probes", total, state["round"] * per_round) as meter:
        for index in range(state["round"], axes.rounds):
            drawn = compute(index).float()
            norms = drawn.square().sum(1)
            inliers = drawn[norms <= LARGEST_RATIO * norms.nanmedian()]
            axes.add(index, inliers)
            meter.update(len(drawn))
            state = {"round": index + 1, "seconds": time.monotonic() - started,
                     "left_out": state["left_out"] + len(drawn) - len(inliers)}  # fmt: skip
            if path and distributed.rank() == 0 and time.monotonic() - saved > SAVE_EVERY:
                saved = time.monotonic()
                sums = {key: each.cpu() for key, each in axes.sums.items()}
                save_tensors(sums, path, {"state": state})
    decomposed = time.monotonic()
    errors = axes.fit()
    if path and distributed.rank() == 0:
        path.unlink(missing_ok=True)
    spaced = {round(stage.latent_dim ** (n / CURVE_POINTS)) for n in range(CURVE_POINTS + 1)}
    dims = sorted(d for d in spaced if d < len(errors["mse"]))
    event_dim = (outer or model).event_dim
    return {
        "probes": total - state["left_out"],
        "left_out": state["left_out"],
        "dims": dims,
        **{key: [float(each[d]) / event_dim for d in dims] for key, each in errors.items()},
        "seconds": time.monotonic() - started,
        "decomposition_seconds": time.monotonic() - decomposed,
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


class _Axes:
    """Principal axes of C, from sums over the probes.

    All axes of each block are eigenvectors of the sum of the probes' outer products. The leading
    axes of the first block are found by subspace iteration, with new probes in each iteration.

    Attributes:
        sums: The state that a killed fit resumes from.
        rounds: Number of rounds.
    """

    def __init__(self, rotation: Rotation, blocks: list[slice], rounds: int) -> None:
        self.rotation, self.blocks = rotation, blocks
        self.device = rotation.eigenvalues.device
        iterations = 1 if rotation.is_dense else SUBSPACE_ITERATIONS
        self.per_iteration = max(1, rounds // iterations)
        self.rounds = iterations * self.per_iteration
        self.sums: dict[str, Tensor] = {}

    def add(self, index: int, probes: Tensor) -> None:
        """Add the probes (batch, D) of one round."""
        sums, index = self.sums, index % self.per_iteration
        if index == 0:
            self._start_iteration()
        block = slice(None) if self.rotation.is_dense else self.blocks[0]
        projected = probes if self.rotation.is_dense else probes @ sums["basis"]
        every = min(HELD_OUT_EVERY, self.per_iteration)
        splits = SPLITS if every == 1 else (SPLITS[index % every == every - 1],)
        if "fitted" in splits:
            sums["fitted"][block].addmm_(probes[:, block].T, projected)
        if "held_out" in splits:
            sums["held_out"].addmm_(projected.T, projected)
        for split in splits:
            sums[f"{split}_total"] += probes.square().sum()
            sums[f"{split}_count"] += len(probes)

    def _start_iteration(self) -> None:
        sums, dim = self.sums, self.rotation.event_shape[0]
        size = dim
        if not self.rotation.is_dense:
            block = self.blocks[0]
            size = min(self.rotation.directions + OVERSAMPLING, block.stop)
            if not sums:
                start = torch.zeros(dim, size)
                generator = torch.Generator().manual_seed(0)
                start[block] = torch.randn(block.stop, size, generator=generator)
                sums["fitted"] = start.to(self.device)
            sums["basis"] = torch.linalg.qr(sums["fitted"]).Q.contiguous()
        sums["fitted"] = torch.zeros(dim, size, device=self.device)
        sums["held_out"] = torch.zeros(size, size, device=self.device)
        for name in (f"{split}_{sum_}" for split in SPLITS for sum_ in ("total", "count")):
            sums[name] = torch.zeros((), device=self.device)

    def fit(self) -> dict[str, Tensor]:
        """Set the rotation; returns both squared errors after the first d latents, (k + 1,)."""
        sums, count, basis = self.sums, self.rotation.directions, self.sums.get("basis")
        fitted = sums["fitted"] if basis is None else basis.T @ sums["fitted"]
        fitted.div_(sums["fitted_count"])
        held_out = sums["held_out"].div_(sums["held_out_count"])
        vectors, values, eigenvalues = [], [], []
        for block in self.blocks if basis is None else [slice(0, len(fitted))]:
            ascending, columns = torch.linalg.eigh(fitted[block, block])
            columns = columns.flip(1)[:, :count]
            vectors.append(columns)
            values.append(ascending.flip(0)[:count].clamp_min(0))
            eigenvalues.append((columns * (held_out[block, block] @ columns)).sum(0).clamp_min(0))
        axes, found = torch.block_diag(*vectors), torch.cat(eigenvalues)
        fitted_mse = tail_sums(torch.cat(values))
        if basis is not None:
            axes = basis @ axes
            totals = {split: sums[f"{split}_total"] / sums[f"{split}_count"] for split in SPLITS}
            fitted_mse = totals["fitted"] - F.pad(values[0].cumsum(0), (1, 0))
            others = len(basis) - count
            rest = (totals["held_out"] - found.sum()).clamp_min(0) / max(others, 1)
            found = torch.cat([found, rest.expand(others)])
        self.rotation.fit(self.rotation.inverse(axes.T).T, found)
        return {"mse": tail_sums(found)[: count + 1], "fitted_mse": fitted_mse}
