"""The paper's findings, each checked on the models trained here."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from submanifold.data.batches import Batches
from submanifold.evaluation.baselines import PCA
from submanifold.evaluation.intervals import interval_over_seeds, mean_interval, over_seeds
from submanifold.evaluation.metrics import METRICS, is_missing
from submanifold.studies.pages import Content, Runs, Target
from submanifold.studies.paper.claims import (
    CLAIMS,
    FAILS,
    FEWEST_SEEDS,
    HOLDS,
    NAMES,
    OPEN,
    Finding,
    compare,
    judge,
    method_of,
    notes,
    summary,
    with_seeds,
)
from submanifold.studies.paper.figures import BY_DELTA, DIM_100, by_delta
from submanifold.studies.paper.tables import (
    PLACES,
    control_cells,
    needs_of,
    paper_cells,
    params_of,
)

OUTLIERS = 0.01  # fraction of the test pixels, the furthest from their PCA projection
RISE = 1.05  # largest ratio of the last validation loss to the best in a stable training
OURS = "density-first"
SHOWN = ("bits_per_dim", "mse", "baselines.pca.mse", "precision", "recall", "kid")


def check_findings(runs: Runs) -> Content:
    """Check every claim of the paper; the table has one row for each comparison."""
    table = pd.DataFrame(
        [
            *(compare(runs, claim, *pair) for claim, pairs in CLAIMS.items() for pair in pairs),
            *smaller_delta_loses_outliers(runs),
            *end_to_end_is_unstable(runs),
        ]
    )
    conclusions = [*summary(table), *errors_over_pca(runs)]
    tables = {"Claims": table, "Models": models_table(runs)}
    return Content(
        tables, data=table, notes=[*notes(runs), *_reduced_dims(runs)], conclusions=conclusions
    )


def _reduced_dims(runs: Runs) -> list[str]:
    """List the models whose dimensions are smaller than the paper's, for few training images."""
    reduced = []
    for label, (run, *_) in runs.items():
        need, dims = TARGET.needs[label], run.load("metrics")["dims"][1:]
        expected = [need.get(f"stage_{n}.dim", dim) for n, dim in enumerate(dims, start=1)]
        if expected != [*dims]:
            paper, ours = (" → ".join(map(str, values)) for values in (expected, dims))
            reduced.append(f"{label} {ours} in place of {paper}")
    few = "Smaller dimensions than the paper's, because there are too few training images"
    return [f"{few}: {'; '.join(reduced)}."] if reduced else []


def errors_over_pca(runs: Runs) -> list[str]:
    """Compare the squared errors of the paper's methods, and of ours, with PCA's."""
    ratios = {}
    for label, seeds in runs.items():
        metrics = [run.load("metrics") for run in seeds]
        errors = [of_seed["mse"]["value"] for of_seed in metrics]
        pca = [of_seed["baselines"]["pca"].get("mse", {}).get("value") for of_seed in metrics]
        if not any(map(is_missing, (*errors, *pca))):
            ratios[label] = sum(errors) / sum(pca)
    ours = ratios.pop(OURS, None)
    if not ratios:
        return []
    best, worst = (choose(ratios, key=ratios.__getitem__) for choose in (min, max))
    line = (
        "Squared errors of encoder projections over those of PCA with as many dimensions: "
        f"{ratios[best]:.2g} ({best}) to {ratios[worst]:.2g} ({worst})"
    )
    return [f"{line}." if ours is None else f"{line}; {OURS}, which is ours, has {ours:.2g}."]


def models_table(runs: Runs) -> pd.DataFrame:
    """Format the metrics of the models, one row for each."""
    rows = []
    for label, seeds in runs.items():
        metrics = [run.load("metrics") for run in seeds]
        row = {"model": label, "dimensions": " → ".join(map(str, metrics[0]["dims"]))}
        for name in SHOWN:
            metric = METRICS[name]
            row[metric.label] = metric.write(over_seeds([metric.read(one) for one in metrics]))
        rows.append(row)
    return pd.DataFrame(rows)


def smaller_delta_loses_outliers(runs: Runs) -> Iterator[Finding]:
    """Compare the errors of each image on the pixels with the largest PCA errors."""
    claim = "A smaller delta reconstructs outlier pixels worse"
    deltas = by_delta(runs)
    if len(deltas) < 2:
        yield Finding(claim, "two values of delta")
        return
    first = deltas[max(deltas)][0]
    test = Batches(first.load("x_test"), 1024)
    groups = test.events.groups
    pca, dim = PCA.fit(first.load("x_train").x), first.load("metrics")["dims"][-1]
    residuals = _squares(lambda x: pca.project(x, dim), test)
    outliers = residuals >= np.quantile(residuals, 1 - OUTLIERS)

    def errors(model: Any) -> np.ndarray:
        """Mean squared error of each image on its outlier pixels, NaN if it has none."""
        with np.errstate(invalid="ignore"):
            return (_squares(model.encoder_projection, test) * outliers).sum(1) / outliers.sum(1)

    *smaller, (largest, reference) = (
        (delta, [errors(run.load("hierarchy")) for run in seeds])
        for delta, seeds in sorted(deltas.items())
    )
    for delta, seeds in smaller:
        differences = [(a - b)[np.isfinite(a)] for a, b in zip(seeds, reference, strict=False)]
        if len(differences) >= FEWEST_SEEDS:
            difference = interval_over_seeds([float(of_seed.mean()) for of_seed in differences])
        else:
            finite = np.isfinite(seeds[0])
            difference = mean_interval(differences[0], None if groups is None else groups[finite])
        comparison = f"delta {delta} against {largest}, on {OUTLIERS:.0%} of the pixels"
        comparison += with_seeds(len(differences))
        yield judge(claim, comparison, difference, "mse", "more")


@torch.no_grad()
def _squares(project: Callable[[torch.Tensor], torch.Tensor], test: Batches) -> np.ndarray:
    """Squared errors of a projection, (N, D)."""
    return torch.cat([(x - project(x)).square().flatten(1) for x, _ in test]).numpy()


def end_to_end_is_unstable(runs: Runs) -> Iterator[Finding]:
    """Compare the training histories of both ways of training at d = 100, by optimizer."""
    claim = "End-to-end training at d = 100 is unstable, hierarchical training is not"
    for optimizer, labels in (("", [*DIM_100]), (", the paper's optimizer", [*PAPERS_OPTIMIZER])):
        dims = f"3072 → 500 → 100{optimizer}"
        if not runs.keys() >= {*labels}:
            yield Finding(claim, dims)
            continue
        (joint, is_unstable), (hierarchical, is_other_unstable) = (
            _stability([history for run in runs[label] for history in run.histories()])
            for label in labels
        )
        verdict = OPEN if is_other_unstable else HOLDS if is_unstable else FAILS
        dims += with_seeds(min(len(runs[label]) for label in labels))
        found = f"end to end: {joint}; hierarchical: {hierarchical}"
        yield Finding(claim, dims, found, verdict)


def _stability(histories: Sequence[Mapping[str, Any]]) -> tuple[str, bool]:
    """Describe how stable trainings are, and return whether any is unstable."""
    rollbacks = sum(history["rollbacks"] for history in histories)
    warnings = sum(len(history["warnings"]) for history in histories)
    losses = [[row["loss"] for row in history["valid"]] for history in histories]
    rise = max(curve[-1] / min(curve) for curve in losses)
    text = f"{rollbacks} rollbacks, {warnings} warnings, last loss {rise:.3f} times the best"
    return text, bool(rollbacks or warnings) or rise > RISE


CLAIMED = {method_of(name) for name in NAMES}
CELEBA = needs_of([*paper_cells(1), *control_cells(1)[:1], *paper_cells(2)])
LSUN = {
    name + PLACES[table]: need
    for table in (3, 4, 5)
    for name, need in needs_of(paper_cells(table)).items()
}
THREE_STAGES = {"H-MMM": params_of("celeba", "H-MMM", "3072-1000-500-100")}
PAPERS_OPTIMIZER = {
    f"{name}, the paper's optimizer": {
        **need,
        "training.muon_lr": None,
        "training.learning_rate": 1e-5,
        "training.batch_size": 64,
    }
    for name, need in DIM_100.items()
}
TARGET = Target(
    "The paper's findings, checked at the size of a laptop",
    {
        **{name: need for name, need in (CELEBA | LSUN | THREE_STAGES).items() if name in CLAIMED},
        **BY_DELTA,
        **DIM_100,
        **PAPERS_OPTIMIZER,
        OURS: {"dataset": "celeba", "method": OURS, "stage_1.dim": 500},
    },
    check_findings,
    seeds=True,
)
