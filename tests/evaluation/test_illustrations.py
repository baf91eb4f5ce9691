"""The images of the report: projections by dimension, neighbors, and traversals."""

import numpy as np
import pytest
import torch

from strategies import affine
from submanifold.config.schema import EvaluationSettings
from submanifold.data import Events, dequantize
from submanifold.data.batches import as_input
from submanifold.evaluation.baselines import fit_baselines
from submanifold.evaluation.events import measure_events
from submanifold.evaluation.illustrations import (
    interpolate,
    interpolate_latents,
    nearest_images,
    pixel_errors,
    project_all,
    project_by_dim,
    traverse,
)
from submanifold.evaluation.reconstruction import SHOWN_DIMS
from submanifold.evaluation.samples import stored
from submanifold.flows import Glow, RealNVP
from submanifold.models import Hierarchy, Stage
from submanifold.pipelines.evaluation import nodes

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)


def hierarchy(code_flow=False):
    torch.manual_seed(0)
    last = Stage(RealNVP(16, 2), 16 if code_flow else 6)
    model = Hierarchy([Stage(Glow((1, 8, 8), 2, 1, width=8), 16), last]).eval()
    with torch.no_grad():
        model(dequantize(torch.from_numpy(IMAGES)))
    return model


@pytest.fixture(scope="module")
def pca():
    return fit_baselines(*[Events(IMAGES)] * 3)[1]


@pytest.mark.parametrize("code_flow", [False, True])
def test_projections_by_dimension_are_those_of_the_slices(code_flow, pca):
    model, some = hierarchy(code_flow), IMAGES[:4]
    found = project_by_dim(model, some, pca)
    assert found["dims"].tolist() == [d for d in SHOWN_DIMS if d <= min(62, model.max_dim)]
    for number, dim in enumerate(found["dims"].tolist()):
        single = project_all(model.at_dim(dim), some, pca)
        for kind in ("nearest", "pca"):
            np.testing.assert_array_equal(single[kind], found[kind][number])
        assert pixel_errors(found["nearest"][number], some).mean() <= (
            pixel_errors(single["encoder"], some).mean() * 1.01
        )
    assert (np.diff(pixel_errors(found["pca"], some).mean(1)) < 0).all()


def test_pixel_errors_are_those_of_dequantized_pixels():
    first, second = IMAGES[:9], IMAGES[9:18]
    x, y = (
        dequantize(torch.from_numpy(images), torch.Generator().manual_seed(0))
        for images in (first, second)
    )
    expected = (x - y).square().flatten(1).mean(1)
    np.testing.assert_allclose(pixel_errors(first, second), expected, rtol=1e-5)


def test_the_nearest_image_is_the_nearest():
    candidates = RNG.integers(0, 256, (1100, 3, 4, 4), dtype=np.uint8)
    images = RNG.integers(0, 256, (9, 3, 4, 4), dtype=np.uint8)
    images[0], candidates[1099] = candidates[13], candidates[13]
    distances = np.square(images[:, None].astype(float) - candidates).sum((2, 3, 4))
    found = nearest_images(images, candidates)
    assert found.tolist() == distances.argmin(1).tolist()
    assert found[0] == 13


def test_interpolation_ends_at_the_encoder_projections():
    model = hierarchy()
    path = interpolate(model, IMAGES[:2], 5)
    x = as_input(IMAGES[:2])
    with torch.no_grad():
        ends = stored(model.encoder_projection(x))
    assert len(path) == 5
    assert np.abs(path[[0, -1]].astype(int) - ends).max() <= 1


@pytest.mark.parametrize("factor", [1.0, 3.0, -1.0, 0.0])
def test_squared_norm_changes_linearly_along_an_interpolation(factor):
    """A factor of 0 interpolates between equal points."""
    a, b = torch.randn(2, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    b = factor * b * a.norm() / b.norm() if factor else a
    points = interpolate_latents(a, b, 7)
    steps = points.square().sum(1).diff()
    torch.testing.assert_close(steps, steps.mean().expand(6), rtol=0, atol=1e-9)
    torch.testing.assert_close(points[[0, -1]], torch.stack([a, b]))


def test_a_traversal_varies_each_coordinate_around_its_mean():
    """The coordinates are the first columns, whose means are far from 0."""
    rows = RNG.normal([10.0, -20.0, 5.0], [1.0, 2.0, 3.0], (300, 3)).astype(np.float32)
    points = traverse(Hierarchy([Stage(affine(torch.eye(3)), 2)]), rows)
    measured, expected = rows[:256, :2], np.zeros((2, 7, 3))
    expected[:, :, :2] = rows[0, :2]
    for column in range(2):
        deviations = np.linspace(-3, 3, 7) * measured[:, column].std()
        expected[column, :, column] = measured[:, column].mean() + deviations
    np.testing.assert_allclose(points, expected, rtol=1e-4, atol=1e-4)


TRAIN, TEST = IMAGES[:40], IMAGES[40:]
SAMPLES = TRAIN[RNG.permutation(40)[:16]] ^ 1  # the last bits of training images differ


def test_neighbors_are_the_nearest_training_images(pca):
    events = map(Events, (TRAIN, TEST, SAMPLES))
    found = nodes.illustrate(hierarchy(), *events, pca, "cpu")
    np.testing.assert_array_equal(found["sample_neighbors"], SAMPLES ^ 1)
    distances = np.square(TEST[:16, None].astype(float) - TRAIN).sum((2, 3, 4))
    np.testing.assert_array_equal(found["test_neighbors"], TRAIN[distances.argmin(1)])
    np.testing.assert_array_equal(found["originals"], TEST[8:16])
    with torch.no_grad():
        ends = stored(hierarchy().encoder_projection(as_input(TEST[[0, 15]])))
    assert np.abs(found["interpolation"][[0, -1]].astype(int) - ends).max() <= 1


def graphs(model):
    """Whether each call of the first flow records a graph, in a list that calls extend."""
    modes = []
    model.stages[0].flows[0].register_forward_pre_hook(
        lambda *_: modes.append(torch.is_grad_enabled())
    )
    return modes


def test_counts_and_projections_are_those_of_the_splits():
    model, train, test = hierarchy(), Events(TRAIN), Events(TEST, groups=np.arange(20) // 4)
    settings = EvaluationSettings(samples=16, volumes=2)
    histories = {name: {"seconds": 3.0, "warnings": {}} for name in ("density", "rotation")}
    rows, baselines = measure_events(model, {"test": test}), fit_baselines(train, train, test)[0]
    data = rows, train, test, Events(SAMPLES), baselines
    metrics, projections = nodes.evaluate(model, *data, histories, 0.0, settings, "cpu")
    assert metrics["counts"] == {"train": 40, "test": 20, "samples": 16, "test_groups": 5}
    assert metrics["seconds"]["training"] == 6
    with torch.no_grad():
        expected = stored(model.encoder_projection(as_input(TEST[:16])))
    assert np.abs(projections.astype(int) - expected).max() <= 1


def test_images_are_computed_without_a_graph(pca):
    model = hierarchy()
    modes = graphs(model)
    project_all(model, TEST[:2], pca)
    project_by_dim(model, TEST[:2], pca)
    interpolate(model, TEST[:2], 3)
    traverse(model, TEST)
    assert modes
    assert not any(modes)
