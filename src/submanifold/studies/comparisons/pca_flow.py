"""A baseline: PCA, and a flow on the first d components."""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from submanifold.data.batches import Batches
from submanifold.evaluation.baselines import PCA, pca_batches
from submanifold.evaluation.intervals import mean_interval
from submanifold.evaluation.likelihood import per_event, to_bits_per_dim
from submanifold.evaluation.samples import stored
from submanifold.flows import RealNVP
from submanifold.losses import penalized_likelihood
from submanifold.models import Hierarchy, Stage
from submanifold.models.stage import standard_normal_log_prob
from submanifold.training.trainer import TrainingSettings, fit

TRAINING = TrainingSettings.model_validate({
    "steps": 2000, "batch_size": 64, "learning_rate": 0.0005, "warmup": 50, "clip": 10.0,
    "cooldown_fraction": 0.5, "ema": 0.99, "validate_every": 100, "precision": "float32",
})  # fmt: skip


def pca_flow(
    train: np.ndarray,
    valid: np.ndarray,
    test: np.ndarray,
    dim: int,
    seed: int,
    samples: int,
    groups: np.ndarray | None = None,
) -> dict[str, Any]:
    r"""Fit PCA, and train a RealNVP on the first d whitened components by likelihood.

    .. math:: \log p(x) = \log p_{flow}(u) + \log N(v; 0, I) - \tfrac12 \sum_i \log \sigma_i^2

    with the whitened components :math:`(u, v)`. The variances are shrunk as those of the Gaussian
    baseline. The projection is that of PCA.

    Args:
        train: Training images, uint8 (N, ...).
        valid: Validation images, which select the shrinkage and end the training.
        test: Test images.
        dim: Number of components d.
        seed: Seed of the training and the samples.
        samples: Number of samples.
        groups: Groups of the test images.

    Returns:
        ``bits_per_dim`` with its interval, ``samples`` (uint8) and ``seconds``.
    """
    started = time.monotonic()
    pca = PCA.fit(pca_batches(train)).shrink(pca_batches(valid))
    scales = pca.shrunk_variances().sqrt()

    def whiten(x: Tensor) -> Tensor:
        return (((x.flatten(1).double() - pca.mean) @ pca.axes) / scales).float()

    def components(images: np.ndarray) -> np.ndarray:
        return torch.cat([whiten(x)[:, :dim] for x in pca_batches(images)]).numpy()

    torch.manual_seed(seed)
    model = Hierarchy([Stage(RealNVP(dim, hidden=512), dim)])
    batches = (
        Batches(components(train), TRAINING.batch_size, seed),
        Batches(components(valid), TRAINING.batch_size, seed),
    )
    with tempfile.TemporaryDirectory() as folder:
        fit(model, penalized_likelihood(), *batches, TRAINING, Path(folder), "PCA, then a flow")
    seconds = time.monotonic() - started

    def log_prob(x: Tensor) -> Tensor:
        z = whiten(x)
        inside, outside = model.log_prob(z[:, :dim]), standard_normal_log_prob(z[:, dim:])
        return inside + outside - scales.log().sum().float()

    with torch.no_grad():
        bits = to_bits_per_dim(per_event(log_prob, pca_batches(test)), test)
        u = model.sample(samples, generator=torch.Generator().manual_seed(seed)).double()
        drawn = pca.mean + (u * scales[:dim]) @ pca.axes[:, :dim].T
    images = drawn.float().view(-1, *test.shape[1:])
    return {
        "bits_per_dim": mean_interval(bits, groups),
        "samples": stored(images),
        "seconds": seconds,
    }
