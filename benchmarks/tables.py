"""Density, manifold and dimension of tables, compared with standard methods, and large tables.

    python -m benchmarks.tables tables --data=FOLDER
    python -m benchmarks.tables dimension
    python -m benchmarks.tables size

The folder has tables of ADBench as npz files with an array X. Each command prints the tables of
docs/evidence/tables.md. Measurements are kept in data/tables/, one file for each table and seed, so
that an interrupted command resumes. Durations are processor time of one thread.
"""

import json
import math
import resource
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from kedro.framework.startup import bootstrap_project
from scipy.stats import t as student
from sklearn.decomposition import PCA, KernelPCA
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from submanifold.config.schema import Experiment
from submanifold.data.prepare_table import prepare_table
from submanifold.data.settings import read_data_settings
from submanifold.evaluation.intervals import mean_interval
from submanifold.evaluation.metrics import format_interval
from submanifold.evaluation.scores import leading_spectrum
from submanifold.flows import noise_conditioning
from submanifold.models import Model
from submanifold.studies.experiments import CachedRun
from submanifold.training.cost import with_steps
from submanifold.training.phases import rotate_phase, train_phase
from submanifold.training.rotation import RotationSettings

RESULTS = Path("data/tables")
TABLES, COLUMNS = 10, 3
DISTINCT, MOST_FREQUENT, RESOLUTION = 20, 0.2, 0.01
TEST_ROWS = 2000
COMPONENTS = 1, 2, 4, 8, 16, 32, 64
BANDWIDTHS = np.geomspace(0.01, 1, 13)
KERNEL_ROWS = 2000  # of kernel PCA, whose time is cubic
POINTS, SPECTRA = 2500, 64
ESTIMATORS = "lPCA", "MLE", "TwoNN", "MOM", "TLE", "CorrInt", "MADA", "MiND_ML"
OUR_ESTIMATES = ("noise", "dimension"), ("spectrum", "spectrum"), ("nearest", "reconstruction")
SMALLEST_NOISE, SLOPE_SCALES, THRESHOLD, TOLERANCE = 0.01, (0.1, 0.25), 0.2, 0.01
ROW_GROUP, SCORED = 250_000, 1_000_000
CHECKS = 25  # validations of a network that is trained here

OURS, PLAIN = "noise-conditional", "without penalty"
MIXTURE, KERNEL, SPLINE = DENSITIES = "Gaussian mixture", "kernel density", "NSF"
MANIFOLDS = "PCA", "kernel PCA", "autoencoder"
SHARES = {"1/4": 0.25, "1/2": 0.5}

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Training, validation and test rows, float32, standardized by the training rows."""

folder = click.Path(exists=True, file_okay=False, path_type=Path)
data_option = click.option("--data", type=folder, required=True, help="Folder of npz files.")
steps_option = click.option("--steps", type=int, help="Of the flow; default: the method's.")
seeds_option = click.option("--seeds", default=3, show_default=True)
only_option = click.option("--only", help="TABLE,SEED: measure one, and print no table.")


# ---- data


def continuous_columns(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Select the columns that have a density, and add uniform noise of the width of their step.

    These columns have more than 20 distinct values, none of which is in more than a fifth of the
    rows. The step of a column is the smallest distance of its values if all are on a grid, but at
    least 0.01 standard deviations, so that repeated values have a bounded density.
    """
    columns = []
    for column in x.T.astype(np.float64):
        values, counts = np.unique(column, return_counts=True)
        if len(values) <= DISTINCT or counts.max() > MOST_FREQUENT * len(column):
            continue
        gaps = np.diff(values)
        steps = gaps / gaps.min()
        on_grid = np.allclose(steps, steps.round(), atol=1e-3)
        width = max(gaps.min() if on_grid else 0.0, RESOLUTION * column.std())
        columns.append(column + width * rng.random(len(column)))
    return np.stack(columns, 1) if columns else np.empty((len(x), 0))


def largest_tables(data: Path) -> dict[str, Path]:
    """Choose the ten tables with the most rows among those with at least three such columns."""
    sizes = {}
    for path in sorted(data.glob("*.npz")):
        x = _read(path)
        if continuous_columns(x, np.random.default_rng(0)).shape[1] >= COLUMNS:
            sizes[path] = len(x)
    chosen = sorted(sizes, key=lambda path: -sizes[path])[:TABLES]
    return {path.stem.split("_", 1)[-1]: path for path in chosen}


def split_rows(path: Path, seed: int) -> Rows:
    """Split the rows 80:10:10 by seed, and standardize them by the training rows."""
    rng = np.random.default_rng(seed)
    x = continuous_columns(_read(path), rng)
    x = x[rng.permutation(len(x))]
    train, valid, test = np.split(x, [int(0.8 * len(x)), int(0.9 * len(x))])
    mean, std = train.mean(0), train.std(0)
    first, second, third = (((part - mean) / std).astype(np.float32)
                            for part in (train, valid, test[:TEST_ROWS]))  # fmt: skip
    return first, second, third


def _read(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=True) as arrays:
        return arrays["X"]


# ---- results

Found = dict[str, dict[str, Any]]
"""Results by method."""
Measure = Callable[[Found], dict[str, Any]]
"""Function of the results so far."""


def measured(path: Path, methods: dict[str, Measure], what: str) -> Found:
    """Read results, and measure the methods of which there are none."""
    found: Found = json.loads(path.read_text()) if path.exists() else {}
    for name in [name for name in methods if name not in found]:
        torch.manual_seed(0)
        started = time.process_time()
        result = methods[name](found)
        found[name] = {"seconds": time.process_time() - started, **result}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
        click.echo(f"{what}, {name}: {found[name]['seconds']:.0f} s", err=True)
    return found


def over_seeds(values: Sequence[float], form: str) -> str:
    """Write a mean, and with several seeds the half-width of its 95% interval (Student's t)."""
    text = format(np.mean(values), form)
    if len(values) > 1:
        quantile = student.ppf(0.975, len(values) - 1)
        half = quantile * np.std(values, ddof=1) / math.sqrt(len(values))
        text += f" ± {half:{form}}"
    return text


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print rows as Markdown."""
    click.echo(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True) + "\n")


# ---- the method of this project


def train_flow(rows: Rows, seed: int, steps: int | None, penalty: bool = True) -> tuple[Any, float]:
    """Train the default method of tables; returns the model and the seconds.

    Without the penalty the likelihood is trained for the steps of both phases.
    """
    settings = _settings(rows[0])
    usual = {name: phase.training.steps for name, phase in settings.trainings.items()}
    factor = 1 if steps is None else steps / sum(usual.values())
    counts = {name: max(1, round(factor * count)) for name, count in usual.items()}
    first, *later = counts
    if not penalty:
        counts[first] += sum(counts.pop(name) for name in later)
    model: Any = None
    started = time.process_time()
    with TemporaryDirectory() as folder:
        for name, phase in settings.phases.items():
            arguments = seed, torch.device("cpu"), Path(folder) / name, name
            arguments[2].mkdir()
            if isinstance(phase, RotationSettings):
                model, _ = rotate_phase(phase, model, rows[0], *arguments)
            elif name in counts:
                chosen = with_steps(phase, counts[name])
                model, _ = train_phase(chosen, settings.model, model, *rows[:2], *arguments)
    return model.eval(), time.process_time() - started


def _settings(train: np.ndarray) -> Experiment:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        np.save(path, train[:200])
        params = {"dataset": "table", "data": {"path": str(path)}}
        return CachedRun("tables", params, Path.cwd(), None, False).settings


def log_probs(model: Any, x: np.ndarray) -> list[float]:
    """Log-density of rows at the smallest noise scale."""
    with torch.no_grad():
        batches = [model.log_prob(batch) for batch in torch.from_numpy(x).split(1024)]
    return torch.cat(batches).double().tolist()


def nearest_projections(model: Any, x: np.ndarray, dim: int) -> np.ndarray:
    """Project rows onto the manifold of a dimension."""
    manifold = model.at_dim(dim)
    batches = torch.from_numpy(x).split(1024)
    return torch.cat([manifold.project(batch, exact=True) for batch in batches]).numpy()


# ---- density


def gaussian_mixture(train: np.ndarray, valid: np.ndarray) -> GaussianMixture:
    """Fit a mixture with full covariances; the number of components has the lowest BIC."""
    x = np.concatenate([train, valid]).astype(np.float64)
    best, lowest = None, math.inf
    for components in COMPONENTS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 200 iterations may not suffice
            mixture = GaussianMixture(components, max_iter=200, random_state=0).fit(x)
        if (bic := mixture.bic(x)) >= lowest:
            break
        best, lowest = mixture, bic
    return best


def kernel_log_probs(kernels: Tensor, x: Tensor, bandwidths: Sequence[float]) -> np.ndarray:
    """Log-densities (n, bandwidths) of a Gaussian kernel density estimate, by matrix products."""
    dim, squared = kernels.shape[1], kernels.square().sum(1)
    found = []
    for some in x.split(64):
        distances = some.square().sum(1, keepdim=True) + squared - 2 * some @ kernels.T
        found.append(torch.stack([
            torch.logsumexp(-distances.clamp_min(0) / (2 * h**2), 1) - dim * math.log(h)
            for h in bandwidths
        ], 1))  # fmt: skip
    normalization = 0.5 * dim * math.log(2 * math.pi) + math.log(len(kernels))
    return (torch.cat(found).double() - normalization).numpy()


def kernel_density(train: np.ndarray, valid: np.ndarray, test: np.ndarray) -> dict[str, Any]:
    """Choose the bandwidth by the validation rows, and score with all rows but the test rows."""
    kernels, x = torch.from_numpy(train), torch.from_numpy(valid[:1000])
    bandwidth = float(BANDWIDTHS[kernel_log_probs(kernels, x, BANDWIDTHS).mean(0).argmax()])
    kernels = torch.from_numpy(np.concatenate([train, valid]))
    log_prob = kernel_log_probs(kernels, torch.from_numpy(test), [bandwidth])[:, 0]
    return {"log_prob": log_prob.tolist(), "bandwidth": bandwidth}


def train_plainly(
    parameters: Sequence[Tensor],
    loss: Callable[[Tensor], Tensor],
    network: nn.Module,
    rows: Rows,
    seconds: float,
) -> int:
    """Train by Adam at 0.001 and batches of 256; keep the weights of the best validation."""
    started, step, checks, best = time.process_time(), 0, 0, (math.inf, network.state_dict())
    train, valid = (torch.from_numpy(part) for part in rows[:2])
    optimizer = torch.optim.Adam(parameters, 1e-3)
    while checks < CHECKS:
        for batch in torch.randperm(len(train)).split(256):
            optimizer.zero_grad()
            loss(train[batch]).backward()
            optimizer.step()
            step += 1
            if time.process_time() - started > seconds * (checks + 1) / CHECKS:
                checks += 1
                with torch.no_grad():
                    value = loss(valid[:4096]).item()
                if value < best[0]:
                    best = value, {k: w.clone() for k, w in network.state_dict().items()}
                if checks == CHECKS:
                    break
    network.load_state_dict(best[1])
    return step


def spline_flow(rows: Rows, seconds: float) -> dict[str, Any]:
    """Train zuko's neural spline flow, 3 autoregressive transforms of width 128."""
    import zuko

    flow = zuko.flows.NSF(rows[0].shape[1], transforms=3, hidden_features=(128, 128))
    steps = train_plainly(
        [*flow.parameters()], lambda x: -flow().log_prob(x).mean(), flow, rows, seconds
    )
    with torch.no_grad():
        log_prob = flow().log_prob(torch.from_numpy(rows[2]))
    return {"log_prob": log_prob.tolist(), "steps": steps}


# ---- manifold


class Autoencoder(nn.Module):
    """Perceptrons with two hidden layers, of a width that gives a number of parameters."""

    def __init__(self, columns: int, dim: int, parameters: int):
        super().__init__()
        # 2 h^2 + 2 h (columns + dim + 2) = parameters
        linear = columns + dim + 2
        hidden = max(8, round((math.sqrt(linear**2 + 2 * parameters) - linear) / 2))
        self.encoder, self.decoder = (
            nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden),
                          nn.SiLU(), nn.Linear(hidden, outputs))
            for inputs, outputs in ((columns, dim), (dim, columns))
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct rows (batch, columns)."""
        return self.decoder(self.encoder(x))


def autoencoder(rows: Rows, dim: int, parameters: int, seconds: float) -> np.ndarray:
    """Train an autoencoder on the squared error, and reconstruct the test rows."""
    network = Autoencoder(rows[0].shape[1], dim, parameters)
    train_plainly(
        [*network.parameters()], lambda x: (network(x) - x).square().mean(), network, rows, seconds
    )
    with torch.no_grad():
        return network(torch.from_numpy(rows[2])).numpy()


def kernel_pca(rows: Rows, dim: int) -> np.ndarray:
    """Reconstruct the test rows by kernel PCA; the validation rows choose its two parameters."""
    train, valid, test = rows
    best, lowest = None, math.inf
    for gamma in (0.01, 0.1, 1.0):
        for alpha in (1e-3, 1e-1):
            model = KernelPCA(dim, kernel="rbf", gamma=gamma / train.shape[1], alpha=alpha,
                              fit_inverse_transform=True, random_state=0)  # fmt: skip
            model.fit(train[:KERNEL_ROWS])
            projected = model.inverse_transform(model.transform(valid[:KERNEL_ROWS]))
            error = np.square(projected - valid[:KERNEL_ROWS]).mean()
            if error < lowest:
                best, lowest = model, error
    return best.inverse_transform(best.transform(test))


def principal_components(rows: Rows, dim: int) -> np.ndarray:
    """Reconstruct the test rows by PCA."""
    model = PCA(dim).fit(rows[0])
    return model.inverse_transform(model.transform(rows[2]))


def dims_of(columns: int) -> dict[str, int]:
    """Return a quarter and half of the columns, rounded, at least 1."""
    return {share: max(1, round(columns * factor)) for share, factor in SHARES.items()}


def compare(path: Path, table: str, seed: int, steps: int | None) -> Found:
    """Measure all methods on one table with one seed: log-densities and errors of test rows."""
    rows = split_rows(path, seed)
    train, valid, test = rows
    dims = dims_of(train.shape[1])

    def errors(project: Callable[[int], np.ndarray]) -> dict[str, Any]:
        return {
            share: np.square(project(dim) - test).mean(1).tolist() for share, dim in dims.items()
        }

    def flow(penalty: bool) -> dict[str, Any]:
        model, seconds = train_flow(rows, seed, steps, penalty)
        return {
            "seconds": seconds,
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "log_prob": log_probs(model, test),
            **errors(lambda dim: nearest_projections(model, test, dim)),
        }

    def mixture(found: Found) -> dict[str, Any]:
        fitted = gaussian_mixture(train, valid)
        log_prob = fitted.score_samples(test).tolist()
        return {"log_prob": log_prob, "components": fitted.n_components}

    def networks(found: Found) -> dict[str, Any]:
        # one flow serves both dimensions, so both networks together have its time
        parameters, seconds = found[OURS]["parameters"], found[OURS]["seconds"] / len(dims)
        return errors(lambda dim: autoencoder(rows, dim, parameters, seconds))

    return measured(RESULTS / f"{table}-{seed}.json", {
        OURS: lambda found: flow(True),
        PLAIN: lambda found: flow(False),
        MIXTURE: mixture,
        KERNEL: lambda found: kernel_density(train, valid, test),
        SPLINE: lambda found: spline_flow(rows, found[OURS]["seconds"]),
        "PCA": lambda found: errors(lambda dim: principal_components(rows, dim)),
        "kernel PCA": lambda found: errors(lambda dim: kernel_pca(rows, dim)),
        "autoencoder": networks,
    }, f"{table} {seed}")  # fmt: skip


@click.group()
def main() -> None:
    """Run one of the benchmarks."""


@main.command()
@data_option
@seeds_option
@only_option
@steps_option
@click.option("--measured", is_flag=True, help="Print existing results, and measure nothing.")
def tables(data: Path, seeds: int, only: str | None, steps: int | None, measured: bool) -> None:
    """Density and manifold of the ten largest tables."""
    bootstrap_project(Path.cwd())
    paths = largest_tables(data)
    if only:
        table, seed = only.split(",")
        compare(paths[table], table, int(seed), steps)
        return
    found = {}
    for table, path in paths.items():
        exist = [seed for seed in range(seeds) if (RESULTS / f"{table}-{seed}.json").exists()]
        if runs := [
            json.loads((RESULTS / f"{table}-{seed}.json").read_text())
            if measured
            else compare(path, table, seed, steps)
            for seed in (exist if measured else range(seeds))
        ]:
            found[table] = runs
    click.echo("Log-likelihood of test rows, nats per row\n")
    density_table(found, paths)
    for share in SHARES:
        click.echo(f"Mean squared error of test rows, d = {share} of the columns\n")
        manifold_table(found, paths, share)


def density_table(found: dict[str, list[Found]], paths: dict[str, Path]) -> None:
    """Print the log-likelihood by table and method."""
    rows, first = [], 0
    for table, runs in found.items():
        means = {name: [float(np.mean(run[name]["log_prob"])) for run in runs]
                 for name in (OURS, *DENSITIES)}  # fmt: skip
        best = max(DENSITIES, key=lambda name: np.mean(means[name]))
        first += (difference := paired(runs, "log_prob", best))["value"] > 0
        shape = split_rows(paths[table], 0)[0].shape
        rows.append({
            "table": table,
            "training rows": f"{shape[0]:,}",
            "columns": shape[1],
            **{name: over_seeds(values, ".2f") for name, values in means.items()},
            f"{OURS} minus the best other": format_interval(difference, "+.3f"),
            "seconds": f"{np.mean([run[OURS]['seconds'] for run in runs]):.0f}",
        })  # fmt: skip
    print_table(rows)
    click.echo(f"First on {first} of {len(rows)} tables.\n")


def manifold_table(found: dict[str, list[Found]], paths: dict[str, Path], share: str) -> None:
    """Print the error at a dimension by table and method."""
    rows, first = [], 0
    for table, runs in found.items():
        columns = split_rows(paths[table], 0)[0].shape[1]
        means = {name: [float(np.mean(run[name][share])) for run in runs]
                 for name in (OURS, PLAIN, *MANIFOLDS) if name in runs[0]}  # fmt: skip
        best = min(MANIFOLDS, key=lambda name: np.mean(means[name]))
        first += paired(runs, share, best)["value"] < 0
        lost = "not measured"
        if PLAIN in runs[0]:
            bits = paired(runs, "log_prob", PLAIN)["value"] / columns / math.log(2)
            lost = f"{-bits:.3f}"
        rows.append({
            "table": table,
            "d": f"{dims_of(columns)[share]} of {columns}",
            **{name: over_seeds(values, ".4f") for name, values in means.items()},
            "bits per dimension lost": lost,
        })  # fmt: skip
    print_table(rows)
    click.echo(f"First on {first} of {len(rows)} tables.\n")


def paired(runs: list[Found], quantity: str, other: str) -> dict[str, Any]:
    """Mean difference from another method at the same test rows, with its interval."""
    differences = [np.subtract(run[OURS][quantity], run[other][quantity]) for run in runs]
    return mean_interval(np.concatenate(differences))


# ---- dimension


def noise_slope(model: Any, x: np.ndarray, columns: int) -> float:
    r"""Estimate the dimension by how the log-density changes with the noise scale.

    Noise of scale sigma spreads a density on a manifold over D - d directions, so that
    :math:`d = D + \partial \log p_\sigma / \partial \log \sigma` (Tempczyk et al. 2022). The slope
    is that of the median between two scales in :data:`SLOPE_SCALES`.
    """
    generator = torch.Generator().manual_seed(0)
    medians = []
    for scale in SLOPE_SCALES:
        batch = torch.from_numpy(x)
        noise = torch.randn(batch.shape, generator=generator)
        given = math.log(scale / SMALLEST_NOISE) / -math.log(SMALLEST_NOISE)
        with torch.no_grad(), noise_conditioning(model, torch.full((len(x),), given)):
            medians.append(model.log_prob(batch + scale * noise).median().item())
    low, high = SLOPE_SCALES
    return columns + (medians[1] - medians[0]) / math.log(high / low)


def spectrum(model: Any, x: np.ndarray, columns: int) -> float:
    """Mean number of directions in which the decoder moves rows by 0.2 or more, softly counted."""
    full = model.at_dim(columns)
    u = full.encode(torch.from_numpy(x[:SPECTRA]))[0].detach()
    eigenvalues = leading_spectrum(full, u, columns)
    return (eigenvalues / (eigenvalues + THRESHOLD**2)).sum(1).mean().item()


def reconstruction(model: Any, x: np.ndarray, columns: int) -> float:
    """Smallest dimension whose nearest projections have a mean squared error below 0.01."""
    for dim in range(1, columns):
        if np.square(nearest_projections(model, x, dim) - x).mean() < TOLERANCE:
            return dim
    return columns


def estimate_dimensions(name: str, points: np.ndarray, seed: int, steps: int | None) -> Found:
    """Estimate the dimension of one set of points by all methods."""
    import skdim

    def classical(estimator: str) -> Measure:
        return lambda found: {
            "dimension": float(getattr(skdim.id, estimator)().fit(points).dimension_)
        }

    def ours(found: Found) -> dict[str, Any]:
        std = points.std(0)
        varying = std > 1e-6 * std.max()
        x = ((points - points.mean(0)) / np.where(varying, std, 1))[:, varying].astype(np.float32)
        columns, held_out = x.shape[1], x[: len(x) // 10]
        model, _ = train_flow((x[len(x) // 10 :], held_out, held_out), seed, steps)
        return {
            "dimension": noise_slope(model, held_out, columns),
            "spectrum": spectrum(model, held_out, columns),
            "reconstruction": reconstruction(model, held_out, columns),
        }

    methods = {estimator: classical(estimator) for estimator in ESTIMATORS}
    path = RESULTS / "dimension" / f"{name}-{seed}.json"
    return measured(path, {**methods, OURS: ours}, f"{name} {seed}")


@main.command()
@seeds_option
@steps_option
def dimension(seeds: int, steps: int | None) -> None:
    """Dimension of the manifolds of scikit-dimension, 2,500 points each."""
    from skdim.datasets import BenchmarkManifolds

    bootstrap_project(Path.cwd())
    estimates: dict[str, list[Found]] = {}
    for seed in range(seeds):
        manifolds = BenchmarkManifolds(random_state=seed)
        truth = manifolds.truth["Intrinsic Dimension"]
        for name, points in manifolds.generate(n=POINTS).items():
            found = estimate_dimensions(name, points, seed, steps)
            kept = {key: {"dimension": found[OURS][quantity]} for key, quantity in OUR_ESTIMATES}
            estimates.setdefault(name, []).append({**found, **kept})
    names = [*ESTIMATORS, *(key for key, _ in OUR_ESTIMATES)]
    rows = [
        {
            "manifold": name,
            "dimension": int(truth[name]),
            **{each: f"{np.mean([run[each]['dimension'] for run in runs]):.1f}" for each in names},
        }
        for name, runs in estimates.items()
    ]
    errors: dict[str, Any] = {"manifold": "mean relative error", "dimension": ""}
    for each in names:
        by_seed = [
            float(np.mean([abs(runs[seed][each]["dimension"] / truth[name] - 1)
                           for name, runs in estimates.items()]))
            for seed in range(seeds)
        ]  # fmt: skip
        errors[each] = over_seeds(by_seed, ".3f")
    print_table([*rows, errors])


# ---- size


def generate(path: Path, count: int, columns: int) -> None:
    """Write rows on a noisy surface of five dimensions; a fifth of the columns are integers."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((2, 5, columns))
    names = [f"c{number}" for number in range(columns)]
    writer = None
    for start in range(0, count, ROW_GROUP):
        u = rng.standard_normal((min(ROW_GROUP, count - start), 5))
        x = u @ mixing[0] + np.sin(u @ mixing[1]) + 0.1 * rng.standard_normal((len(u), columns))
        chunk = {name: np.floor(10 * column).astype(np.int32) if index % 5 == 4 else column
                 for index, (name, column) in enumerate(zip(names, x.T, strict=True))}  # fmt: skip
        table = pa.table(chunk)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer:
        writer.close()


def prepare_rows(path: Path, folder: Path) -> int:
    """Prepare the arrays of a table; returns the number of rows."""
    settings = read_data_settings({"source": "table", "path": str(path)})
    _, _, _, manifest = prepare_table(settings, folder, folder)
    return sum(manifest["counts"].values())


def train_rows(folder: Path) -> int:
    """Train on the prepared rows, and write the model; returns the number of rows of all steps."""
    train, valid = (np.load(folder / f"{part}.npy", mmap_mode="c") for part in ("train", "valid"))
    bootstrap_project(Path.cwd())
    settings = _settings(train)
    model, _ = train_flow((train, valid, valid), 0, None)
    model.save(folder / "model.pt")
    return sum(each.training.steps * each.training.batch_size
               for each in settings.trainings.values())  # fmt: skip


def score_rows(path: Path, folder: Path) -> int:
    """Compute the log-density of the first million rows; returns their number."""
    model = Model.load(folder / "model.pt", "cpu")
    settings = read_data_settings({"source": "table", "path": str(path)})
    preprocessor = settings.read(folder).preprocessor
    count = 0
    for batch in pq.ParquetFile(path).iter_batches(ROW_GROUP // 10):
        frame = batch.to_pandas()
        found = np.array(log_probs(model, preprocessor.transform(frame)))
        assert np.isfinite(found + preprocessor.log_det(frame)).all()
        count += len(frame)
        if count >= SCORED:
            break
    return count


def in_process(function: Callable[..., int], *arguments: Any) -> dict[str, str]:
    """Run a function in a fresh process, and measure its time and peak memory."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        rows, processor, seconds, memory = pool.submit(_measured, function, *arguments).result()
    return {
        "step": function.__name__.removesuffix("_rows"),
        "rows": f"{rows:,}",
        "seconds": f"{seconds:.0f}",
        "processor seconds": f"{processor:.0f}",
        "rows per processor second": f"{rows / processor:,.0f}",
        "peak memory, MB": f"{memory / 1e6:,.0f}",
    }


def _measured(function: Callable[..., int], *arguments: Any) -> tuple[int, float, float, float]:
    torch.set_num_threads(1)
    began, started = time.monotonic(), time.process_time()
    rows = function(*arguments)
    memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return rows, time.process_time() - started, time.monotonic() - began, memory


@main.command()
@click.option("--rows", default=10_000_000, show_default=True)
@click.option("--columns", default=30, show_default=True)
def size(rows: int, columns: int) -> None:
    """Preparation, training and scoring of a large Parquet file."""
    with TemporaryDirectory(dir=RESULTS.parent) as name:
        folder = Path(name)
        path = folder / "rows.parquet"
        generate(path, rows, columns)
        print_table([
            in_process(prepare_rows, path, folder / "prepared"),
            in_process(train_rows, folder / "prepared"),
            in_process(score_rows, path, folder / "prepared"),
        ])  # fmt: skip


if __name__ == "__main__":
    main()
