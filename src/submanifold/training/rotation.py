r"""The rotation that puts latents in order of what they contribute to the data (method.md 6.1)."""

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from torch import Tensor

from submanifold import team
from submanifold.data.batches import Batches
from submanifold.device import autocast, choose_precision
from submanifold.flows import Rotation
from submanifold.flows.rotation import tail_sums
from submanifold.manifold import Hierarchy
from submanifold.manifold.linearization import Linearization, frozen
from submanifold.manifold.model import load_tensors, save_tensors
from submanifold.progress import Meter
from submanifold.validation import Settings

log = logging.getLogger(__name__)

PROBES_PER_COORDINATE = 8
PER_EVENT = 4
HELD_OUT = 8
OUTLIER = 16.0
SAVE_EVERY = 30.0
PASSES = 3
SPARE = 16


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

    One probe in eight is held out: the error that the others' axes leave on it is expected of new
    data, and what it is above their own is the most that the sampling error can cost. Several
    processes (:mod:`submanifold.team`) share the images, and all have all probes.

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
        order: ``mse`` on the probes held out, and ``fitted_mse`` on the others.
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
            at = Linearization(decode, encode(team.share(h)))
            pulled = [at.pull(2 * team.share(each).to(h.dtype) - 1) for each in signs]
        return team.gather(torch.cat(pulled))

    blocks = [slice(0, stage.dim), slice(stage.dim, dim)]
    blocks = [slice(0, dim)] if stage.off_manifold_scale == 1 else blocks
    fit = _fit_whole if rotation.whole else _fit_leading
    started = time.monotonic()
    with frozen(model), Meter(name, "probes", rounds * per_batch) as meter:
        found = fit(rotation, draw, rounds, blocks, meter, folder)
    decoded = (outer or model).event_dim
    errors = {each: [sum_ / decoded for sum_ in found[each]] for each in ("mse", "fitted_mse")}
    return {**found, **errors, "seconds": found["seconds"] + time.monotonic() - started}


def _inliers(probes: Tensor) -> Tensor:
    """Whether each probe's squared norm is finite, and no more than 16 times their median."""
    sizes = probes.square().sum(1)
    return sizes <= OUTLIER * sizes.nanmedian()


def _fit_whole(
    rotation: Rotation,
    draw: Callable[[int], Tensor],
    rounds: int,
    blocks: list[slice],
    meter: Meter,
    folder: Path | None,
) -> dict[str, Any]:
    """Fit by the eigenvectors of the sum of all probes' outer products."""
    dim = rotation.event_shape[0]
    gram = torch.zeros(dim, dim, device=rotation.gains.device)
    held: list[Tensor] = []
    start, left_out, seconds, fitted = 0, 0, 0.0, 0
    path = folder / "probes.safetensors" if folder else None
    if path is not None and (kept := _restore(path)) is not None:
        tensors, state = kept
        gram, held = tensors["gram"].to(gram.device), [tensors["held"].to(gram.device)]
        start, left_out, fitted, seconds = (
            state[each] for each in ("round", "left_out", "fitted", "seconds")
        )
        log.info("%s: going on at probe %d", meter.description, start * meter.total // rounds)
    team.wait()  # or one would find what another has begun
    started = saved = time.monotonic()
    for index in range(start, rounds):
        probes = draw(index).float()
        kept_probes = probes[_inliers(probes)]
        left_out += len(probes) - len(kept_probes)
        if index % HELD_OUT == HELD_OUT - 1 or rounds == 1:
            held.append(kept_probes)
        if index % HELD_OUT != HELD_OUT - 1:
            gram.addmm_(kept_probes.T, kept_probes)
            fitted += len(kept_probes)
        meter.update(len(probes))
        if path is not None and team.rank() == 0 and time.monotonic() - saved > SAVE_EVERY:
            saved = time.monotonic()
            tensors = {"gram": gram, "held": torch.cat(held) if held else gram[:0]}
            state = {"round": index + 1, "left_out": left_out, "fitted": fitted,
                     "seconds": seconds + saved - started}  # fmt: skip
            save_tensors({key: each.cpu() for key, each in tensors.items()}, path,
                         {"state": state})  # fmt: skip
    gram /= max(fitted, 1)
    others = torch.cat(held) if held else gram[:0]
    axes = torch.zeros_like(gram)
    gains, new = [], []
    for block in blocks:
        values, vectors = torch.linalg.eigh(gram[block, block])
        axes[block, block] = vectors.flip(1)
        gains.append(values.flip(0).clamp_min(0))
        new.append((others[:, block] @ axes[block, block]).square().mean(0))
    rotation.fit(rotation.inverse(axes.T).T, torch.cat(gains))
    if path is not None and team.rank() == 0:
        path.unlink(missing_ok=True)
    dims = _grid(dim)
    tails = {"mse": tail_sums(torch.cat(new)), "fitted_mse": tail_sums(torch.cat(gains))}
    return {
        "probes": fitted + len(others),
        "left_out": left_out,
        "seconds": seconds,
        "dims": dims,
        **{key: [float(each[d]) for d in dims] for key, each in tails.items()},
    }


def _fit_leading(
    rotation: Rotation,
    draw: Callable[[int], Tensor],
    rounds: int,
    blocks: list[slice],
    meter: Meter,
    folder: Path | None,
) -> dict[str, Any]:
    """Fit the leading axes by subspace iteration, each pass on probes of its own."""
    dim, count = rotation.event_shape[0], rotation.directions
    device = rotation.gains.device
    block = blocks[0]  # the axes of v, if apart, stay as they are
    generator = torch.Generator().manual_seed(0)
    size = min(count + SPARE, block.stop)
    basis = torch.zeros(dim, size, device=device)
    basis[block] = torch.randn(block.stop, size, generator=generator).to(device)
    left_out, index, total = 0, 0, 0.0
    for number in range(PASSES):
        basis = torch.linalg.qr(basis).Q
        image, seen, total = torch.zeros_like(basis), 0, 0.0
        for _ in range(max(1, rounds // PASSES)):
            probes = draw(index).float()
            index += 1
            kept = probes[_inliers(probes)]
            left_out += len(probes) - len(kept)
            kept[:, block.stop :] = 0
            image.addmm_(kept.T, kept @ basis)
            total += float(kept.square().sum())
            seen += len(kept)
            meter.update(len(probes))
        image /= seen
        total /= seen
        if number < PASSES - 1:
            basis = image
    values, vectors = torch.linalg.eigh(basis.T @ image)
    axes, values = (basis @ vectors).flip(1)[:, :count], values.flip(0)[:count].clamp_min(0)
    rest = max(total - float(values.sum()), 0.0) / max(dim - count, 1)
    gains = torch.cat([values, values.new_full((dim - count,), rest)])
    rotation.fit(rotation.inverse(axes.T).T, gains)
    dims = [d for d in _grid(dim) if d <= count]
    tail = [float(total - values[:d].sum()) for d in dims]
    return {"probes": index * len(probes), "left_out": left_out, "seconds": 0.0, "dims": dims,
            "mse": tail, "fitted_mse": tail}  # fmt: skip


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
