"""Halves of inputs, of which one trains the model that scores the other."""

import numpy as np
import pytest

from submanifold.runs.score import split_halves


@pytest.mark.parametrize("per_group", [1, 2])
def test_each_half_scores_what_the_other_one_trains_on(per_group):
    group = np.arange(200 * per_group) // per_group
    halves = split_halves(group, seed=0)
    for half, other in (halves, halves[::-1]):
        parts = [{*group[numbers]} for numbers in half]
        assert [len(part) for part in parts] == [90, 10, 100]
        assert set.union(*parts) == {*group}
        np.testing.assert_array_equal(np.sort([*half.train, *half.valid]), other.scored)
    assert not np.array_equal(halves[0].scored, split_halves(group, seed=1)[0].scored)
