"""Density and manifold of tables, compared with standard methods.

    python -m benchmarks.tables --data=FOLDER

The folder has tables of ADBench as npz files with an array X. Prints tables of
docs/evidence/tables.md. Measurements are kept in data/tables/, one file for each table and seed, so
that an interrupted command resumes. Durations are processor time of one thread.
"""

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from sklearn.decomposition import PCA, KernelPCA
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from benchmarks.results import markdown, over_seeds
from submanifold.common.files import read_json, write_json
from submanifold.evaluation.intervals import mean_interval
from submanifold.evaluation.metrics import format_interval
from submanifold.inference.predictor import Predictor
from submanifold.sklearn import ManifoldFlow

RESULTS = Path("data/tables")
TABLES, COLUMNS = 10, 3
DISTINCT, MOST_FREQUENT, RESOLUTION = 20, 0.2, 0.01
TEST_ROWS = 2000
COMPONENTS = 1, 2, 4, 8, 16, 32, 64
BANDWIDTHS = np.geomspace(0.01, 1, 13)
KERNEL_ROWS = 2000  # of kernel PCA, whose time is cubic
CHECKS = 25  # validations of a network that is trained here

OURS = "ManifoldFlow"
MIXTURE, KERNEL, SPLINE = DENSITIES = "Gaussian mixture", "kernel density", "NSF"
MANIFOLDS = "PCA", "kernel PCA", "autoencoder"
SHARES = {"1/4": 0.25, "1/2": 0.5}

# training, validation and test rows, float32, standardized by the training rows
Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


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
    first, second, third = (
        ((part - mean) / std).astype(np.float32) for part in (train, valid, test[:TEST_ROWS])
    )
    return first, second, third


def _read(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=True) as arrays:
        return arrays["X"]


Measures = dict[str, dict[str, Any]]  # results by method
RunsByTable = dict[str, list[Measures]]


def measured(path: Path, methods: dict[str, Callable[[Measures], Any]], what: str) -> Measures:
    """Read results, and measure the methods of which there are none, knowing those before."""
    measures: Measures = read_json(path) or {}
    for name in [name for name in methods if name not in measures]:
        torch.manual_seed(0)
        started = time.process_time()
        result = methods[name](measures)
        measures[name] = {"seconds": time.process_time() - started, **result}
        write_json(path, measures)
        click.echo(f"{what}, {name}: {measures[name]['seconds']:.0f} s", err=True)
    return measures


# ---- methods


def manifold_flow(rows: Rows, dims: Mapping[str, int], seed: int) -> dict[str, Any]:
    """Fit the default estimator, and measure nearest projections at each dimension."""
    train, valid, test = rows
    started = time.process_time()
    flow = ManifoldFlow(random_state=seed).fit(np.concatenate([train, valid]))
    seconds = time.process_time() - started
    model = getattr(flow.model_, "manifold", flow.model_)  # of several models of the density
    return {
        "seconds": seconds,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "log_prob": flow.score_samples(test).tolist(),
        **{
            share: np.square(
                Predictor(flow.model_.at_dim(dim)).project(test, nearest=True)[0] - test
            )
            .mean(1)
            .tolist()
            for share, dim in dims.items()
        },
    }


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
    """Log-densities (n, bandwidths) of a Gaussian kernel density estimate."""
    dim, log_probs = kernels.shape[1], []
    for batch in x.split(64):
        squares = torch.cdist(batch, kernels).square()
        log_probs.append(
            torch.stack(
                [torch.logsumexp(-squares / (2 * h**2), 1) - dim * math.log(h) for h in bandwidths],
                1,
            )
        )
    normalization = 0.5 * dim * math.log(2 * math.pi) + math.log(len(kernels))
    return (torch.cat(log_probs).double() - normalization).numpy()


def kernel_density(train: np.ndarray, valid: np.ndarray, test: np.ndarray) -> dict[str, Any]:
    """Choose the bandwidth by the validation rows, and score with all rows but the test rows."""
    kernels, x = torch.from_numpy(train), torch.from_numpy(valid[:1000])
    bandwidth = float(BANDWIDTHS[kernel_log_probs(kernels, x, BANDWIDTHS).mean(0).argmax()])
    kernels = torch.from_numpy(np.concatenate([train, valid]))
    log_prob = kernel_log_probs(kernels, torch.from_numpy(test), [bandwidth])[:, 0]
    return {"log_prob": log_prob.tolist(), "bandwidth": bandwidth}


def train_plainly(
    loss: Callable[[Tensor], Tensor], network: nn.Module, rows: Rows, seconds: float
) -> int:
    """Train by Adam at 0.001 and batches of 256; keep the weights of the best validation."""
    started, step, checks, best = time.process_time(), 0, 0, (math.inf, network.state_dict())
    train, valid = (torch.from_numpy(part) for part in rows[:2])
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
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
    steps = train_plainly(lambda x: -flow().log_prob(x).mean(), flow, rows, seconds)
    with torch.no_grad():
        log_prob = flow().log_prob(torch.from_numpy(rows[2]))
    return {"log_prob": log_prob.tolist(), "steps": steps}


def autoencoder(rows: Rows, dim: int, parameters: int, seconds: float) -> np.ndarray:
    """Train an autoencoder on the squared error, and reconstruct the test rows.

    Encoder and decoder have two hidden layers, of a width that gives a number of parameters.
    """
    # 2 h^2 + 2 h (columns + dim + 2) = parameters
    columns, linear = rows[0].shape[1], rows[0].shape[1] + dim + 2
    hidden = max(8, round((math.sqrt(linear**2 + 2 * parameters) - linear) / 2))
    network = nn.Sequential(
        *(
            nn.Sequential(
                nn.Linear(inputs, hidden),
                nn.SiLU(),
                nn.Linear(hidden, hidden),
                nn.SiLU(),
                nn.Linear(hidden, outputs),
            )
            for inputs, outputs in ((columns, dim), (dim, columns))
        )
    )
    train_plainly(lambda x: (network(x) - x).square().mean(), network, rows, seconds)
    with torch.no_grad():
        return network(torch.from_numpy(rows[2])).numpy()


def reconstruct(model: PCA | KernelPCA, x: np.ndarray) -> np.ndarray:
    return model.inverse_transform(model.transform(x))


def kernel_pca(rows: Rows, dim: int) -> np.ndarray:
    """Reconstruct the test rows by kernel PCA; the validation rows choose its two parameters."""
    train, valid, test = rows
    models = [
        KernelPCA(
            dim,
            kernel="rbf",
            gamma=gamma / train.shape[1],
            alpha=alpha,
            fit_inverse_transform=True,
            random_state=0,
        ).fit(train[:KERNEL_ROWS])
        for gamma in (0.01, 0.1, 1.0)
        for alpha in (1e-3, 1e-1)
    ]
    x = valid[:KERNEL_ROWS]
    best = min(models, key=lambda model: np.square(reconstruct(model, x) - x).mean())
    return reconstruct(best, test)


def dims_of(columns: int) -> dict[str, int]:
    return {share: max(1, round(columns * factor)) for share, factor in SHARES.items()}


def compare(path: Path, table: str, seed: int) -> Measures:
    """Measure all methods on one table with one seed: log-densities and errors of test rows."""
    rows = split_rows(path, seed)
    train, valid, test = rows
    dims = dims_of(train.shape[1])

    def errors(project: Callable[[int], np.ndarray]) -> dict[str, Any]:
        return {
            share: np.square(project(dim) - test).mean(1).tolist() for share, dim in dims.items()
        }

    def mixture(measures: Measures) -> dict[str, Any]:
        fitted = gaussian_mixture(train, valid)
        log_prob = fitted.score_samples(test).tolist()
        return {"log_prob": log_prob, "components": fitted.n_components}

    def networks(measures: Measures) -> dict[str, Any]:
        # one flow serves both dimensions, so both networks together have its time
        parameters, seconds = measures[OURS]["parameters"], measures[OURS]["seconds"] / len(dims)
        return errors(lambda dim: autoencoder(rows, dim, parameters, seconds))

    return measured(
        RESULTS / f"{table}-{seed}.json",
        {
            OURS: lambda measures: manifold_flow(rows, dims, seed),
            MIXTURE: mixture,
            KERNEL: lambda measures: kernel_density(train, valid, test),
            SPLINE: lambda measures: spline_flow(rows, measures[OURS]["seconds"]),
            "PCA": lambda measures: errors(lambda dim: reconstruct(PCA(dim).fit(train), test)),
            "kernel PCA": lambda measures: errors(lambda dim: kernel_pca(rows, dim)),
            "autoencoder": networks,
        },
        f"{table} {seed}",
    )


@click.command()
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder of npz files.",
)
@click.option("--seeds", default=3, show_default=True)
def main(data: Path, seeds: int) -> None:
    """Measure the density and the manifold of the ten largest tables."""
    paths = largest_tables(data)
    runs_by_table = {
        table: [compare(path, table, seed) for seed in range(seeds)]
        for table, path in paths.items()
    }
    click.echo("Log-likelihood of test rows, nats per row\n")
    density_table(runs_by_table, paths)
    for share in SHARES:
        click.echo(f"Mean squared error of test rows, d = {share} of the columns\n")
        manifold_table(runs_by_table, paths, share)


def density_table(runs_by_table: RunsByTable, paths: dict[str, Path]) -> None:
    rows, first = [], 0
    for table, runs in runs_by_table.items():
        means = means_of(runs, "log_prob", (OURS, *DENSITIES))
        best = max(DENSITIES, key=lambda name: np.mean(means[name]))
        first += (difference := paired(runs, "log_prob", best))["value"] > 0
        shape = split_rows(paths[table], 0)[0].shape
        rows.append(
            {
                "table": table,
                "training rows": f"{shape[0]:,}",
                "columns": shape[1],
                **{name: over_seeds(values, ".2f") for name, values in means.items()},
                f"{OURS} minus the best other": format_interval(difference, "+.3f"),
                "seconds": f"{np.mean([run[OURS]['seconds'] for run in runs]):.0f}",
            }
        )
    click.echo(markdown(rows))
    click.echo(f"First on {first} of {len(rows)} tables.\n")


def manifold_table(
    runs_by_table: dict[str, list[Measures]], paths: dict[str, Path], share: str
) -> None:
    rows, first = [], 0
    for table, runs in runs_by_table.items():
        columns = split_rows(paths[table], 0)[0].shape[1]
        means = means_of(runs, share, (OURS, *MANIFOLDS))
        best = min(MANIFOLDS, key=lambda name: np.mean(means[name]))
        first += paired(runs, share, best)["value"] < 0
        rows.append(
            {
                "table": table,
                "d": f"{dims_of(columns)[share]} of {columns}",
                **{name: over_seeds(values, ".4f") for name, values in means.items()},
            }
        )
    click.echo(markdown(rows))
    click.echo(f"First on {first} of {len(rows)} tables.\n")


def means_of(runs: list[Measures], quantity: str, names: Sequence[str]) -> dict[str, list[float]]:
    return {name: [float(np.mean(run[name][quantity])) for run in runs] for name in names}


def paired(runs: list[Measures], quantity: str, other: str) -> dict[str, Any]:
    """Mean difference from another method at the same test rows, with its interval."""
    differences = [np.subtract(run[OURS][quantity], run[other][quantity]) for run in runs]
    return mean_interval(np.concatenate(differences))


if __name__ == "__main__":
    main()
