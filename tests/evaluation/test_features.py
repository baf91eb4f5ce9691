"""Features of images; Inception has its architecture with random weights."""

import hashlib
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from torch_fidelity import feature_extractor_inceptionv3 as inception

from submanifold.common.errors import UserError
from submanifold.evaluation import features
from submanifold.evaluation.feature_distances import kernel_distance, precision, recall
from submanifold.evaluation.features import MissingWeightsError, inception_features, pixel_features


def noise(count, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, channels, 8, 8), dtype=np.uint8)


def colors(count, seed=0):
    """Plain colors with noise: three large axes and 189 small ones."""
    rng = np.random.default_rng(seed)
    plain = rng.uniform(50, 200, (count, 3, 1, 1))
    return (plain + rng.normal(0, 3, (count, 3, 8, 8))).round().astype(np.uint8)


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
    sets = noise(12), noise(10, seed=1) // 2, noise(3, channels=1, seed=2)  # the last one is grey
    found = inception_features(sets, accept_random_weights, batch_size=5)
    assert [x.shape for x in found] == [(12, 2048), (10, 2048), (3, 2048)]
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


def assert_not_measured(reason):
    with pytest.raises(MissingWeightsError) as caught:
        inception_features([noise(2), noise(3)])
    assert str(caught.value).startswith("not measured: ")
    assert reason in str(caught.value)
    assert "set inception_weights to" in str(caught.value)


@contextmanager
def serving(monkeypatch, answer):
    """Serve the weights locally; `answer` receives the connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                answer(connection)

        threading.Thread(target=serve, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/weights.pth"
        monkeypatch.setattr(features, "URL_INCEPTION_V3", url)
        yield


def test_missing_network_is_reported_after_one_attempt(empty_cache, monkeypatch):
    attempts = []

    def refuse(host, *args, **kwargs):
        attempts.append(host)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert_not_measured("Temporary failure in name resolution")
    assert len(attempts) == 1


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\n."])
def test_silent_server_is_a_timeout(begun, empty_cache, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(features, "TIMEOUT", 0.2)

    def fall_silent(connection):
        connection.sendall(begun)
        release.wait()

    started = time.monotonic()
    with serving(monkeypatch, fall_silent):
        assert_not_measured("timed out")
    assert time.monotonic() - started < 60
    release.set()
    assert not list(empty_cache.iterdir())


@pytest.mark.parametrize("answer", [
    b"", b"HTTP/1.0 404 Nothing Here\r\n\r\n", b"garbage\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n<html>",
])  # fmt: skip
def test_wrong_answers_of_a_server_leave_no_file(answer, empty_cache, monkeypatch):
    with serving(monkeypatch, lambda connection: connection.sendall(answer)):
        assert_not_measured("could not be downloaded")
    assert not list(empty_cache.iterdir())


def test_download_is_cached(accept_random_weights, empty_cache, monkeypatch):
    content = Path(accept_random_weights).read_bytes()
    answer = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content
    with serving(monkeypatch, lambda connection: connection.sendall(answer)):
        (first,) = inception_features([noise(2)])
    (again,) = inception_features([noise(2)])  # without a server
    np.testing.assert_array_equal(first, again)
    assert [path.name for path in empty_cache.iterdir()] == ["weights.pth"]


def test_corrupt_file_in_the_cache_is_not_used(empty_cache, monkeypatch):
    empty_cache.mkdir(parents=True)
    (empty_cache / "weights.pth").write_bytes(b"truncated")
    with serving(monkeypatch, lambda connection: connection.sendall(b"HTTP/1.0 404 No\r\n\r\n")):
        assert_not_measured("404")


def test_pixel_features_with_all_axes_preserve_distances_up_to_scale():
    reference, real, fake = (colors(n, seed=n)[..., :4, :1] for n in (30, 20, 25))
    found = np.concatenate(pixel_features(reference, real, fake))
    pixels = np.concatenate([real, fake]).reshape(45, 12).astype(float)
    assert found.shape == pixels.shape
    scale = np.sqrt(np.mean(reference.astype(float).var(axis=0)))
    np.testing.assert_allclose(scale * pdist(found), pdist(pixels), rtol=1e-6)


def test_pixel_features_are_the_leading_axes_of_the_reference():
    reference, real, fake = colors(400), colors(200, seed=1), colors(100, seed=2)
    found = np.concatenate(pixel_features(reference, real, fake, components=3))
    assert found.shape == (300, 3)
    assert np.mean(found**2) == pytest.approx(1, abs=0.15)
    means = np.concatenate([real, fake]).mean(axis=(2, 3))
    fitted = np.linalg.lstsq(np.c_[found, np.ones(300)], means, rcond=None)
    assert (np.sqrt(fitted[1] / 300) < 0.5).all()  # only the mean noise of 64 pixels is left
    (alone,) = pixel_features(reference, real[:5], components=3)
    np.testing.assert_allclose(found[:5], alone, atol=1e-9)
    assert pixel_features(real[:50], real)[0].shape == (200, 49)


def test_pixel_features_do_not_favor_the_real_images():
    """On axes fitted to the real images, precision would be 1 and recall 0.03."""
    reference, real, fake = (noise(700, seed=seed) for seed in range(3))
    found = pixel_features(reference, real, fake)
    assert precision(*found)["value"] == pytest.approx(recall(*found)["value"], abs=0.1)
    kid = kernel_distance(*found)
    assert kid["low"] < 0 < kid["high"]


@pytest.mark.parametrize("count", [1, 20])
def test_constant_images_have_zero_features(count):
    plain = np.full((count, 1, 4, 4), 7, np.uint8)
    assert not np.any(pixel_features(plain, plain, plain))
