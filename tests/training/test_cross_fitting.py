"""Folds of a cross-validation."""

import numpy as np

from submanifold.data import Events
from submanifold.training.cross_fitting import FOLDS, assign_folds


def test_folds_have_equal_sizes_and_whole_groups():
    x = np.zeros((103, 2))
    sizes = np.bincount(assign_folds(Events(x), 0), minlength=FOLDS)
    assert sorted(sizes) == [20, 20, 21, 21, 21]
    assert not np.array_equal(assign_folds(Events(x), 0), assign_folds(Events(x), 1))
    groups = np.random.default_rng(0).integers(100, 120, 103)
    fold = assign_folds(Events(x, groups=groups), 0)
    assert len({*zip(groups, fold, strict=True)}) == len({*groups})
    assert {*fold} == {*range(FOLDS)}
