"""Distances from rows to those of other folds: known answers and files."""

import numpy as np
import pytest
import scipy
import torch

from submanifold.evaluation.intervals import false_alarm_range
from submanifold.flows import RealNVP
from submanifold.models import CrossFitted, Hierarchy, Model, Neighbors, Stage
from submanifold.models.neighbors import normal_scores


def random_neighbors(count=60, dim=3, folds=5):
    rng = np.random.default_rng(0)
    rows, fold = rng.normal(size=(count, dim)), rng.permutation(count) % folds
    return Neighbors(count, dim, folds).double().set(*map(torch.from_numpy, (rows, fold)))


def with_normal_scores(x, rows):
    """Append the normal scores of x among rows without ties, by NumPy."""
    ranks = (rows[None] < x[:, None]).sum(1) + (rows[None] == x[:, None]).sum(1) / 2
    shares = ranks.clip(0.25, len(rows) - 0.25) / len(rows)
    return np.hstack([x, scipy.stats.norm.ppf(shares)])


def nearest_outside(neighbors, x, number):
    """Mean distances of x to the three nearest rows outside a fold, by NumPy."""
    outside = neighbors.rows.numpy()[neighbors.fold.numpy() != number]
    of_x, of_rows = (with_normal_scores(each, outside) for each in (x.numpy(), outside))
    distances = np.linalg.norm(of_x[:, None] - of_rows, axis=2)
    return np.sort(distances, axis=1)[:, :3].mean(axis=1)


def test_distances_are_means_of_the_three_nearest_rows_outside_each_fold():
    neighbors, x = random_neighbors(), torch.randn(20, 3).double()
    of_folds = [nearest_outside(neighbors, x, number) for number in range(5)]
    np.testing.assert_allclose(neighbors.distance(x), np.mean(of_folds, axis=0))
    np.testing.assert_allclose(neighbors.distance(x, 3), of_folds[3])


def test_no_row_is_its_own_neighbor_in_its_fold():
    neighbors = random_neighbors()
    for number in range(5):
        rows = neighbors.rows[neighbors.fold == number]
        expected = nearest_outside(neighbors, rows, number)
        np.testing.assert_allclose(neighbors.distance(rows, number), expected)


def test_distances_of_rows_that_are_not_finite_are_infinite():
    x = torch.tensor([[torch.nan, 0, 0], [torch.inf, 0, 0], [1e30, 0, 0]]).double()
    distances = random_neighbors().distance(x)
    assert distances.isinf().tolist() == [True, True, False]


def test_distances_grow_far_from_the_rows():
    far = 10.0 ** torch.arange(1, 9)[:, None].repeat(1, 3).double()
    distances = random_neighbors().distance(far)
    torch.testing.assert_close(distances[3:], far[3:].norm(dim=1), rtol=1e-3, atol=0)


def test_other_values_of_constants_are_as_far_as_the_only_other_value_of_a_column():
    """One row alone has another value, which rows of its fold are compared with the others by."""
    column, fold = np.eye(60)[0], torch.arange(60) % 5
    deviation = (column[0] - np.mean(column)) / np.std(column)
    rows = torch.from_numpy(np.where(column, 0.3, -0.1)[:, None])
    neighbors, (end, middle) = Neighbors(60, 1, 5).double().set(rows, fold), normal_ends(48)
    expected = np.hypot(deviation, end - middle)
    assert neighbors.distance(rows[:1], 0).item() == pytest.approx(expected, rel=0.03)
    assert neighbors.distance(torch.zeros(1, 1), 0).item() < 3.5  # a missing value
    others = random_neighbors(count=60).with_changes(np.array([3.0, 3, -1]), np.array([1, 0, 0]))
    assert others == pytest.approx([np.hypot(3, deviation), 3, -1], rel=0.01)


def test_normal_rows_with_new_values_in_rare_columns_are_not_farther_than_rows_of_a_fold():
    rng, count = np.random.default_rng(0), 300
    rows = (rng.random((count + 2000, 100)) < 1 / count).astype(float)
    is_constant = rows[:count].std(0) == 0
    places, changes = (
        torch.from_numpy(rows[:, ~is_constant]) - 0.1,
        rows[count:, is_constant].sum(1),
    )
    assert (changes > 0).mean() > 0.1
    fold = torch.arange(count) % 5
    neighbors = Neighbors(count, places.shape[1], 5).double().set(places[:count], fold)
    held_out = np.zeros(count)
    for number in range(5):
        held_out[fold == number] = neighbors.distance(places[:count][fold == number], number)
    new = neighbors.with_changes(neighbors.distance(places[count:]).numpy(), changes)
    _, high = false_alarm_range(0.05, 2000, count)
    assert (new > np.quantile(held_out, 0.95)).mean() < high


def normal_ends(count):
    return scipy.stats.norm.ppf((count - 0.25) / count), 0.0


def test_normal_scores_are_those_of_ranks_and_of_monotone_functions():
    rows = torch.tensor([[1.0, 0], [2, 0], [3, 0], [4, 1]]).double()
    x = torch.tensor([[2.0, 0], [2.5, 1], [9, -1]]).double()
    shares = np.array([[1.5, 1.5], [2, 3.5], [3.75, 0.25]]) / 4
    scores = normal_scores(x, rows)
    np.testing.assert_allclose(scores, scipy.stats.norm.ppf(shares), atol=1e-12)
    assert torch.equal(normal_scores(x.exp(), rows.exp()), scores)


def test_files_keep_the_rows(tmp_path):
    models = [Hierarchy([Stage(RealNVP(3, couplings=2), dim=2)]) for _ in range(6)]
    neighbors = random_neighbors().float()
    CrossFitted(models[0], models[1:], neighbors).save(tmp_path / "model")
    loaded = Model.load(tmp_path / "model").neighbors
    assert torch.equal(loaded.rows, neighbors.rows)
    assert torch.equal(loaded.fold, neighbors.fold)
