"""Rotations of the latents that depend on the point, for the sake of the encoder's projection.

    python -m benchmarks.point_rotations --celeba img_align_celeba.zip
    python -m benchmarks.point_rotations --celeba img_align_celeba.zip --model model.safetensors

A map of z that preserves N(0, I) leaves the likelihood alone, so it can be trained on the error of
the projection by itself, with the flow frozen (docs/beyond.md). The base is this project's default
Glow, trained on CelebA by likelihood alone and rotated (`training.rotation`), or a model of yours.
A form is trained on images that each keep a number of latents of their own, log-uniform, with the
error divided by the root of PCA's, so that many latents count as well as few. The control is one
rotation for all points, trained just so. What is measured is kept in ``--folder``; the tables go to
``<folder>/point-rotations-<model>.md``.
"""

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.ideas import reflected
from benchmarks.images import Images, add_options, load
from benchmarks.quality import CPU, DEFAULT, MUON, Bench, Contender, table
from submanifold.common.device import autocast, choose_precision
from submanifold.common.progress import ProgressBar
from submanifold.data.batches import Batches
from submanifold.evaluation.baselines import PCA
from submanifold.flows import Flow, Glow, Rotation, Split
from submanifold.flows.bijection import full_precision
from submanifold.geometry.nearest import nearest_point
from submanifold.models import Hierarchy, Stage
from submanifold.training.rotation import fit_rotation

DIMS = (100, 500, 1000)
FEWEST, MOST = 50, 2000  # latents that an image keeps in training
BATCH = 64
NEAREST_IMAGES = 64
OUTLIER = 8.0  # times the median error of a batch: a few decoders are nearly singular
PROBES = 4
CONTROL = "one rotation for all points, trained (control)"
BOTH = "the control, then A: 300, 80 and 20 turn the others"

Decode = Callable[[Tensor], Tensor]


class OneRotation(Flow):
    r"""The control: one rotation for all points, a product of pairs of reflections.

    .. math:: z' = \prod_i H(b_i + \delta_i) H(b_i)\, z, \qquad H(b) = I - 2 b b^T / |b|^2

    with :math:`\delta = 0` at the start, so that it starts as the identity.
    """

    axes = 1

    def __init__(self, dim: int, pairs: int):
        super().__init__()
        self.event_shape = (dim,)
        self.start = nn.Parameter(torch.randn(dim, pairs) / math.sqrt(dim))
        self.change = nn.Parameter(torch.zeros(dim, pairs))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with full_precision(x):
            v, triangle = self._factors()
            return x - ((x @ v) @ triangle) @ v.T, x.new_zeros(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        with full_precision(z):
            v, triangle = self._factors()
            return z - ((z @ v) @ triangle.T) @ v.T

    def _factors(self) -> tuple[Tensor, Tensor]:
        """V and T of :math:`I - V T V^T` (Schreiber & Van Loan 1989)."""
        end = self.start + self.change / math.sqrt(len(self.start))
        v = F.normalize(torch.stack([self.start, end], 2).flatten(1), dim=0)
        eye = torch.eye(v.shape[1])
        return v, torch.linalg.solve_triangular(eye / 2 + (v.T @ v).triu(1), eye, upper=True)


class Reflections(Flow):
    """Form A: some latents turned by pairs of reflections that a net makes of other latents.

    Args:
        dim: Number of latents.
        seen: Those that the net sees, first and last.
        turned: Those that are turned, first and last; the others stay.
        pairs: Of reflections, of which one starts as the other and moves with the point.
    """

    axes = 1

    def __init__(
        self, dim: int, seen: tuple[int, int], turned: tuple[int, int], pairs: int, width: int = 16
    ):
        super().__init__()
        self.event_shape = (dim,)
        self.seen, self.turned, self.pairs = slice(*seen), slice(*turned), pairs
        count = turned[1] - turned[0]
        self.net = nn.Sequential(
            nn.Linear(seen[1] - seen[0], width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, pairs * count),
        )
        nn.init.zeros_(self.net[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.net[-1].bias)  # type: ignore[arg-type]
        self.start = nn.Parameter(torch.randn(pairs, count) / math.sqrt(count))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._turn(x, False), x.new_zeros(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        return self._turn(z, True)

    def _turn(self, z: Tensor, back: bool) -> Tensor:
        with full_precision(z):
            change = self.net(z[:, self.seen]).view(len(z), *self.start.shape)
            b = z[:, self.turned]
            moved = self.start + change / math.sqrt(self.start.shape[1])
            for n in reversed(range(self.pairs)) if back else range(self.pairs):
                pair = (self.start[n], moved[:, n])
                for v in pair[::-1] if back else pair:
                    b = b - 2 * (b * v).sum(1, keepdim=True) / v.square().sum(-1, keepdim=True) * v
            return torch.cat([z[:, : self.turned.start], b, z[:, self.turned.stop :]], 1)


class PatchRotations(Flow):
    """Form B: each level's latents turned at each position, by a net of the coarser levels.

    The net sees what a split keeps and what the split predicts from it, which is there in both
    directions. It makes an antisymmetric A for each patch; the rotation is Cayley's
    (I - A)^-1 (I + A).

    Args:
        glow: The flow, frozen.
        patch: Side of the patches whose pixels are turned together.
    """

    axes = 3

    def __init__(self, glow: Glow, patch: int, width: int = 48):
        super().__init__()
        self.glow, self.event_shape, self.patch = glow, glow.event_shape, patch
        nets = []
        for channels, _, _ in glow.latent_shapes[:-1]:
            size = channels * patch**2
            last = nn.Conv2d(width, size * (size - 1) // 2, 1)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]
            hidden = nn.Conv2d(3 * size, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, width, 1)
            nets.append(nn.Sequential(*hidden, nn.SiLU(), last))
        self.nets = nn.ModuleList(nets)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.contiguous(memory_format=torch.channels_last)
        log_det, found = x.new_zeros(len(x)), []
        for level, split, net in zip(self.glow.levels, self.glow.splits, self.nets, strict=False):
            x, of_level = level(x)
            x, latent, of_split = split(x)
            log_det = log_det + of_level + of_split
            found.append(self._turn(net, split, x, latent, False))
        x, of_level = self.glow.levels[-1](x)
        return torch.cat([z.flatten(1) for z in (x, *reversed(found))], 1), log_det + of_level

    def inverse(self, z: Tensor) -> Tensor:
        glow = self.glow
        shapes = glow.latent_shapes[::-1]
        x, *latents = (
            part.view(-1, *shape).contiguous(memory_format=torch.channels_last)
            for part, shape in zip(z.split([*map(math.prod, shapes)], 1), shapes, strict=True)
        )
        x = glow.levels[-1].inverse(x)
        levels = reversed([*zip(glow.levels[:-1], glow.splits, self.nets, strict=True)])
        for (level, split, net), latent in zip(levels, latents, strict=True):
            x = level.inverse(split.inverse(x, self._turn(net, split, x, latent, True)))
        return x

    def _turn(self, net: nn.Module, split: Split, kept: Tensor, z: Tensor, back: bool) -> Tensor:
        with full_precision(z):
            seen = torch.cat([kept, *split._prior(kept)], 1).contiguous()
            numbers = net(F.pixel_unshuffle(seen, self.patch)).permute(0, 2, 3, 1)
            b = F.pixel_unshuffle(z.contiguous(), self.patch).permute(0, 2, 3, 1)
            size = b.shape[3]
            lower = torch.zeros(*b.shape, size)
            row, column = torch.tril_indices(size, size, -1)
            lower[..., row, column] = numbers / math.sqrt(size)
            a = (lower.mT - lower) if back else (lower - lower.mT)
            turned = torch.linalg.solve(torch.eye(size) - a, b[..., None] + a @ b[..., None])
            turned = F.pixel_shuffle(turned[..., 0].permute(0, 3, 1, 2).contiguous(), self.patch)
            return turned.contiguous(memory_format=torch.channels_last)


class Sorted(Flow):
    """Form C: a net predicts from the first latents the order of the other eigenvalues.

    Args:
        eigenvalues: Mean eigenvalues, (D,): those of the rotation.
        seen: How many the net sees; they stay first.
    """

    axes = 1

    def __init__(self, eigenvalues: Tensor, seen: int, width: int = 256):
        super().__init__()
        self.event_shape, self.seen, self.eigenvalues = (
            (len(eigenvalues),),
            seen,
            eigenvalues.clamp_min(1e-12),
        )
        last = nn.Linear(width, len(eigenvalues) - seen)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        hidden = nn.Linear(seen, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        self.net = nn.Sequential(*hidden, last)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        order = self._order(x)
        rest = x[:, self.seen :].gather(1, order)
        return torch.cat([x[:, : self.seen], rest], 1), x.new_zeros(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        rest = z[:, self.seen :]
        rest = torch.zeros_like(rest).scatter(1, self._order(z), rest)
        return torch.cat([z[:, : self.seen], rest], 1)

    def _order(self, z: Tensor) -> Tensor:
        with full_precision(z):
            log_gains = self.net(z[:, : self.seen]) + self.eigenvalues[self.seen :].log()
        return torch.argsort(log_gains, dim=1, descending=True, stable=True)

    def fit(self, z: Tensor, squares: Tensor, steps: int) -> None:
        """Fit the net to squared probes (N, D), each of mean gain, by an exponential likelihood."""
        shares = squares[:, self.seen :] / self.eigenvalues[self.seen :]
        adam = torch.optim.Adam(self.net.parameters(), 2e-3)
        for step in range(steps):
            adam.param_groups[0]["lr"] = 2e-3 * min(1.0, 2 - 2 * step / steps)
            rows = torch.randint(len(z), (2 * BATCH,))
            log_ratio = self.net(z[rows, : self.seen])
            loss = (shares[rows] * (-log_ratio).exp() + log_ratio).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()


def stages(glow: Flow, rotation: Rotation, *more: Flow) -> Hierarchy:
    """Make the model whose latents go through some more maps."""
    return Hierarchy([Stage([glow, rotation, *more], rotation.event_shape[0])]).eval()


def latents(model: Hierarchy, x: Tensor) -> Tensor:
    """All latents of images, (batch, D)."""
    return model.stages[0].flow(x)[0]


def keep(z: Tensor, counts: Tensor | int) -> Tensor:
    """Set latents (batch, D) to zero after the first few, a number or one for each row."""
    return z * (torch.arange(z.shape[1]) < torch.as_tensor(counts)[..., None])


def squared_error(x: Tensor, y: Tensor) -> Tensor:
    """Mean over the pixels of each image, (batch,)."""
    return (x - y).square().flatten(1).mean(1)


def train(model: Hierarchy, images: Images, pca: Tensor, steps: int, rate: float, name: str) -> Any:
    """Train what of a model can be on the projection alone.

    Args:
        model: The model, of which only the form has weights that learn.
        images: The data set.
        pca: PCA's error by the number of axes.
        steps: Of Adam.
        rate: Its learning rate.
        name: What the progress bar says.
    """
    weights = [each for each in model.parameters() if each.requires_grad]
    adam = torch.optim.Adam(weights, rate, betas=(0.9, 0.99))
    precision = choose_precision("auto", weights[0])
    batches, flow = Batches(images.train, BATCH, 1), model.stages[0].flow
    with ProgressBar(name, "steps", steps, every=60) as meter:
        for step in range(steps):
            share = min(1.0, (step + 1) / 20, 2 - 2 * step / steps)
            adam.param_groups[0]["lr"] = rate * share
            x = reflected(batches.at(step))
            uniform = torch.rand(len(x), generator=batches.generator)
            counts = (FEWEST * (MOST / FEWEST) ** uniform).long()
            with autocast(CPU, precision):
                y = flow.inverse(keep(latents(model, x), counts))
            error = squared_error(x, y) / pca[counts].sqrt()
            error[error <= OUTLIER * error.detach().median()].mean().backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            adam.step()
            adam.zero_grad()
            meter.update(1)


@torch.no_grad()
def errors(model: Hierarchy, images: Images) -> list[float]:
    """Mean squared error of the encoder's projections of test images, by :data:`DIMS`."""
    rows = []
    for x in Batches(images.test, 256):
        z, decode = latents(model, x), model.stages[0].flow.inverse
        rows.append(torch.stack([squared_error(x, decode(keep(z, d))) for d in DIMS], 1))
    return torch.cat(rows).mean(0).tolist()


@torch.no_grad()
def nearest(model: Hierarchy, images: Images) -> list[float]:
    """The same of the nearest points that three Gauss-Newton steps find, for fewer images."""
    x = next(iter(Batches(images.test[:NEAREST_IMAGES], NEAREST_IMAGES)))
    rotation = model.stages[0].flows[1]
    assert isinstance(rotation, Rotation)
    eigenvalues, found = rotation.eigenvalues, []
    for d in DIMS:
        rest = len(eigenvalues) - d

        def decode(u: Tensor, rest: int = rest) -> Tensor:
            return model.stages[0].flow.inverse(F.pad(u, (0, rest)))

        u = nearest_point(decode, x, latents(model, x)[:, :d], 3, eigenvalues[:d])
        found.append(squared_error(x, decode(u)).mean().item())
    return found


@torch.no_grad()
def bits(model: Hierarchy, images: Images) -> Tensor:
    """Bits per dimension of the test images."""
    return torch.cat([model.bits_per_dim(x) for x in Batches(images.test, 256)])


def metric(decode: Decode, z: Tensor) -> Tensor:
    """J^T J of the decoder at one point (1, D), (D, D)."""
    rows = []
    for some in torch.eye(z.shape[1]).split(BATCH):
        points = z.expand(len(some), -1).clone().requires_grad_()
        rows.append(torch.autograd.grad(decode(points).flatten(1), points, some)[0])
    jacobian = torch.cat(rows)
    return jacobian.T @ jacobian


def bounds(model: Hierarchy, images: Images, count: int) -> dict[str, list[list[float]]]:
    """What could be gained at some test images, were their own decoder's derivative known.

    Returns:
        By name, for each image, errors by :data:`DIMS`: those ``to first order`` are of the
        metric, the others are of images.
    """
    decode = model.stages[0].flow.inverse
    found: dict[str, list[list[float]]] = {}

    def add(name: str, values: list[Tensor]) -> None:
        found.setdefault(name, []).append([float(value) for value in values])

    for x in Batches(images.test[:count], 1):
        with torch.no_grad():
            z = latents(model, x)
        own = metric(decode, z)
        values, axes = torch.linalg.eigh(own)
        values, axes, diagonal = values.flip(0).clamp_min(0), axes.flip(1), own.diagonal()
        order = diagonal.argsort(descending=True)
        pixels = len(values)

        def miss(kept: Tensor, x: Tensor = x) -> Tensor:
            with torch.no_grad():
                return squared_error(x, decode(kept)).squeeze()

        def onto(part: Tensor, z: Tensor = z) -> Tensor:
            return z @ part @ part.T

        add("the rotation", [miss(keep(z, d)) for d in DIMS])
        add("the rotation, to first order", [diagonal[d:].sum() / pixels for d in DIMS])
        add("own rotation", [miss(onto(axes[:, :d])) for d in DIMS])
        add("own rotation, to first order", [values[d:].sum() / pixels for d in DIMS])
        mask = torch.zeros(pixels).scatter
        kept = [mask(0, order[:d], 1.0) * z for d in DIMS]
        add("own order of the rotated latents", [miss(each) for each in kept])
        first_order = [diagonal[order[d:]].sum() / pixels for d in DIMS]
        add("own order of the rotated latents, to first order", first_order)
        sees = [d // 2 for d in DIMS]
        there = [metric(decode, keep(z, m))[m:, m:] for m in sees]
        turned = [torch.linalg.eigh(each)[1].flip(1) for each in there]
        parts = []
        for m, d, rest in zip(sees, DIMS, turned, strict=True):
            b = z[:, m:] @ rest[:, : d - m] @ rest[:, : d - m].T
            parts.append(miss(torch.cat([z[:, :m], b], 1)))
        add("own rotation where only the first d/2 latents are known, of the others", parts)
    return found


def probe(model: Hierarchy, images: Images) -> tuple[Tensor, Tensor]:
    """Latents of the training images, and the mean of their probes' squares, both (N, D)."""
    points, squares = [], []
    generator = torch.Generator().manual_seed(0)
    for x in Batches(images.train, BATCH):
        z = latents(model, x).detach().requires_grad_()
        with autocast(CPU, choose_precision("auto", z)):
            y = model.stages[0].flow.inverse(z)
        total = torch.zeros_like(z)
        for _ in range(PROBES):
            signs = 2.0 * torch.randint(2, y.shape, generator=generator) - 1
            total += torch.autograd.grad(y, z, signs, retain_graph=True)[0].square() / PROBES
        points.append(z.detach())
        squares.append(total)
    z, square = torch.cat(points), torch.cat(squares)
    sizes = square.sum(1)
    return z[sizes < 16 * sizes.median()], square[sizes < 16 * sizes.median()]


def make_base(images: Images, steps: int, seed: int, path: Path) -> Hierarchy:
    """Train the default Glow by likelihood alone, and rotate its latents; or read it."""
    if not path.exists():
        trainer, batches = Contender("submanifold", MUON, DEFAULT).start(images, seed, steps)
        with ProgressBar("base", "steps", steps, every=60) as meter:
            for step in range(steps):
                trainer.step(batches.at(step), batches.generator)
                meter.update(1)
        trainer.ema.swap()
        model: Hierarchy = trainer.model  # type: ignore[assignment]
        fit_rotation(model.eval(), Batches(images.train, BATCH, seed))
        path.parent.mkdir(parents=True, exist_ok=True)
        model.save(path)
    return Hierarchy.load(path)


def forms(glow: Glow, rotation: Rotation) -> dict[str, Callable[[], Hierarchy]]:
    """Say what is tried: by name, what builds a model with it."""
    dim = rotation.event_shape[0]
    after = partial(stages, glow, rotation)
    turn = partial(Reflections, dim)

    def splits(pairs: int) -> list[Flow]:
        return [turn((0, m), (m, dim), pairs) for m in (300, 80, 20)]

    return {
        CONTROL: lambda: after(OneRotation(dim, 64)),
        BOTH: lambda: after(OneRotation(dim, 64), *splits(8)),
        "A: 300, 80 and 20 turn the others": lambda: after(*splits(8)),
        "A: 50 turn the others": lambda: after(turn((0, 50), (50, dim), 8)),
        "A: 100 and the others turn each other": lambda: after(
            turn((0, 100), (100, dim), 8),
            turn((100, dim), (0, 100), 8),
            turn((0, 100), (100, dim), 8),
        ),
        "B: the pixels of each level, by coarser ones": lambda: stages(
            PatchRotations(glow, 1), rotation
        ),
        "B: 2x2 pixels at once": lambda: stages(PatchRotations(glow, 2), rotation),
    }


def rows_of(bench: Bench, label: str, model: Hierarchy, options: argparse.Namespace) -> str:
    """Measure what is missing, and write the tables."""
    images = bench.images
    glow, rotation = model.stages[0].flows
    assert isinstance(glow, Glow)
    assert isinstance(rotation, Rotation)
    base = stages(glow, rotation).requires_grad_(False)
    pca = PCA.fit(Batches(images.train, 1024))
    curve = pca.error_curve(Batches(images.valid, 1024))[0].float()
    before = bits(base, images)
    test = pca.error_curve(Batches(images.test, 1024))[0]
    head = ["encoder's projection", *(f"d = {d}" for d in DIMS), "largest change of bits"]
    rows = [head, ["PCA", *(f"{test[d]:.5f}" for d in DIMS), ""]]
    reference = bench.get(f"{label}/rotation", partial(errors, base, images))
    rows.append(["the rotation", *(f"{value:.5f}" for value in reference), ""])

    def add(name: str, found: dict[str, Any]) -> None:
        pairs = zip(found["errors"], reference, strict=True)
        cells = [f"{value:.5f} ({value / of - 1:+.0%})" for value, of in pairs]
        rows.append([name, *cells, f"{found['bits']:.1e}"])
        print(table([head, rows[-1]]), flush=True)

    def measure(found: Hierarchy) -> dict[str, Any]:
        row = {"errors": errors(found, images)}
        return {**row, "bits": (bits(found, images) - before).abs().max().item()}

    def fit_form(name: str, make: Callable[[], Hierarchy]) -> dict[str, Any]:
        torch.manual_seed(options.seed)
        found = make()
        train(found, images, curve, options.form_steps, options.rate, name)
        row = measure(found)
        return {**row, "nearest": nearest(found, images)} if name in (CONTROL, BOTH) else row

    def sort() -> dict[str, Any]:
        torch.manual_seed(options.seed)
        order = Sorted(rotation.eigenvalues, 50)
        order.fit(*probe(base, images), steps=600)
        return measure(stages(glow, rotation, order))

    tried = forms(glow, rotation)
    close = {"the rotation": bench.get(f"{label}/nearest", partial(nearest, base, images))}
    for number, (name, make) in enumerate(tried.items()):
        key = f"{label}/form-{number}-{options.form_steps}-{options.seed}"
        found = bench.get(key, partial(fit_form, name, make))
        add(name, found)
        if "nearest" in found:
            close[name] = found["nearest"]
    add("C: 50 order the others", bench.get(f"{label}/sorted-{options.seed}", sort))
    page = [table(rows)]
    head = [f"nearest point, 3 steps, {NEAREST_IMAGES} test images", *head[1:-1]]
    page.append(table([head, *([k, *(f"{v:.5f}" for v in row)] for k, row in close.items())]))
    count = options.bound_images
    if not count:
        return "\n".join(page)
    found = bench.get(f"{label}/bounds-{count}", partial(bounds, base, images, count))
    head = [f"median of {count} test images", *head[1:]]
    medians = {k: torch.tensor(v).median(0)[0].tolist() for k, v in found.items()}
    page.append(table([head, *([k, *(f"{v:.5f}" for v in row)] for k, row in medians.items())]))
    return "\n".join(page)


def main() -> None:
    """Measure what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.set_defaults(data=["celeba"])
    parser.add_argument("--model", type=Path, help="a rotated Glow; else one is trained")
    parser.add_argument("--steps", type=int, default=2400, help="of the base's training")
    parser.add_argument("--form-steps", type=int, default=400, help="of each form's training")
    parser.add_argument("--rate", type=float, default=2e-3, help="of each form's training")
    parser.add_argument("--bound-images", type=int, default=8, help="0: no bounds")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for data in options.data:
        bench = Bench(options.folder, data, load(data, options))
        label = f"point-rotations-{options.model.stem if options.model else options.steps}"
        path = options.model or options.folder / data / label / "base.safetensors"
        model = make_base(bench.images, options.steps, options.seed, path)
        page = rows_of(bench, label, model, options)
        (options.folder / f"{label}-{data}.md").write_text(page)
        print(page)


if __name__ == "__main__":
    main()
