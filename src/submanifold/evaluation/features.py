"""Feature vectors of images: pooled Inception features, or principal components of pixels."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pooch
import torch
from sklearn.decomposition import PCA
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Inception

from submanifold.common.errors import unexpected
from submanifold.common.progress import ProgressBar

# The weights of all published FIDs in PyTorch. Metrics with other weights are not comparable, and
# torch-fidelity unpickles its file, so only this file may reach it.
WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
WEIGHTS_NAME = "pt_inception-2015-12-05-6726825d.pth"
TIMEOUT = 10.0  # seconds without a byte from the server


class MissingWeightsError(Exception):
    """The Inception weights are not available."""


def inception_features(
    sets: Sequence[np.ndarray], inception_weights: str | None = None,
    device: str | torch.device = "cpu", batch_size: int = 64,
) -> list[np.ndarray]:  # fmt: skip
    """Compute the 2,048 pooled Inception features of the FID (Heusel et al. 2017).

    Images are uint8 (n, 3 or 1, height, width), features float32 (n, 2048). By default the weights
    are the file in torch's cache, which is downloaded if it is missing. Batches need about 1 GB.
    """
    path = _download_weights() if inception_weights is None else check_weights(inception_weights)
    network = Inception("inception-v3-compat", ["2048"], str(path)).to(device)

    @torch.no_grad()
    def features(batch: np.ndarray) -> np.ndarray:
        images = torch.from_numpy(np.array(batch))  # a copy: torch warns of read-only memory maps
        return network(images.to(device).expand(-1, 3, -1, -1))[0].cpu().numpy()

    batches = [np.split(x, range(batch_size, len(x), batch_size)) for x in sets]
    return [np.concatenate([*map(features, of_set)]) for of_set in batches]


def check_weights(inception_weights: str) -> Path:
    """Return the path of the user's weights; raise :class:`UserError` for another file."""
    path = Path(inception_weights).expanduser()
    fix = f"Get {WEIGHTS_NAME} from {URL_INCEPTION_V3}, or set inception_weights=download"
    if not path.is_file():
        raise unexpected("inception_weights", "an existing file", path, fix)
    if (digest := pooch.file_hash(str(path))) != WEIGHTS_SHA256:
        expected = f"a file with SHA-256 {WEIGHTS_SHA256}"
        raise unexpected("inception_weights", expected, f"{path} with {digest}", fix)
    return path


def _download_weights() -> Path:
    pooch.get_logger().setLevel(logging.WARNING)  # the progress bar replaces its messages
    try:
        with ProgressBar("downloading the Inception weights", "bytes") as bar:
            path = pooch.retrieve(
                URL_INCEPTION_V3,
                known_hash=f"sha256:{WEIGHTS_SHA256}",
                fname=Path(URL_INCEPTION_V3).name,
                path=Path(torch.hub.get_dir(), "checkpoints"),
                downloader=pooch.HTTPDownloader(bar, chunk_size=2**16, timeout=TIMEOUT),
            )
    except (OSError, ValueError) as error:  # no connection, or another hash
        raise MissingWeightsError(
            f"not measured: the Inception weights could not be downloaded ({error}); "
            f"set inception_weights to the path of {WEIGHTS_NAME}"
        ) from error
    return Path(path)


def pixel_features(
    reference: np.ndarray, *sets: np.ndarray, components: int = 64
) -> list[np.ndarray]:
    """Compute coordinates (m, d) of images on the leading principal axes of reference images.

    On axes fitted to themselves, real images would have a larger variance, and fakes a larger
    precision. The mean square of the reference is scaled to 1.
    """
    fitted, *rows = (x.reshape(len(x), -1).astype(np.float64) for x in (reference, *sets))
    axes = max(1, min(components, len(fitted) - 1, fitted.shape[1]))
    with np.errstate(invalid="ignore"):  # explained variance ratios of constant images
        pca = PCA(axes, random_state=0).fit(fitted)
    scale = np.sqrt(np.mean(pca.transform(fitted) ** 2)) or 1.0
    return [pca.transform(x) / scale for x in rows]
