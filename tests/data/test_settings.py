"""Settings of the data: each has an effect or is rejected with one message."""

import numpy as np
import pytest

from submanifold.common.errors import UserError
from submanifold.data.settings import SyntheticSettings, read_data_settings
from submanifold.data.synthetic import MANIFOLDS

FOLDER = {"source": "folder", "path": "x"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"sise": 32},
            r"data\.sise is not a setting; known: size, .* others\. Did you mean size\?",
        ),
        (
            {"source": "celebs"},
            r"data\.source: expected the name of a source, got celebs. Did you mean celeba\?",
        ),
        ({"split": "halves"}, r"data\.split=halves .*official"),
        ({"path": "pictures"}, r"data\.path: expected none with source=photos, got pictures\."),
        ({"source": "mnist", "margin": 16}, r"data\.margin: expected less than half of size=32"),
        ({"source": "folder"}, r"data\.path: expected a folder, .* with source=folder, got none"),
        (FOLDER | {"labels": [1]}, r"data\.labels: expected none with source=folder, got \(1,\)"),
        ({"source": "mnist", "groups": "folder"}, r"data\.groups: expected none with source=mnist"),
        (
            {"source": "mnist", "labels": [1], "other_labels": [2]},
            r"data\.other_labels: expected none with labels=\[1\], got \(2,\)",
        ),
        ({"source": "wine", "path": "x.csv"}, r"data\.path: expected none with source=wine"),
        (FOLDER | {"split": "official"}, r"data\.split: expected random with source=folder"),
        ({"source": "circle", "size": 8}, r"data\.size is not a setting; known: source, noise"),
    ],
)
def test_invalid_settings_are_rejected(settings, message):
    with pytest.raises(UserError, match=message):
        read_data_settings(settings)


@pytest.mark.parametrize("name", MANIFOLDS)
def test_every_manifold_is_a_source(name):
    settings = read_data_settings({"source": name})
    assert isinstance(settings, SyntheticSettings)
    assert settings.event_shape == (MANIFOLDS[name].ambient_dim,)
    noise = MANIFOLDS[name]().noise
    assert settings.facts == {"dim": MANIFOLDS[name].ambient_dim, "noise": noise}
    assert np.isfinite(settings.manifold.manifold_entropy)
