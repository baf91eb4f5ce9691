"""Settings of the data: each has an effect or is rejected with one message."""

import numpy as np
import pytest

from submanifold.common.errors import UserError
from submanifold.data.settings import SyntheticSettings, read_data_settings
from submanifold.data.sources import SOURCES
from submanifold.data.synthetic import MANIFOLDS

FOLDER, CELEBA = {"source": "folder", "path": "x"}, {"source": "celeba"}
URL, HASH = {"url": "http://x"}, {"hash": "md5:0"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sise": 32}, r"data\.sise is not a setting; known: source, path"),
        (
            {"source": "celebs"},
            r"data\.source: expected one of photos, .*thin_spiral, .*wine, got celebs",
        ),
        ({"channels": 2}, r"data\.channels=2 is not known; known: 1 or 3"),
        ({"counts": {"train": -1}}, r"data\.counts\.train=-1 .*greater than 0"),
        ({"split": "halves"}, r"data\.split=halves .*official"),
        (CELEBA | {"hash": "abc"}, r"data\.hash=abc .*md5"),
        ({"path": "pictures"}, r"data\.path: expected none with source=photos, got pictures\."),
        ({"crop": "square"}, r"data\.crop: expected auto with source=photos, got square\."),
        ({"margin": 1}, r"data\.margin: expected 0 with source=photos, got 1\."),
        ({"source": "mnist", "margin": 16}, r"data\.margin: expected less than half of size=32"),
        (FOLDER | {"labels": [1]}, r"data\.labels: expected none .* got \[1\]\. .*medmnist"),
        ({"source": "mnist", "labels": [1], "other_labels": [2]}, "none together with labels"),
        ({"groups": "folder"}, r"data\.groups: expected none with source=photos, got folder\."),
        (FOLDER | {"split": "official"}, r"data\.split: expected random with source=folder"),
        (CELEBA | {"path": "x"} | URL, r"data\.url: expected none without a download of celeba"),
        (FOLDER | URL | HASH, r"data\.url: expected none without a download of celeba"),
        (CELEBA | HASH, r"data\.hash: expected none without url, got md5:0\."),
        (CELEBA | URL, r"data\.hash: expected the checksum of the file at url, got none\."),
        ({"source": "circle", "noise": -1}, r"data\.noise=-1 cannot be used"),
        ({"source": "circle", "size": 8}, r"data\.size is not a setting; known: source, noise"),
        ({"source": "circle", "counts": {"train": 0}}, r"data\.counts\.train=0 cannot be used"),
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


def test_an_address_may_have_a_query():
    url = "https://host/a.zip?download=1&file=me@b:c"
    assert read_data_settings(CELEBA | HASH | {"url": url}).url == url


@pytest.mark.parametrize("name", [name for name, kind in SOURCES.items() if kind.path_required])
def test_a_path_is_required(name):
    with pytest.raises(UserError, match=rf"data\.path: expected an? .* source={name}, got none"):
        read_data_settings({"source": name})


@pytest.mark.parametrize(
    ("settings", "crop"),
    [
        ({}, "square"),
        (FOLDER, "square"),
        (FOLDER | {"crop": "celeba"}, "celeba"),
        (CELEBA, "celeba"),
        (CELEBA | {"crop": "square"}, "square"),
    ],
)
def test_the_crop_depends_on_the_source(settings, crop):
    facts = read_data_settings(settings).facts
    assert facts == {"size": 32, "channels": 3, "crop": crop, "margin": 0,
                     "value_range": [-0.5, 0.5], "bits": 8}  # fmt: skip


def test_the_place_of_the_files_is_not_part_of_the_content():
    here, there = (read_data_settings(FOLDER | {"path": path}) for path in ("here", "there"))
    assert here.content == there.content != read_data_settings(FOLDER | {"margin": 2}).content


@pytest.mark.parametrize("name", MANIFOLDS)
def test_every_manifold_is_a_source(name):
    settings = read_data_settings({"source": name})
    assert isinstance(settings, SyntheticSettings)
    assert settings.event_shape == (MANIFOLDS[name].ambient_dim,)
    noise = MANIFOLDS[name]().noise
    assert settings.facts == {"dim": MANIFOLDS[name].ambient_dim, "noise": noise}
    assert np.isfinite(settings.manifold.manifold_entropy)
