"""A baseline: PCA, and a flow on the first d components."""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from submanifold.common.device import choose_device
from submanifold.data.batches import Batches
from submanifold.data.splits import groups_of
from submanifold.evaluation.baselines import PCA, pca_batches
from submanifold.evaluation.intervals import mean_interval
from submanifold.evaluation.likelihood import per_event, to_bits_per_dim
from submanifold.evaluation.reconstruction import NEAREST_BATCH_SIZE
from submanifold.evaluation.samples import stored
from submanifold.flows import RealNVP
from submanifold.losses import penalized_likelihood
from submanifold.models import Hierarchy, Stage
from submanifold.models.stage import standard_normal_log_prob
from submanifold.studies.comparisons.measures import (
    IMAGE_SAMPLES,
    PROJECTED,
    Measured,
    cached,
    pca_error,
    sample_metrics,
)
from submanifold.studies.experiments import CachedRun
from submanifold.training.trainer import TrainingSettings, fit

TRAINING = TrainingSettings.model_validate({
    "steps": 2000, "batch_size": 64, "learning_rate": 0.0005, "warmup": 50, "clip": 10.0,
    "cooldown_fraction": 0.5, "ema": 0.99, "validate_every": 100, "precision": "float32",
})  # fmt: skip


def measure_pca_flow(run: CachedRun, dim: int, seed: int, count: int | None = None) -> Measured:
    r"""Measure PCA followed by a flow on the first d whitened components, on the data of a run.

    .. math:: \log p(x) = \log p_{flow}(u) + \log N(v; 0, I) - \tfrac12 \sum_i \log \sigma_i^2

    with the whitened components :math:`(u, v)`. The flow is a RealNVP that is trained by
    likelihood; validation images select the shrinkage of the variances and end the training. The
    projection is that of PCA.

    Args:
        run: The run whose data are used.
        dim: Number of components d.
        seed: Seed of the training and the samples.
        count: Number of test images for bits per dimension; None is all.

    Returns:
        The measures of :func:`~submanifold.studies.comparisons.measures.measure_images`,
        ``bits_per_dim`` and ``seconds``.
    """
    name = f"pca-flow-{dim}-{count or 'all'}-{seed}"
    key = run.configuration.artifact_keys["data"]
    return cached(run, key, name, lambda: _measure(run, dim, seed, count))


def _measure(run: CachedRun, dim: int, seed: int, count: int | None) -> Measured:
    started = time.monotonic()
    train, valid, test = (run.load(f"x_{part}") for part in ("train", "valid", "test"))
    pca = PCA.fit(pca_batches(train)).shrink(pca_batches(valid))
    scales = pca.shrunk_variances().sqrt()

    def whiten(x: Tensor) -> Tensor:
        return (((x.flatten(1).double() - pca.mean) @ pca.axes) / scales).float()

    def components(images: np.ndarray) -> Batches:
        whitened = torch.cat([whiten(x)[:, :dim] for x in pca_batches(images)]).numpy()
        return Batches(whitened, TRAINING.batch_size, seed)

    torch.manual_seed(seed)
    model = Hierarchy([Stage(RealNVP(dim, hidden=512), dim)])
    batches = components(train), components(valid)
    with tempfile.TemporaryDirectory() as folder:
        fit(model, penalized_likelihood(), *batches, TRAINING, Path(folder), "PCA, then a flow")
    seconds = time.monotonic() - started

    def log_prob(x: Tensor) -> Tensor:
        z = whiten(x)
        inside, outside = model.log_prob(z[:, :dim]), standard_normal_log_prob(z[:, dim:])
        return inside + outside - scales.log().sum().float()

    with torch.no_grad():
        bits = to_bits_per_dim(per_event(log_prob, pca_batches(test[:count])), test[:count])
        generator = torch.Generator().manual_seed(seed)
        u = model.sample(IMAGE_SAMPLES, generator=generator).double()
        drawn = pca.mean + (u * scales[:dim]) @ pca.axes[:, :dim].T
    samples = stored(drawn.float().view(-1, *test.shape[1:]))
    groups = groups_of(run.groups, "test")
    error = pca_error(pca, dim, Batches(test[:PROJECTED], NEAREST_BATCH_SIZE), groups)
    return {
        "bits_per_dim": mean_interval(bits, groups),
        **dict.fromkeys(("encoder", "nearest", "pca"), error),
        "seconds": {"value": seconds},
        **sample_metrics(run, samples, choose_device("cpu")),
    }
