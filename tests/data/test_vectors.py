import json

import numpy as np
import pytest

from submanifold.common.errors import UserError
from submanifold.data import prepare as vectors
from submanifold.data.prepare import draw
from submanifold.data.settings import SyntheticSettings, read_data_settings
from submanifold.data.synthetic import MANIFOLDS

SETTINGS = {"source": "circle", "noise": 0.1, "counts": {"train": 50, "valid": 10, "test": 20}}


def make(**changes):
    return SyntheticSettings(**{**SETTINGS, **changes})


def test_points_are_drawn_once_and_found_again(tmp_path):
    train, valid, test, manifest = draw(make(), tmp_path)
    assert [a.shape for a in (train, valid, test)] == [(50, 2), (10, 2), (20, 2)]
    assert {a.dtype for a in (train, valid, test)} == {np.dtype("float32")}
    assert manifest == json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["counts"] == SETTINGS["counts"]
    before = (tmp_path / "train.npy").stat().st_mtime_ns
    again = draw(make(), tmp_path)
    assert (tmp_path / "train.npy").stat().st_mtime_ns == before
    assert np.array_equal(again[0], train)


def test_splits_and_seeds_are_streams_of_their_own(tmp_path):
    train, valid, test, _ = draw(make(), tmp_path / "a")
    assert len(np.unique(np.concatenate([train, valid, test]), axis=0)) == 80
    other = draw(make(seed=1), tmp_path / "b")
    assert not np.array_equal(other[0], train)


def test_other_settings_in_the_same_folder_draw_anew(tmp_path):
    first = np.array(draw(make(), tmp_path)[0])
    second = draw(make(noise=0.2), tmp_path)[0]
    assert not np.array_equal(first, second)


def test_an_interrupted_draw_is_finished_with_the_same_points(tmp_path):
    whole = draw(make(), tmp_path / "whole")
    draw(make(), tmp_path / "cut")
    (tmp_path / "cut" / "test.npy").unlink()
    (tmp_path / "cut" / "manifest.json").unlink()
    for a, b in zip(draw(make(), tmp_path / "cut")[:3], whole[:3], strict=True):
        assert np.array_equal(a, b)


def test_every_split_has_a_stream_of_its_own(tmp_path):
    """With counts that are alike, two splits of one stream would be the same points."""
    counts = {"train": 10, "valid": 10, "test": 10}
    arrays = draw(make(counts=counts), tmp_path)[:3]
    for index, array in enumerate(arrays):
        rng = np.random.default_rng([0, index])
        assert np.array_equal(array, make().manifold.sample(10, rng).astype(np.float32))
    assert len(np.unique(np.concatenate(arrays), axis=0)) == 30


def test_a_split_does_not_depend_on_the_others_counts(tmp_path):
    more = draw(make(counts={"train": 99, "valid": 9, "test": 20}), tmp_path / "more")
    assert np.array_equal(more[2], draw(make(), tmp_path / "few")[2])


@pytest.mark.parametrize("name", ["manifest.json", "train.npy", "test.npy"])
def test_what_is_half_written_is_drawn_again(tmp_path, name):
    first = [np.array(array) for array in draw(make(), tmp_path)[:3]]
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) - 3])
    assert all(map(np.array_equal, draw(make(), tmp_path)[:3], first))
    assert (tmp_path / name).read_bytes() == content


def test_a_turned_bit_is_found_and_the_points_are_drawn_anew(tmp_path, caplog):
    draw(make(), tmp_path)
    content = bytearray((tmp_path / "test.npy").read_bytes())
    whole = bytes(content)
    content[-1] ^= 1
    (tmp_path / "test.npy").write_bytes(content)
    draw(make(), tmp_path)
    assert "are not as they were made: drawn anew" in caplog.text
    assert (tmp_path / "test.npy").read_bytes() == whole


def test_points_that_were_drawn_may_lie_where_they_may_only_be_read(tmp_path, read_only, caplog):
    first = draw(make(), tmp_path)
    read_only(tmp_path)
    again = draw(make(), tmp_path)
    assert (again[3], caplog.text) == (first[3], "")
    with pytest.raises(UserError, match=r"manifest\.json cannot be written: .* is read-only"):
        draw(make(noise=0.2), tmp_path)


def test_points_of_earlier_versions_have_no_hash_and_are_kept(tmp_path):
    *_, manifest = draw(make(), tmp_path)
    before = (tmp_path / "train.npy").stat().st_mtime_ns
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "hash": None}))
    assert draw(make(), tmp_path)[3] == manifest
    assert (tmp_path / "train.npy").stat().st_mtime_ns == before


def test_a_killed_draw_of_other_settings_is_not_taken_for_the_first(tmp_path, monkeypatch):
    first = [np.array(array) for array in draw(make(), tmp_path)[:3]]

    def kill(path, content):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(vectors, "write_json", kill)
        with pytest.raises(KeyboardInterrupt):
            draw(make(noise=0.5), tmp_path)
    assert all(map(np.array_equal, draw(make(), tmp_path)[:3], first))


def test_a_model_is_told_of_its_points():
    assert make().facts == {"dim": 2, "noise": 0.1}
    assert SyntheticSettings(source="torus").facts == {"dim": 3, "noise": 0.05}


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
