"""Distances from rows to those of other folds: known answers and files."""

import numpy as np
import torch

from submanifold.flows import RealNVP
from submanifold.models import CrossFitted, Hierarchy, Model, Neighbors, Stage


def random_neighbors(count=60, dim=3, folds=5):
    rng = np.random.default_rng(0)
    rows, fold = rng.normal(size=(count, dim)), rng.permutation(count) % folds
    return Neighbors(count, dim, folds).double().set(*map(torch.from_numpy, (rows, fold)))


def test_distances_are_means_of_the_three_nearest_rows_outside_each_fold():
    neighbors, x = random_neighbors(), torch.randn(20, 3).double()
    rows, fold = neighbors.rows.numpy(), neighbors.fold.numpy()
    distances = np.linalg.norm(x.numpy()[:, None] - rows, axis=2)
    nearest = [np.sort(distances[:, fold != number], axis=1)[:, :3] for number in range(5)]
    of_folds = np.mean(nearest, axis=2)
    np.testing.assert_allclose(neighbors.distance(x), np.mean(of_folds, axis=0))
    np.testing.assert_allclose(neighbors.distance(x, 3), of_folds[3])


def test_no_row_is_its_own_neighbor_in_its_fold():
    neighbors = random_neighbors()
    rows, fold = neighbors.rows, neighbors.fold
    for number in range(5):
        others = rows[fold != number]
        expected = torch.cdist(rows[fold == number], others).sort(1)[0][:, :3].mean(1)
        torch.testing.assert_close(neighbors.distance(rows[fold == number], number), expected)


def test_distances_of_rows_that_are_not_finite_are_infinite():
    x = torch.tensor([[torch.nan, 0, 0], [torch.inf, 0, 0], [1e30, 0, 0]]).double()
    distances = random_neighbors().distance(x)
    assert distances.isinf().tolist() == [True, True, False]


def test_files_keep_the_rows(tmp_path):
    models = [Hierarchy([Stage(RealNVP(3, couplings=2), dim=2)]) for _ in range(6)]
    neighbors = random_neighbors().float()
    CrossFitted(models[0], models[1:], neighbors).save(tmp_path / "model")
    loaded = Model.load(tmp_path / "model").neighbors
    assert torch.equal(loaded.rows, neighbors.rows)
    assert torch.equal(loaded.fold, neighbors.fold)
