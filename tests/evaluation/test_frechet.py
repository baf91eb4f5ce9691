import hashlib
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch_fidelity import feature_extractor_inceptionv3 as inception
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from submanifold.common.errors import UserError
from submanifold.evaluation import frechet
from submanifold.evaluation.frechet import (
    MissingWeightsError,
    frechet_distance,
    frechet_distance_with_interval,
    inception_features,
)


def sample(mean, root, count=200, seed=0):
    """Features whose sample mean is exactly `mean` and sample covariance exactly root^T root."""
    x = np.random.default_rng(seed).standard_normal((count, len(mean)))
    x -= x.mean(axis=0)
    white = np.linalg.qr(x)[0] * np.sqrt(count - 1)
    return mean + white @ root


def fid(real, fake, weights=None):
    return frechet_distance_with_interval(*inception_features([real, fake], weights))


def images(count, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, channels, 8, 8), dtype=np.uint8)


def test_diagonal_gaussians():
    std_a, std_b = np.array([1.0, 2.0, 0.5, 0.0]), np.array([3.0, 2.0, 1.0, 1.0])
    mean_a, mean_b = np.zeros(4), np.array([1.0, 0.0, -2.0, 0.0])
    a, b = sample(mean_a, np.diag(std_a)), sample(mean_b, np.diag(std_b), count=90, seed=1)
    expected = np.sum((mean_a - mean_b) ** 2) + np.sum((std_a - std_b) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected)


def test_rotated_gaussians():
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    std_a, std_b = rng.uniform(0.1, 3, 5), rng.uniform(0.1, 3, 5)
    a = sample(np.ones(5), np.diag(std_a) @ rotation)
    b = sample(-np.ones(5), np.diag(std_b) @ rotation, seed=1)
    assert frechet_distance(a, b) == pytest.approx(20 + np.sum((std_a - std_b) ** 2))


def test_gaussians_that_do_not_commute():
    rng = np.random.default_rng(1)
    root_a, root_b = rng.standard_normal((2, 6, 6))
    cov_a, cov_b = root_a.T @ root_a, root_b.T @ root_b
    expected = np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    a, b = sample(np.zeros(6), root_a), sample(np.zeros(6), root_b, seed=1)
    assert frechet_distance(a, b) == pytest.approx(expected)
    assert frechet_distance(b, a) == pytest.approx(expected)


@pytest.mark.parametrize("counts", [(30, 30), (30, 200), (300, 200)])
def test_agrees_with_torch_fidelity(counts):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((counts[0], 64)), 0.3 + rng.standard_normal((counts[1], 64)) ** 2
    statistics = [fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("count", [20, 500])
def test_equal_features_are_zero_apart(count):
    features = np.random.default_rng(0).standard_normal((count, 100)).astype(np.float32)
    assert frechet_distance(features, features[::-1]) == pytest.approx(0, abs=1e-10)


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory):
    """The real architecture with random weights, in a file like the standard one."""
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
    monkeypatch.setattr(frechet, "WEIGHTS_SHA256", digest)
    return str(random_weights)


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def test_images_end_to_end(accept_random_weights):
    real, fake = images(12), images(11, seed=1) // 2
    result = fid(real, fake, accept_random_weights)
    assert (result["n_real"], result["n_fake"]) == (12, 11)
    assert 0 <= result["low"] < result["value"] < result["high"]

    same = fid(real, torch.from_numpy(real).flip(0), accept_random_weights)
    assert same["value"] == pytest.approx(0, abs=1e-3 * result["value"])


def test_the_features_of_several_sets(accept_random_weights):
    sets = images(12), images(10, seed=1) // 2, images(3, seed=2)
    features = inception_features(sets, accept_random_weights, batch_size=5)
    assert [x.shape for x in features] == [(12, 2048), (10, 2048), (3, 2048)]
    assert all(x.dtype == np.float32 and x.min() >= 0 and x.std() > 0 for x in features)
    (alone,) = inception_features([sets[1]], accept_random_weights)
    np.testing.assert_allclose(features[1], alone, rtol=1e-3, atol=1e-4)


def test_grey_images_count_as_colour(accept_random_weights):
    grey, other = images(3, channels=1), images(2, channels=1, seed=1)
    result = fid(grey, other, accept_random_weights)
    repeated = fid(grey.repeat(3, axis=1), other.repeat(3, axis=1), accept_random_weights)
    assert result["value"] == pytest.approx(repeated["value"], rel=1e-5)
    assert result["low"] is None
    assert result["high"] is None


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"^inception_weights=\S+missing.pth, but there is no file"):
        inception_features([images(2)], str(tmp_path / "missing.pth"))


def test_other_file(tmp_path, random_weights):
    garbage = tmp_path / "garbage.pth"
    garbage.write_bytes(b"not a checkpoint")
    for path in (garbage, random_weights):
        with pytest.raises(UserError, match=r"^inception_weights=\S+ is not the standard file"):
            inception_features([images(2)], str(path))


def assert_not_measured(reason):
    with pytest.raises(MissingWeightsError) as caught:
        inception_features([images(2), images(3)])
    assert str(caught.value).startswith("not measured: ")
    assert reason in str(caught.value)
    assert "set inception_weights to" in str(caught.value)


@contextmanager
def serving(monkeypatch, answer):
    """Have the weights answered for by a server of this machine: `answer` gets its connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                answer(connection)

        threading.Thread(target=serve, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/weights.pth"
        monkeypatch.setattr(frechet, "URL_INCEPTION_V3", url)
        yield


def test_no_network(empty_cache, monkeypatch, capfd):
    tries = []

    def refuse(host, *args, **kwargs):
        tries.append(host)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert_not_measured("Temporary failure in name resolution")
    assert len(tries) == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\n."])
def test_a_server_that_falls_silent(begun, empty_cache, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(frechet, "SILENCE", 0.2)

    def fall_silent(connection):
        connection.sendall(begun)
        release.wait()

    started = time.monotonic()
    with serving(monkeypatch, fall_silent):
        assert_not_measured("timed out")
    assert time.monotonic() - started < 10
    release.set()
    assert not list(empty_cache.iterdir())


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.0 404 Nothing Here\r\n\r\n", b"garbage\r\n\r\n"])
def test_a_server_that_misbehaves(answer, empty_cache, monkeypatch):
    with serving(monkeypatch, lambda connection: connection.sendall(answer)):
        assert_not_measured("not be downloaded")
    assert not list(empty_cache.iterdir())


def test_a_download_of_something_else(empty_cache, monkeypatch):
    page = b"HTTP/1.0 200 OK\r\n\r\n<html>log in"
    with serving(monkeypatch, lambda connection: connection.sendall(page)):
        assert_not_measured("another file")
    assert not list(empty_cache.iterdir())


def test_a_download_is_kept(accept_random_weights, empty_cache, monkeypatch):
    whole = Path(accept_random_weights).read_bytes()
    answer = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(whole) + whole
    with serving(monkeypatch, lambda connection: connection.sendall(answer)):
        first = fid(images(2), images(2, seed=1))
    assert fid(images(2), images(2, seed=1)) == first  # nobody serves it again
    assert first["value"] > 0
    assert [path.name for path in empty_cache.iterdir()] == ["weights.pth"]


def test_a_broken_copy_in_the_cache_is_not_used(empty_cache, monkeypatch):
    empty_cache.mkdir(parents=True)
    (empty_cache / "weights.pth").write_bytes(b"half of it")
    with serving(monkeypatch, lambda connection: connection.sendall(b"HTTP/1.0 404 No\r\n\r\n")):
        assert_not_measured("404")


@pytest.mark.parametrize(
    "wrong", [images(2).astype(np.float32), images(2)[0], images(2, channels=2), images(1)]
)
def test_what_is_not_images(wrong):
    with pytest.raises(ValueError, match="expected"):
        inception_features([images(2), wrong])
