"""Points of synthetic manifolds on disk."""

import json

import numpy as np

from submanifold.data.prepare import draw
from submanifold.data.settings import SyntheticSettings

SETTINGS = {"source": "circle", "noise": 0.1, "counts": {"train": 50, "valid": 10, "test": 20}}


def settings(**changes):
    return SyntheticSettings(**{**SETTINGS, **changes})


def arrays(folder, **changes):
    return [np.array(events.x) for events in draw(settings(**changes), folder)[:3]]


def test_points_are_drawn_once(tmp_path):
    *splits, manifest = draw(settings(), tmp_path)
    assert [split.x.shape for split in splits] == [(50, 2), (10, 2), (20, 2)]
    assert {split.x.dtype for split in splits} == {np.dtype("float32")}
    assert manifest == json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["counts"] == SETTINGS["counts"]
    before = (tmp_path / "train.npy").stat().st_mtime_ns
    again = draw(settings(), tmp_path)
    assert (tmp_path / "train.npy").stat().st_mtime_ns == before
    assert np.array_equal(again[0].x, splits[0].x)


def test_each_split_has_its_own_stream(tmp_path):
    """Of equal size, two splits of one stream would be equal."""
    found = arrays(tmp_path / "a", counts={"train": 10, "valid": 10, "test": 10})
    for index, array in enumerate(found):
        rng = np.random.default_rng([0, index])
        points = settings().manifold.sample(10, rng)
        assert np.array_equal(array, points.astype(np.float32))
    more = arrays(tmp_path / "b", counts={"train": 99, "valid": 9, "test": 10})
    assert np.array_equal(more[2], found[2])
