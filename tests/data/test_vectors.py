import json

import numpy as np
import pytest

from submanifold.data.settings import SyntheticSettings, read_data_settings
from submanifold.data.synthetic import MANIFOLDS
from submanifold.data.vectors import draw
from submanifold.errors import UserError

SETTINGS = {"source": "circle", "noise": 0.1, "counts": {"train": 50, "valid": 10, "test": 20}}


def test_points_are_drawn_once_and_found_again(tmp_path):
    train, valid, test, manifest = draw(SETTINGS, tmp_path)
    assert [a.shape for a in (train, valid, test)] == [(50, 2), (10, 2), (20, 2)]
    assert {a.dtype for a in (train, valid, test)} == {np.dtype("float32")}
    assert manifest == json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["counts"] == SETTINGS["counts"]
    before = (tmp_path / "train.npy").stat().st_mtime_ns
    again = draw(SETTINGS, tmp_path)
    assert (tmp_path / "train.npy").stat().st_mtime_ns == before
    assert np.array_equal(again[0], train)


def test_splits_and_seeds_are_streams_of_their_own(tmp_path):
    train, valid, test, _ = draw(SETTINGS, tmp_path / "a")
    assert len(np.unique(np.concatenate([train, valid, test]), axis=0)) == 80
    other = draw({**SETTINGS, "seed": 1}, tmp_path / "b")
    assert not np.array_equal(other[0], train)


def test_other_settings_in_the_same_folder_draw_anew(tmp_path):
    first = np.array(draw(SETTINGS, tmp_path)[0])
    second = draw({**SETTINGS, "noise": 0.2}, tmp_path)[0]
    assert not np.array_equal(first, second)


def test_an_interrupted_draw_is_finished_with_the_same_points(tmp_path):
    whole = draw(SETTINGS, tmp_path / "whole")
    draw(SETTINGS, tmp_path / "cut")
    (tmp_path / "cut" / "test.npy").unlink()
    (tmp_path / "cut" / "manifest.json").unlink()
    for a, b in zip(draw(SETTINGS, tmp_path / "cut")[:3], whole[:3], strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("name", MANIFOLDS)
def test_every_manifold_is_a_source(name):
    settings = read_data_settings({"source": name})
    assert isinstance(settings, SyntheticSettings)
    assert settings.event_shape == (MANIFOLDS[name].ambient_dim,)
    assert settings.manifold.noise == MANIFOLDS[name]().noise


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "klein_bottle"}, "data.source=klein_bottle is not known; known: photos"),
        ({"source": "circle", "noise": -1}, "data.noise=-1 cannot be used"),
        ({"source": "circle", "size": 8}, "data.size is not a setting; known: source, noise"),
        ({"source": "circle", "counts": {"train": 0}}, "data.counts.train=0 cannot be used"),
    ],
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        read_data_settings(settings)
