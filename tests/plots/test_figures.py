"""What the figures show, by the public interfaces of matplotlib and Pillow."""

import io
import math
import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from submanifold.plots.curves import dimension_curves, training_curves
from submanifold.plots.images import as_png, tile
from submanifold.plots.manifolds import manifold_figure
from submanifold.plots.strips import strips
from submanifold.plots.tables import marginals, pairs

RNG = np.random.default_rng(0)


def rendered(figure):
    """Return the pixels of the PNG file; fail on a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return np.asarray(Image.open(io.BytesIO(as_png(figure))).convert("RGB"))


def noise(count, channels=3, size=8):
    return RNG.integers(0, 256, (count, channels, size, size), dtype=np.uint8)


# ---- images


@pytest.mark.parametrize(("count", "columns"), [(1, 16), (3, 8), (5, 2), (8, 8)])
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32), (3, 65)])
def test_tiles_contain_the_images_in_order(count, columns, channels, size):
    images = noise(count, channels, size)
    grid, step = tile(images, columns), size + max(1, size // 16)
    for index, image in enumerate(images):
        row, column = (each * step for each in divmod(index, columns))
        part = grid[row : row + size, column : column + size]
        np.testing.assert_array_equal(part, np.broadcast_to(image.transpose(1, 2, 0), part.shape))
    assert grid.shape[1] == min(count, columns) * step - (step - size)


@pytest.mark.parametrize(("count", "columns"), [(1, 16), (3, 8), (9, 9), (32, 16)])
def test_strips_have_at_most_four_images_in_a_row(count, columns):
    images, step = noise(count, 3, 32), 34
    shown = strips(images, columns)
    assert len(shown) == -(-min(count, columns) // 4)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        strip, left, top = np.asarray(shown[column // 4]), column % 4 * step, row * step
        assert strip.shape[1] <= 4 * step
        part = strip[top : top + 32, left : left + 32]
        np.testing.assert_array_equal(part, image.transpose(1, 2, 0))


# ---- training


def history(steps, keys=("loss", "bits_per_dim", "mse"), value=lambda step: 1 / step, **more):
    entries = [{"step": step, **dict.fromkeys(keys, value(step))} for step in steps]
    return {"train": entries, "valid": entries[::2], "best_step": steps[-1], **more}


@pytest.mark.parametrize("keys", [("loss", "bits_per_dim", "mse"), ("loss", "bits_per_dim")])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_training_curves_accept_any_value(keys, value):
    values = {10: 1.0, 20: value, 30: 0.5}
    curves = training_curves({"stage_1": {**history([*values], keys, values.get), "best_step": 20}})
    assert {*curves.axes[0].lines[-1].get_xdata()} == {20}
    rendered(curves)


def test_panels_of_one_point_are_hidden():
    histories = {"short": history([5]), "long": history([5, 10, 15])}
    titles = [axes.get_title() for axes in training_curves(histories).axes]
    assert titles
    assert all("long" in title for title in titles)
    point = {"dims": [3], "mse": [0.1], "pca_mse": [0.2], "nearest_dims": [3], "nearest_mse": [0.1]}
    for empty in (training_curves({"short": history([5])}), dimension_curves(point, 3)):
        rendered(empty)
        assert not empty.axes


# ---- manifolds


def manifolds(columns, has_grid):
    """A circle or a sphere, a learned manifold near it, and a grid around the circle."""
    true = RNG.standard_normal((300, columns))
    true /= np.linalg.norm(true, axis=1, keepdims=True)
    x, y = np.linspace(-2, 2, 31), np.linspace(-2, 1, 26)
    density = -20 * (np.hypot(*np.meshgrid(x, y)) - 1) ** 2
    return {
        "true_points": true, "true_density": true[:, 0], "learned_points": 1.02 * true,
        "learned_density": true[:, 1].copy(), "samples": 1.02 * np.roll(true, 1, axis=0),
        "points": true + 0.1, "projections": 1.02 * true,
        "grid": (x, y, density, density - 1) if has_grid else None,
    }  # fmt: skip


@pytest.mark.parametrize("has_grid", [True, False])
def test_points_are_those_given(has_grid):
    given = manifolds(2, has_grid)
    *_, samples, projection, _ = manifold_figure(**given).axes
    np.testing.assert_array_equal(samples.collections[-1].get_offsets(), given["samples"])
    np.testing.assert_array_equal(
        projection.collections[-1].get_offsets(), given["projections"][:250]
    )
    lines = projection.lines[0].get_xydata().reshape(250, 3, 2)
    np.testing.assert_array_equal(lines[:, 0], given["points"][:250])
    np.testing.assert_array_equal(lines[:, 1], given["projections"][:250])


@pytest.mark.parametrize(("columns", "has_grid"), [(2, True), (2, False), (3, False)])
def test_a_diverged_model_does_not_change_the_scales(columns, has_grid):
    given = manifolds(columns, has_grid)
    before = manifold_figure(**given)
    for name in ("learned_points", "samples", "projections"):
        given[name] = given[name].copy()
        given[name][::3] *= 1e30
        given[name][1] = np.nan
    given["learned_density"][:] = np.where(np.arange(300) % 2, 800, np.nan)
    after = manifold_figure(**given)
    rendered(after)
    limits = [[axes.get_xlim() for axes in figure.axes] for figure in (before, after)]
    assert limits[0] == limits[1]


# ---- tables


def test_incomes_are_at_their_values_and_plain_numbers():
    table = pd.DataFrame({"income": [20_000, 50_000, 1_500_000]})
    (axes,) = marginals({"test rows": table, "samples": table}).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "20,000",
        "50,000",
        "1,500,000",
    ]
    assert np.diff(axes.get_xticks()) == pytest.approx([30_000, 1_450_000])


def test_tables_of_one_constant_or_missing_value_have_figures():
    table = pd.DataFrame({"a": [1.0, 1.0], "b": [np.nan, 2.0], "c": [0.5, 1.5]})
    rendered(marginals({"test rows": table, "samples": table}))
    rendered(pairs(table, table))
    categories = pd.DataFrame({"city": ["a", "b"]})
    rendered(pairs(categories, categories))
