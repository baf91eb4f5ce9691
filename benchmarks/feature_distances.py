"""Distances of changed images from others, on features of EfficientNet-Lite0.

    python -m benchmarks.feature_distances img_align_celeba.zip

PCA and the Gaussian are fitted to the images that are not compared.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.decomposition import PCA

from benchmarks.results import markdown
from submanifold.evaluation.features import efficientnet_features
from submanifold.evaluation.metrics import METRICS
from submanifold.evaluation.sample_quality import frechet_distance, kernel_distance
from submanifold.inference.inputs import read_images

FORM = {"size": 32, "channels": 3, "crop": "square", "margin": 0}


def changed_images(images: np.ndarray, train: np.ndarray) -> dict[str, np.ndarray]:
    """Return changes of images (n, 3, size, size), uint8; PCA is fitted to `train`, such images."""
    rng, (count, *_, size) = np.random.default_rng(0), images.shape
    pca = PCA(random_state=0).fit(train.reshape(len(train), -1))
    codes = pca.transform(images.reshape(count, -1))
    changes: dict[str, np.ndarray] = {"none": images}
    for sigma in (0.5, 1):
        changes[f"blur of {sigma} pixels"] = gaussian_filter(1.0 * images, sigma, axes=(2, 3))
    for scale in (5, 15, 40):
        changes[f"noise of {scale}/255"] = images + rng.normal(0, scale, images.shape)
    changes["JPEG of quality 20"] = np.stack([as_jpeg(image, 20) for image in images])
    for axes in (300, 50):
        kept = codes * (np.arange(codes.shape[1]) < axes)
        changes[f"projection onto {axes} principal axes"] = pca.inverse_transform(kept)
    normal = rng.standard_normal(codes.shape) * np.sqrt(pca.explained_variance_)
    changes["samples of a Gaussian"] = pca.inverse_transform(normal)
    patches = images.reshape(count, 3, size // 8, 8, size // 8, 8).transpose(0, 2, 4, 1, 3, 5)
    patches = np.stack([rng.permutation(patch) for patch in patches.reshape(count, -1, 3, 8, 8)])
    patches = patches.reshape(count, size // 8, size // 8, 3, 8, 8).transpose(0, 3, 1, 4, 2, 5)
    changes["shuffled 8 x 8 patches"] = patches
    changes["20 images, repeated"] = images[np.arange(count) % 20]
    return {
        name: x.reshape(images.shape).round().clip(0, 255).astype(np.uint8)
        for name, x in changes.items()
    }


def as_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    Image.fromarray(image.transpose(1, 2, 0)).save(file := io.BytesIO(), "JPEG", quality=quality)
    return np.asarray(Image.open(file)).transpose(2, 0, 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=400)
    options = parser.parse_args()
    images = np.random.default_rng(0).permutation(read_images([options.images], FORM).events)
    real, others, train = np.split(images, [options.count, 2 * options.count])
    changes = changed_images(others, train)
    of_real, *of_changes = efficientnet_features([real, *changes.values()])
    scale, rows = np.sqrt(np.mean(of_real**2)), []
    for name, features in zip(changes, of_changes, strict=True):
        kid = METRICS["kid"].write(kernel_distance(of_real / scale, features / scale))
        distance = METRICS["frechet_distance"].write(frechet_distance(of_real, features))
        rows.append({"change": name, "KID": kid, "Fréchet distance": distance})
    print(markdown(rows))
