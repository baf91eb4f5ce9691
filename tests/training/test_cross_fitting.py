"""Folds of a cross-validation."""

import numpy as np
import pandas as pd

from submanifold.data import Events
from submanifold.data.tables import Preprocessor
from submanifold.training.cross_fitting import FOLDS, assign_folds, choose_neighbors


def test_folds_have_equal_sizes_and_whole_groups():
    x = np.zeros((103, 2))
    sizes = np.bincount(assign_folds(Events(x), 0), minlength=FOLDS)
    assert sorted(sizes) == [20, 20, 21, 21, 21]
    assert not np.array_equal(assign_folds(Events(x), 0), assign_folds(Events(x), 1))
    groups = np.random.default_rng(0).integers(100, 120, 103)
    fold = assign_folds(Events(x, groups=groups), 0)
    assert len({*zip(groups, fold, strict=True)}) == len({*groups})
    assert {*fold} == {*range(FOLDS)}


def test_neighbors_are_rows_without_noise_and_with_their_folds():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"count": rng.integers(0, 9, 2500), "size": rng.normal(size=2500)})
    table.loc[:99, "size"] = np.nan
    preprocessor = Preprocessor.fit(table)
    events = preprocessor.transform(table, salt=np.arange(2500))
    fold = assign_folds(events, 0)
    neighbors = choose_neighbors(preprocessor, events, fold, 0)
    rows, of_rows = neighbors.rows.numpy(), neighbors.fold.numpy()
    assert rows.shape == (2000, 2)
    assert len(np.unique(rows[:, 0])) == 9
    places = preprocessor.without_noise(events.x, events.context)
    assert (places[:100, 1] == 0).all()
    known = {(*place, number) for *place, number in zip(*places.T, fold, strict=True)}
    assert {(*row, number) for *row, number in zip(*rows.T, of_rows, strict=True)} <= known
