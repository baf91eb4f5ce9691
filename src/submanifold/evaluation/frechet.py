"""Frechet inception distance (FID), with the standard Inception features or not at all.

Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", NeurIPS 2017
(https://arxiv.org/abs/1706.08500). The network, its TensorFlow-1 resize to 299 x 299 and its
weights are those of torch-fidelity, which agree with the original implementation.
"""

import hashlib
import logging
import os
import queue
import threading
import time
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import torch
from torch_fidelity.feature_extractor_inceptionv3 import (
    URL_INCEPTION_V3,
    FeatureExtractorInceptionV3,
)

from submanifold.errors import UserError
from submanifold.evaluation.intervals import jackknife_interval, jackknife_subsets

# The one file behind all published FIDs in PyTorch, as pt_inception-2015-12-05-6726825d.pth and
# as weights-inception-2015-12-05-6726825d.pth. With other weights the number is not a FID; and
# torch-fidelity unpickles whatever it is given, so nothing else may reach it.
WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
WEIGHTS_NAME = "pt_inception-2015-12-05-6726825d.pth"
SETTING = "evaluation.inception_weights"
CONNECT_SECONDS = 10.0
DOWNLOAD_SECONDS = 60.0

logger = logging.getLogger(__name__)


class MissingWeightsError(Exception):
    """The Inception weights could not be downloaded; the text says why and what to do."""


def inception_features(
    sets: Sequence[np.ndarray | torch.Tensor],
    weights: str | None = None,
    device: str | torch.device = "cpu",
    batch_size: int = 64,
) -> list[np.ndarray]:
    """Describe images by the 2,048 pooled features of the Inception network.

    Args:
        sets: Images to describe, real or fake, each set uint8 of shape (n, 3, height, width) or
            (n, 1, height, width); grey images are repeated to three channels.
        weights: Path of the file pt_inception-2015-12-05-6726825d.pth. None takes the copy in
            torch's cache, and where there is none tries once to download it.
        device: Where the network runs.
        batch_size: Images in one pass of the network; 64 need about 1 GB.

    Returns:
        Features of each set, shape (n, 2048), float32, not negative.

    Raises:
        MissingWeightsError: There is no copy of the weights, and no downloading them.
        UserError: `weights` is not that file.
        ValueError: The arrays are not uint8 images, or there are fewer than two.
    """
    for images in sets:
        _check_images(images)
    try:
        path = _downloaded_weights() if weights is None else given_weights(weights)
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error or type(error).__name__
        raise MissingWeightsError(
            f"not measured: the Inception weights could not be downloaded ({reason});"
            f" set {SETTING} to the path of {WEIGHTS_NAME}"
        ) from error
    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(path)).to(device)
    return [_features(network, images, device, batch_size) for images in sets]


def frechet_distance_with_interval(a: np.ndarray, b: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Measure :func:`frechet_distance` of real and fake features, and how sure it is.

    With Inception's features this is the FID; smaller is better, zero for equal sets. With fewer
    than 2,048 images on either side the covariance of the 2,048 features has not full rank and the
    estimate is biased upward, by much at a few hundred images; the bias falls as one over the count
    and is never quite gone. Published values use 10,000 to 50,000 images: compare values of equal
    counts only.

    The 95% interval is a delete-a-group jackknife over images, see
    :func:`~submanifold.evaluation.intervals.jackknife_interval`; it does not cover the
    bias. It costs ten more distances, a few per cent of the time the features take on a CPU.

    Args:
        a: Of the real images, shape (n_real, features), n_real >= 2.
        b: Of the fake images, shape (n_fake, features), n_fake >= 2.
        seed: Of the jackknife's groups.

    Returns:
        `value`, its 95% interval `low`, `high` (None with fewer than 10 images on either side), and
        the counts `n_real`, `n_fake`.
    """
    subsets = jackknife_subsets(len(a), len(b), np.random.default_rng(seed))
    value = frechet_distance(a, b)
    low, high = jackknife_interval(value, [frechet_distance(a[i], b[j]) for i, j in subsets])
    return {"value": value, "low": low, "high": high, "n_real": len(a), "n_fake": len(b)}


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    r"""Squared Wasserstein-2 distance of the Gaussians fitted to two sets of features.

    .. math:: |\mu_a - \mu_b|^2 + \mathrm{tr}\,\Sigma_a + \mathrm{tr}\,\Sigma_b
              - 2\,\mathrm{tr}\,(\Sigma_a \Sigma_b)^{1/2}

    With :math:`\Sigma_a = A^T A` and :math:`\Sigma_b = B^T B` the last trace is the sum of the
    singular values of :math:`A B^T`. The covariances and their product are never formed, so it
    stays exact and real where they are singular, as with fewer images than features.

    Args:
        a: Shape (n, features), n >= 2.
        b: Shape (m, features), m >= 2.

    Returns:
        The distance, in squared units of the features, not negative.
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


def _check_images(images: np.ndarray | torch.Tensor) -> None:
    if images.dtype not in (np.uint8, torch.uint8) or images.ndim != 4:
        raise ValueError(f"expected 4-d uint8 images, not {images.dtype}, {tuple(images.shape)}")
    if images.shape[1] not in (1, 3) or len(images) < 2:
        raise ValueError(
            f"expected two or more images of 1 or 3 channels, not {tuple(images.shape)}"
        )


@torch.no_grad()
def _features(
    network: torch.nn.Module,
    images: np.ndarray | torch.Tensor,
    device: str | torch.device,
    batch_size: int,
) -> np.ndarray:
    """Inception's pooled features, shape (n, 2048), float32."""
    features = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        # A copy, because memory-mapped arrays are read-only and torch warns about them.
        batch = batch if isinstance(batch, torch.Tensor) else torch.from_numpy(np.array(batch))
        pooled = network(batch.to(device).expand(-1, 3, -1, -1))[0]
        features.append(pooled.cpu().numpy())
    return np.concatenate(features)


def given_weights(weights: str) -> Path:
    """Path of the weights file that the user gave.

    Raises:
        UserError: There is no such file, or it is another one.
    """
    path = Path(weights).expanduser()
    if not path.is_file():
        raise UserError(
            f"{SETTING}: there is no file {path}. Give the path of {WEIGHTS_NAME}, or"
            f" 'download' to have it downloaded from {URL_INCEPTION_V3}."
        )
    if not _is_standard(path):
        raise UserError(
            f"{SETTING}: {path} is not the standard file {WEIGHTS_NAME}, which has the SHA-256"
            f" {WEIGHTS_SHA256}. Get it from {URL_INCEPTION_V3}."
        )
    return path


def _is_standard(path: Path) -> bool:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest() == WEIGHTS_SHA256


def _downloaded_weights() -> Path:
    """Path of the weights in torch's cache, where torch-fidelity keeps them too."""
    path = Path(torch.hub.get_dir(), "checkpoints", Path(URL_INCEPTION_V3).name)
    if path.is_file() and _is_standard(path):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    logger.info("Downloading the Inception weights (96 MB, once) from %s", URL_INCEPTION_V3)
    part = path.with_suffix(f".part{os.getpid()}")
    try:
        _download(URL_INCEPTION_V3, part)
        if not _is_standard(part):
            raise OSError(f"{URL_INCEPTION_V3} answered with another file")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _download(url: str, path: Path) -> None:
    deadline = time.monotonic() + DOWNLOAD_SECONDS
    with _open(url) as response, path.open("wb") as file:
        # read1 returns what is there; read would let a trickling server outlast the deadline.
        while chunk := response.read1(1 << 20):
            file.write(chunk)
            if time.monotonic() > deadline:
                raise TimeoutError(f"not complete after {DOWNLOAD_SECONDS:.0f} s")


def _open(url: str) -> Any:
    """Open a URL within CONNECT_SECONDS, whatever hangs."""
    answers: queue.Queue[Any] = queue.Queue()

    def connect() -> None:
        try:
            answers.put(urlopen(url, timeout=CONNECT_SECONDS))
        except Exception as error:
            answers.put(error)

    # A thread, because looking up the host's name does not heed urlopen's timeout.
    threading.Thread(target=connect, daemon=True).start()
    try:
        answer = answers.get(timeout=CONNECT_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"no answer within {CONNECT_SECONDS:.0f} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer
