"""Features of images; Inception has its architecture with random weights."""

import hashlib
import threading
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_fidelity import feature_extractor_inceptionv3 as inception

from submanifold.common.errors import UserError
from submanifold.evaluation import features
from submanifold.evaluation.features import inception_features, pixel_features
from submanifold.evaluation.sample_quality import kernel_distance, precision, recall


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
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def test_inception_features_of_several_sets(accept_random_weights):
    sets = noise(3), noise(2, seed=1) // 2, noise(1, channels=1, seed=2)  # the last one is grey
    found = inception_features(sets, accept_random_weights, batch_size=2)
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
        monkeypatch.setattr(features, "URL_INCEPTION_V3", url)
        (first,) = inception_features([noise(2)])
    (again,) = inception_features([noise(2)])  # without a server
    np.testing.assert_array_equal(first, again)
    assert [file.name for file in empty_cache.iterdir()] == [path.name]


def test_pixel_features_do_not_favor_the_real_images():
    """On axes fitted to the real images, precision would be 1 and recall 0.03."""
    reference, real, fake = (noise(700, seed=seed) for seed in range(3))
    found = pixel_features(reference, real, fake)
    assert precision(*found)["value"] == pytest.approx(recall(*found)["value"], abs=0.1)
    kid = kernel_distance(*found)
    assert kid["low"] < 0 < kid["high"]
