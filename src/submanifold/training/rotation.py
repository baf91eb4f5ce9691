r"""The rotation that puts latents in order of what they contribute to the data (method.md 6.1)."""

import logging
import math
import time
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

PROBES_PER_COORDINATE = 8
PER_EVENT = 4
HELD_OUT = 8
OUTLIER = 16.0
SAVE_EVERY = 30.0
PASSES = 3
SPARE = 16
PARTS = ("fitted", "held_out")


class RotationSettings(Settings):
    """A phase that trains nothing, but rotates the latents of a stage into an order.

    Attributes:
        rotate: Number of the stage.
        probes: Vector-Jacobian products that E[J^T J] is estimated from; None is 8 for each
            latent, or each leading axis where there are too many latents for a matrix.
    """

    rotate: int = Field(gt=0)
    probes: int | None = Field(default=None, gt=0)

    @property
    def stages(self) -> tuple[int, ...]:
        """The stage that it changes."""
        return (self.rotate,)

    @property
    def terms(self) -> dict[str, Any]:
        """None: nothing is minimised."""
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
    r"""Rotate the latents of a model's last stage so that the first d span what matters most.

    To first order, leaving out the latents after d costs :math:`\sum_{i>d} q_i^T C q_i / D` for
    axes q and :math:`C = \mathrm{E}[J^T J]`, J the decoder's derivative by the latents at data:
    least for eigenvectors of C, the largest first. A probe is one vector-Jacobian product
    :math:`g = J^T s` with random signs s, for :math:`\mathrm{E}[g g^T] = C`. Those whose squared
    norm is above 16 times the median are left out: a few decoders are nearly singular. With sigma_v
    other than 1 the axes of u and of v are chosen apart, for a rotation of all would change
    the density.

    One probe in eight is held out and chooses no axis. The rotation's eigenvalues are the mean
    :math:`(q_i^T g)^2` of these, an unbiased estimate of the diagonal of C in the rotated frame.
    The eigenvalues of the other probes are biased: those of the first axes are too large, those of
    the last too small. What both leave after d latents differs by the most that the sampling error
    can cost. A fit of one round holds nothing out, and its eigenvalues have that bias. Several
    processes
    (:mod:`submanifold.common.distributed`) share the images, and all have all probes.

    Args:
        model: The model, whose last stage gets a :class:`Rotation` if it has none. On its device.
        batches: What its first stage acts on.
        probes: How many; None is 8 for each axis that is chosen.
        outer: The frozen stages before it.
        first: The first step whose batch is used.
        folder: Where what was computed is kept, from which a killed run goes on.
        name: What the progress bar calls it.

    Returns:
        ``probes``, ``left_out``, ``seconds``, and by d in ``dims`` the mean squared error to first
        order: ``mse`` on the probes held out (sums of the eigenvalues), and ``fitted_mse`` on the
        others.
    """
    stage = model.stages[-1]
    rotation = stage.rotation or stage.add_rotation()
    inner = model.part(1, len(model.stages) - 1) if len(model.stages) > 1 else None
    weight = next(model.parameters())
    precision = choose_precision("auto", weight)

    def encode(h: Tensor) -> Tensor:
        return stage.flow(h if inner is None else inner.encode(h)[0])[0]

    def decode(z: Tensor) -> Tensor:
        x = stage.flow.inverse(z)
        x = x if inner is None else inner.decode(x)
        return x if outer is None else outer.decode(x)

    dim = stage.latent_dim
    wanted = probes or PROBES_PER_COORDINATE * rotation.directions
    per_batch = PER_EVENT * batches.batch_size
    rounds = math.ceil(wanted / per_batch)

    image_shape = (outer or model).event_shape

    def draw(index: int) -> Tensor:
        h = batches.at(first + index)
        signs = [torch.randint(2, (len(h), *image_shape), generator=batches.generator,
                               device=h.device) for _ in range(PER_EVENT)]  # fmt: skip
        with autocast(weight.device, precision):
            at = Linearization(decode, encode(distributed.share(h)))
            pulled = [at.vjp(2 * distributed.share(each).to(h.dtype) - 1) for each in signs]
        return distributed.gather(torch.cat(pulled))

    blocks = [slice(0, stage.dim), slice(stage.dim, dim)]
    blocks = [slice(0, dim)] if stage.off_manifold_scale == 1 else blocks
    axes = (_AllAxes if rotation.is_dense else _LeadingAxes)(rotation, blocks, rounds)
    path = folder / "rotation.safetensors" if folder else None
    start, seen, left_out, seconds = 0, 0, 0, 0.0
    if path is not None and (kept := _restore(path)) is not None:
        tensors, state = kept
        axes.sums.update({key: each.to(axes.device) for key, each in tensors.items()})
        start, seen, left_out, seconds = (
            state[each] for each in ("round", "seen", "left_out", "seconds")
        )
        log.info("%s: going on at probe %d", name, seen)
    distributed.wait()  # or one would find what another has begun
    started = saved = time.monotonic()
    with ProgressBar(name, "probes", axes.rounds * per_batch, seen) as meter:
        for index in range(start, axes.rounds):
            drawn = draw(index).float()
            inliers = drawn[_inliers(drawn)]
            seen += len(drawn)
            left_out += len(drawn) - len(inliers)
            axes.add(index, inliers)
            meter.update(len(drawn))
            if (
                path is not None
                and distributed.rank() == 0
                and time.monotonic() - saved > SAVE_EVERY
            ):
                saved = time.monotonic()
                state = {"round": index + 1, "seen": seen, "left_out": left_out,
                         "seconds": seconds + saved - started}  # fmt: skip
                save_tensors({key: each.cpu() for key, each in axes.sums.items()}, path,
                             {"state": state})  # fmt: skip
    tails = axes.fit()
    if path is not None and distributed.rank() == 0:
        path.unlink(missing_ok=True)
    dims = [d for d in _grid(dim) if d < len(tails["mse"])]
    decoded = (outer or model).event_dim
    return {
        "probes": seen - left_out,
        "left_out": left_out,
        "dims": dims,
        **{key: [float(each[d]) / decoded for d in dims] for key, each in tails.items()},
        "seconds": seconds + time.monotonic() - started,
    }


def _inliers(probes: Tensor) -> Tensor:
    """Whether each probe's squared norm is finite, and no more than 16 times their median."""
    sizes = probes.square().sum(1)
    return sizes <= OUTLIER * sizes.nanmedian()


class _AllAxes:
    """All axes of each block, by the eigenvectors of the sum of the probes' outer products.

    ``sums`` is all that a killed run needs to go on.
    """

    def __init__(self, rotation: Rotation, blocks: list[slice], rounds: int) -> None:
        self.rotation, self.blocks, self.rounds = rotation, blocks, rounds
        self.device = rotation.eigenvalues.device
        dim = rotation.event_shape[0]
        self.sums = {name: torch.zeros(dim, dim, device=self.device) for name in PARTS}
        self.sums |= {f"{name}_count": torch.zeros((), device=self.device) for name in PARTS}

    def add(self, index: int, probes: Tensor) -> None:
        """Take the probes (batch, D) of one round."""
        for part in _parts(index, self.rounds):
            self.sums[part].addmm_(probes.T, probes)
            self.sums[f"{part}_count"] += len(probes)

    def fit(self) -> dict[str, Tensor]:
        """Set the rotation; what is left after the first d latents, both (D + 1,)."""
        fitted, held_out = (self.sums[each].div_(self.sums[f"{each}_count"]) for each in PARTS)
        axes, values, eigenvalues = torch.zeros_like(fitted), [], []
        for block in self.blocks:
            largest_last, vectors = torch.linalg.eigh(fitted[block, block])
            axes[block, block] = vectors = vectors.flip(1)
            values.append(largest_last.flip(0).clamp_min(0))
            eigenvalues.append((vectors * (held_out[block, block] @ vectors)).sum(0).clamp_min(0))
        self.rotation.fit(self.rotation.inverse(axes.T).T, torch.cat(eigenvalues))
        return {
            "mse": tail_sums(torch.cat(eigenvalues)),
            "fitted_mse": tail_sums(torch.cat(values)),
        }


class _LeadingAxes:
    """The leading axes by subspace iteration, each pass on probes of its own.

    Where v is apart, its axes stay as they are. ``sums`` is all that a killed run needs to go on.
    """

    def __init__(self, rotation: Rotation, blocks: list[slice], rounds: int) -> None:
        self.rotation, self.block = rotation, blocks[0]
        self.device = rotation.eigenvalues.device
        self.per_pass = max(1, rounds // PASSES)
        self.rounds = PASSES * self.per_pass
        generator = torch.Generator().manual_seed(0)
        size = min(rotation.directions + SPARE, self.block.stop)
        image = torch.zeros(rotation.event_shape[0], size)
        image[self.block] = torch.randn(self.block.stop, size, generator=generator)
        self.sums = {"image": image.to(self.device)}

    def add(self, index: int, probes: Tensor) -> None:
        """Take the probes (batch, D) of one round."""
        sums = self.sums
        in_pass = index % self.per_pass
        if in_pass == 0:
            sums["basis"] = torch.linalg.qr(sums["image"]).Q.contiguous()
            sums["image"] = torch.zeros_like(sums["basis"])
            size = sums["basis"].shape[1]
            sums["held_out"] = torch.zeros(size, size, device=self.device)
            for name in (f"{part}_{sum_}" for part in PARTS for sum_ in ("total", "count")):
                sums[name] = torch.zeros((), device=self.device)
        within = probes @ sums["basis"]
        for part in _parts(in_pass, self.per_pass):
            if part == "fitted":
                sums["image"][self.block].addmm_(probes[:, self.block].T, within)
            else:
                sums["held_out"].addmm_(within.T, within)
            sums[f"{part}_total"] += probes.square().sum()
            sums[f"{part}_count"] += len(probes)

    def fit(self) -> dict[str, Tensor]:
        """Set the rotation; what is left after the first d latents, both (k + 1,)."""
        sums, count = self.sums, self.rotation.directions
        dim = len(sums["basis"])
        fitted = sums["basis"].T @ sums["image"] / sums["fitted_count"]
        held_out = sums["held_out"] / sums["held_out_count"]
        totals = {part: sums[f"{part}_total"] / sums[f"{part}_count"] for part in PARTS}
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


def _parts(index: int, rounds: int) -> tuple[str, ...]:
    """Whether a round's probes are fitted or held out; both where there is but one round."""
    if rounds == 1:
        return PARTS
    every = min(HELD_OUT, rounds)
    return ("held_out",) if index % every == every - 1 else ("fitted",)


def _restore(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What a killed run left, or None."""
    try:
        tensors, header = load_tensors(path)
        return tensors, header["state"]
    except (FileNotFoundError, SafetensorError, KeyError, ValueError):
        return None


def _grid(dim: int, points: int = 40) -> list[int]:
    """Dimensions from 1 to D at equal ratios."""
    return sorted({round(dim ** (n / points)) for n in range(points + 1)})
