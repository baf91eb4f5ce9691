"""Events keep what belongs to them, or are refused."""

import copy

import numpy as np
import pytest

from submanifold.common.errors import UserError
from submanifold.data import Events
from submanifold.data.arrays import load_events, save_events

X = np.arange(6.0).reshape(3, 2)


def events():
    numbers = np.array([5, 6, 7])
    return Events(X, context=numbers, groups=numbers + 1, labels=numbers + 2, rows=numbers + 3)


@pytest.mark.parametrize("index", [[2, 0], slice(1, None), np.array([True, False, True])])
def test_a_selection_is_of_all_that_belongs_to_events(index):
    selected = events()[index]
    for number, name in enumerate(("context", "groups", "labels", "rows")):
        assert np.array_equal(getattr(selected, name), np.array([5, 6, 7])[index] + number)
    assert np.array_equal(selected.x, X[index])


def test_copies_and_joined_events_keep_the_context():
    for same in (copy.copy(events()), copy.deepcopy(events())):
        assert same.context.tolist() == [5, 6, 7]
    both = Events.concatenate([events(), events()[:1]])
    assert both.context.tolist() == [5, 6, 7, 5]
    with pytest.raises(UserError, match=r"^context: expected in all parts or in none, got none in"):
        Events.concatenate([Events(X, context=X), Events(X)])


def joined(part):
    return np.concatenate([part, part])


@pytest.mark.parametrize("convert", [np.asarray, np.array, np.exp, joined])
def test_events_are_not_converted_to_an_array_without_their_context(convert):
    with pytest.raises(TypeError, match="attribute x"):
        convert(events())


@pytest.mark.parametrize("index", [0, np.int64(1), (slice(None), 0), "x"])
def test_an_index_selects_events(index):
    with pytest.raises(TypeError, match="expected a slice, a mask or numbers of events, got"):
        events()[index]


@pytest.mark.parametrize("name", ["context", "groups", "labels", "rows"])
def test_there_is_one_of_each_kind_for_each_event(name):
    with pytest.raises(UserError, match=rf"^{name}: expected one row for each of 3 events, got 2"):
        Events(X, **{name: np.zeros(2)})


def test_files_keep_the_context_and_the_groups(tmp_path):
    save_events(tmp_path / "x.npy", events())
    loaded = load_events(tmp_path / "x.npy")
    assert (loaded.context.tolist(), loaded.groups.tolist()) == ([5, 6, 7], [6, 7, 8])
    assert np.array_equal(loaded.x, X)
