"""Settings of the data: each has an effect or is rejected with one message."""

import numpy as np
import pytest

from submanifold.common.errors import UserError
from submanifold.data.settings import SyntheticSettings, read_data_settings
from submanifold.data.synthetic import MANIFOLDS

FOLDER, CELEBA = {"source": "folder", "path": "x"}, {"source": "celeba"}
URL, HASH = {"url": "http://x"}, {"hash": "md5:0"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sise": 32}, r"data\.sise is not a setting; known: source, path"),
        (
            {"source": "celebs"},
            r"data\.source: expected the name of a source, got celebs. Did you mean celeba\?",
        ),
        ({"split": "halves"}, r"data\.split=halves .*official"),
        (CELEBA | {"hash": "abc"}, r"data\.hash=abc .*md5"),
        ({"path": "pictures"}, r"data\.path: expected none with source=photos, got pictures\."),
        ({"source": "mnist", "margin": 16}, r"data\.margin: expected less than half of size=32"),
        (FOLDER | {"labels": [1]}, r"data\.labels: expected none .* got \[1\]\. .*medmnist"),
        ({"source": "mnist", "labels": [1], "other_labels": [2]}, "none together with labels"),
        (FOLDER | {"split": "official"}, r"data\.split: expected random with source=folder"),
        (CELEBA | {"path": "x"} | URL, r"data\.url: expected none without a download of celeba"),
        (CELEBA | URL, r"data\.hash: expected the checksum of the file at url, got none\."),
        ({"source": "circle", "size": 8}, r"data\.size is not a setting; known: source, noise"),
    ],
)
def test_invalid_settings_are_rejected(settings, message):
    with pytest.raises(UserError, match=message):
        read_data_settings(settings)


@pytest.mark.parametrize("url", [
    "https://me:hidden@host/a.zip", "https://hidden@host/a.zip", "ftp://me:hidden@host/a.zip",
    "https://host/a.zip?part=1&X-Amz-Signature=hidden", "https://host/a.zip?access_token=hidden",
])  # fmt: skip
def test_an_address_with_credentials_is_refused_and_not_shown(url):
    """The settings are stored with the run and in MLflow."""
    with pytest.raises(UserError, match=r"data\.url: expected an address .*netrc") as caught:
        read_data_settings(CELEBA | {"url": url, "hash": "md5:0"})
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("name", MANIFOLDS)
def test_every_manifold_is_a_source(name):
    settings = read_data_settings({"source": name})
    assert isinstance(settings, SyntheticSettings)
    assert settings.event_shape == (MANIFOLDS[name].ambient_dim,)
    noise = MANIFOLDS[name]().noise
    assert settings.facts == {"dim": MANIFOLDS[name].ambient_dim, "noise": noise}
    assert np.isfinite(settings.manifold.manifold_entropy)
