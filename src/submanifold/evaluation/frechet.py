"""Frechet inception distance (FID), with the standard Inception features or not at all.

Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", NeurIPS 2017
(https://arxiv.org/abs/1706.08500). The network, its TensorFlow-1 resize to 299 x 299 and its
weights are those of torch-fidelity, which agree with the original implementation.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import torch
from sklearn.utils import gen_batches
from torch_fidelity.feature_extractor_inceptionv3 import (
    URL_INCEPTION_V3,
    FeatureExtractorInceptionV3,
)

from submanifold.common.errors import UserError
from submanifold.common.progress import ProgressBar
from submanifold.evaluation.intervals import (
    GroupsOfBoth,
    jackknife_interval,
    jackknife_subsets,
)

# The one file behind all published FIDs in PyTorch, as pt_inception-2015-12-05-6726825d.pth and
# as weights-inception-2015-12-05-6726825d.pth. With other weights the number is not a FID; and
# torch-fidelity unpickles whatever it is given, so nothing else may reach it.
WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
WEIGHTS_NAME = "pt_inception-2015-12-05-6726825d.pth"
SILENCE = 10.0  # seconds that a server may take to answer, or between two parts of the file


class MissingWeightsError(Exception):
    """There are no Inception weights at hand; the text says why and what to do."""


def inception_features(
    sets: Sequence[np.ndarray | torch.Tensor],
    inception_weights: str | None = None,
    device: str | torch.device = "cpu",
    batch_size: int = 64,
) -> list[np.ndarray]:
    """Describe images by the 2,048 pooled features of the Inception network.

    Args:
        sets: Images, each set uint8 of shape (n, 3, height, width) or (n, 1, height, width); grey
            images are repeated to three channels.
        inception_weights: Path of the file pt_inception-2015-12-05-6726825d.pth. None takes the
            copy in torch's cache, and where there is none tries once to download it.
        device: Where the network runs.
        batch_size: Images in one pass of the network; 64 need about 1 GB.

    Returns:
        Features of each set, shape (n, 2048), float32, not negative.

    Raises:
        MissingWeightsError: There is no copy of the weights, and no downloading them.
        UserError: `inception_weights` is not that file.
        ValueError: The arrays are not uint8 images, or there are fewer than two.
    """
    for images in sets:
        dtype, shape = images.dtype, tuple(images.shape)
        if dtype not in (np.uint8, torch.uint8) or len(shape) != 4 or shape[1] not in (1, 3):
            raise ValueError(f"expected uint8 images of 1 or 3 channels, not {dtype}, {shape}")
        if len(images) < 2:
            raise ValueError(f"expected two or more images, not {shape}")
    path = _downloaded_weights() if inception_weights is None else given_weights(inception_weights)
    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(path)).to(device)

    @torch.no_grad()
    def features(batch: np.ndarray | torch.Tensor) -> np.ndarray:
        if not isinstance(batch, torch.Tensor):
            batch = torch.from_numpy(np.array(batch))  # torch warns of read-only memory maps
        return network(batch.to(device).expand(-1, 3, -1, -1))[0].cpu().numpy()

    return [
        np.concatenate([features(images[rows]) for rows in gen_batches(len(images), batch_size)])
        for images in sets
    ]


def frechet_distance_with_interval(
    a: np.ndarray,
    b: np.ndarray,
    seed: int = 0,
    groups: GroupsOfBoth = (None, None),
) -> dict[str, Any]:
    """Measure :func:`frechet_distance` of real and fake features, and how sure it is.

    With Inception's features this is the FID; smaller is better, zero for equal sets. It is biased
    upward, by much at a few hundred images; the bias falls as one over the count. Published values
    use 10,000 to 50,000 images: compare values of equal counts only. The seed is of the jackknife,
    which leaves out the images of a group together.

    Returns:
        `value`, its 95% interval `low`, `high` by
        :func:`~submanifold.evaluation.intervals.jackknife_interval` (None with fewer than 10 images
        on either side), and the counts `n_real`, `n_fake`.
    """
    subsets = jackknife_subsets(len(a), len(b), np.random.default_rng(seed), groups)
    value = frechet_distance(a, b)
    low, high = jackknife_interval(value, [frechet_distance(a[i], b[j]) for i, j in subsets])
    return {"value": value, "low": low, "high": high, "n_real": len(a), "n_fake": len(b)}


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    r"""Squared Wasserstein-2 distance of the Gaussians fitted to features (n, f) and (m, f).

    .. math:: |\mu_a - \mu_b|^2 + \mathrm{tr}\,\Sigma_a + \mathrm{tr}\,\Sigma_b
              - 2\,\mathrm{tr}\,(\Sigma_a \Sigma_b)^{1/2}

    With :math:`\Sigma_a = A^T A` and :math:`\Sigma_b = B^T B` the last trace is the sum of the
    singular values of :math:`A B^T`: it stays exact and real where the covariances are singular,
    as with fewer images than features. There have to be two of each.
    """
    mean_a, root_a = _mean_and_root(a)
    mean_b, root_b = _mean_and_root(b)
    shift = np.sum((mean_a - mean_b) ** 2)
    spread = np.sum(root_a**2) + np.sum(root_b**2)
    overlap = np.linalg.norm(root_a @ root_b.T, ord="nuc")
    return max(0.0, float(shift + spread - 2 * overlap))


def _mean_and_root(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean, shape (d,), and a matrix R, shape (min(n, d), d), with R^T R the covariance."""
    features = np.asarray(features, dtype=np.float64)
    mean = features.mean(axis=0)
    root = (features - mean) / np.sqrt(len(features) - 1)
    if len(root) > root.shape[1]:
        root = np.asarray(np.linalg.qr(root, mode="r"))
    return mean, root


def given_weights(inception_weights: str) -> Path:
    """Path of the weights file that the user gave; a UserError if it is none, or another one."""
    path = Path(inception_weights).expanduser()
    if not path.is_file():
        raise UserError(
            f"inception_weights={inception_weights}, but there is no file {path}; give the path of"
            f" {WEIGHTS_NAME}, or 'download' to have it downloaded from {URL_INCEPTION_V3}"
        )
    if pooch.file_hash(str(path)) != WEIGHTS_SHA256:
        raise UserError(
            f"inception_weights={inception_weights} is not the standard file {WEIGHTS_NAME}, which"
            f" has the SHA-256 {WEIGHTS_SHA256}; get it from {URL_INCEPTION_V3}"
        )
    return path


def _downloaded_weights() -> Path:
    """Path of the weights in torch's cache, where torch-fidelity keeps them too."""
    pooch.get_logger().setLevel(logging.WARNING)  # or it prints what the meter shows
    try:
        with ProgressBar("downloading the Inception weights", "bytes") as meter:
            path = pooch.retrieve(
                URL_INCEPTION_V3,
                known_hash=f"sha256:{WEIGHTS_SHA256}",
                fname=Path(URL_INCEPTION_V3).name,
                path=Path(torch.hub.get_dir(), "checkpoints"),
                downloader=pooch.HTTPDownloader(meter, chunk_size=2**16, timeout=SILENCE),
            )
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError):  # the hash differs
            reason: object = f"{URL_INCEPTION_V3} answered with another file"
        else:
            cause = error.args[0] if error.args else None
            reason = getattr(cause, "reason", None) or error  # not all the retries
        raise MissingWeightsError(
            f"not measured: the Inception weights could not be downloaded ({reason});"
            f" set inception_weights to the path of {WEIGHTS_NAME}"
        ) from error
    return Path(path)
