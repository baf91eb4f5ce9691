"""What the figures show, by the public interfaces of matplotlib and Pillow."""

import io
import math
import warnings

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from submanifold.plots.comparisons import auroc_dots, frontier, number_grids
from submanifold.plots.curves import dimension_curves, training_curves
from submanifold.plots.images import as_png, tile
from submanifold.plots.manifolds import manifold_figure
from submanifold.plots.ood import (
    density_and_distance,
    density_histogram,
    roc_curves,
    score_histograms,
    threshold_histogram,
)
from submanifold.plots.sheets import sheet
from submanifold.plots.tables import marginals, pairs

RNG = np.random.default_rng(0)


def rendered(figure):
    """Return the pixels of the PNG file; fail on a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return np.asarray(Image.open(io.BytesIO(as_png(figure))).convert("RGB"))


def legend(axes):
    return [text.get_text() for text in (axes.get_legend() or axes.figure.legends[0]).get_texts()]


def series(axes):
    """Points of the lines of a panel by their names in its legend."""
    named = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    return {name: named[name] for name in legend(axes)}


def labels(axes):
    return axes.get_xlabel(), axes.get_ylabel()


def start(patch):
    """The left end of the histogram, of one color, that a patch draws."""
    corners = patch.get_xy()
    return corners[corners[:, 1] > 0, 0].min()


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


@pytest.mark.parametrize(("size", "side"), [(32, 32), (128, 128), (130, 65)])
def test_large_images_of_a_sheet_are_reduced(size, side):
    picture = sheet(noise(2, 3, size), 1)
    assert picture.size[0] == side


# ---- training


def history(steps, keys=("loss", "bits_per_dim", "mse"), value=lambda step: 1 / step, **more):
    entries = [{"step": step, **dict.fromkeys(keys, value(step))} for step in steps]
    return {"train": entries, "valid": entries[::2], "best_step": steps[-1], **more}


@pytest.mark.parametrize("keys", [("loss", "bits_per_dim", "mse"), ("loss", "bits_per_dim")])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_training_curves_accept_any_value(keys, value):
    values = {10: 1.0, 20: value, 30: 0.5}
    curves = training_curves({"stage_1": {**history([*values], keys, values.get), "best_step": 20}})
    assert {20} in [{*line.get_xdata()} for line in curves.axes[0].lines]
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


def test_training_curves_are_pale_for_training_and_dots_for_validation_data():
    titles = {
        "loss": "loss",
        "bits_per_dim": "bits per dimension",
        "mse": "squared error of the projection",
    }
    terms = ["likelihood", "volume"]
    curves = {
        kind: [
            {"step": step} | {key: start + n + step for n, key in enumerate([*titles, *terms])}
            for step in steps
        ]
        for kind, start, steps in (("train", 0.0, [10, 20, 30]), ("valid", 0.5, [15, 30]))
    }
    history = curves | {"terms": terms, "best_step": 15, "seconds": 60, "steps": 30}
    figure = training_curves({"stage_1": history})
    rendered(figure)
    for axes, (key, title) in zip(figure.axes, titles.items(), strict=True):
        assert (axes.get_title(), axes.get_xlabel()) == (f"stage_1: {title}", "step")
        expected = {kind: (rows, key) for kind, rows in curves.items()}
        if key == "loss":
            expected |= {term: (curves["valid"], term) for term in terms}
        assert series(axes) == {
            name: [[row["step"], row[key]] for row in rows]
            for name, (rows, key) in expected.items()
        }
        named = {line.get_label(): line for line in axes.lines}
        pale, dots = named["train"], named["valid"]
        assert (pale.get_marker(), dots.get_marker()) == ("None", ".")
        assert pale.get_alpha() < (dots.get_alpha() or 1)
        assert {15} in [{*line.get_xdata()} for line in axes.lines], "the kept weights"
        assert len(axes.child_axes) == (key == "bits_per_dim")
        for top in axes.child_axes:
            assert top.get_xlabel() == "seconds"
            assert top.get_xlim() == pytest.approx(2 * np.array(axes.get_xlim()))


def test_errors_by_dimension_are_under_their_names():
    curve = {
        "dims": [1, 2, 4],
        "mse": [0.9, 0.5, 0.2],
        "pca_mse": [0.8, 0.6, 0.3],
        "nearest_dims": [2, 3],
        "nearest_mse": [0.4, 0.25],
    }
    first_order = {"dims": [1, 3, 5], "mse": [0.7, 0.35, 1e-9]}
    (axes,) = dimension_curves(curve, 2, first_order, unit="inches").axes
    assert series(axes) == {
        "encoder projection": [[1, 0.9], [2, 0.5], [4, 0.2]],
        "nearest projection": [[2, 0.4], [3, 0.25]],
        "PCA": [[1, 0.8], [2, 0.6], [4, 0.3]],
        "first-order estimate": [[1, 0.7], [3, 0.35]],
    }
    assert {2} in [{*line.get_xdata()} for line in axes.lines], "the dimension of the model"
    assert "None" not in [line.get_marker() for line in axes.lines[:3]], "measured points"
    assert labels(axes) == ("dimension of the manifold", "mean squared error, inches")


# ---- comparisons


def test_a_frontier_has_filled_encoder_and_open_nearest_projections():
    points = {"ours": (3.0, 0.2, 0.1), "theirs": (4.0, 0.5, 0.3), "PCA": (math.nan, 0.4, 0.4)}
    (axes,) = frontier(points).axes
    assert labels(axes) == (
        "mean squared error (filled: encoder; open: nearest projection)",
        "bits per dimension",
    )
    expected = {"ours": [[0.2, 3.0]], "theirs": [[0.5, 4.0]], "PCA": [[0.4, 0], [0.4, 1]]}
    assert series(axes) == expected
    by_points = {str(line.get_xydata().tolist()): line for line in axes.lines}
    filled, opened = by_points["[[0.5, 4.0]]"], by_points["[[0.3, 4.0]]"]
    assert "[[0.5, 4.0], [0.3, 4.0]]" in by_points, "a line joins them"
    assert filled.get_markerfacecolor() == opened.get_markeredgecolor() == "C1"
    assert opened.get_markerfacecolor() == "white"


def test_numbers_are_in_the_cells_of_their_rows_and_columns():
    table = pd.DataFrame({"one_two": [0.02, 12.0], "three": [0.5, np.nan]}, index=["a", "b"])
    (axes,) = number_grids({"circle": table}).axes
    np.testing.assert_array_equal(axes.images[0].get_array(), table)
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert texts == {(0, 0): "0.02", (0, 1): "12", (1, 0): "0.50"}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["one\ntwo", "three"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert axes.get_title() == "circle"


def test_aurocs_are_in_the_rows_of_their_scores():
    pairs = {"mnist, noise": {"density": 0.9, "hotelling": 0.4}, "photos, mnist": {"hotelling": 1}}
    figure = auroc_dots(pairs, plain=["hotelling"])
    first, second = figure.axes
    names = [label.get_text() for label in first.get_yticklabels()]
    for axes, scores in zip((first, second), pairs.values(), strict=True):
        dots = {names[int(dot.get_ydata()[0])]: dot for dot in axes.lines[:-1]}
        assert {name: dot.get_xdata()[0] for name, dot in dots.items()} == scores
        assert dots["hotelling"].get_color() == "0.6"
    assert [axes.get_title() for axes in (first, second)] == ["mnist,\nnoise", "photos,\nmnist"]
    assert figure.get_supxlabel() == "AUROC"


# ---- out-of-distribution detection


def test_roc_curves_have_true_over_false_positive_rates():
    curves = {
        "density": (np.array([0, 0.1, 0.5, 1]), np.array([0, 0.6, 0.9, 1])),
        "combination": (np.array([0, 0.2, 1]), np.array([0.3, 0.8, 1])),
    }
    (axes,) = roc_curves(curves).axes
    expected = {
        name: np.stack([false.clip(1e-4), true], 1).tolist()
        for name, (false, true) in curves.items()
    }
    assert series(axes) == expected
    assert labels(axes) == ("false-positive rate", "true-positive rate")


def test_histograms_show_each_kind_in_its_color():
    normal, ood = np.linspace(1, 2, 50), np.linspace(5, 6, 90)
    (of_thresholds,) = threshold_histogram(normal, ood, {"5%": 3.0}).axes
    assert {*of_thresholds.lines[0].get_xdata()} == {3.0}
    assert of_thresholds.texts[0].get_text() == " 5%"
    assert labels(of_thresholds) == ("anomaly score", "fraction")
    (of_scores,) = score_histograms({"density": {"normal": normal, "ood": ood}}).axes
    assert of_scores.get_title() == "density"
    for axes in (of_thresholds, of_scores):
        assert legend(axes) == ["in-distribution", "out-of-distribution"]
        for bars, color, least in zip(axes.containers, ("C0", "C3"), (1, 5), strict=True):
            places = [bar.get_x() for bar in bars if bar.get_height() > 0]
            assert min(places) == pytest.approx(least, abs=0.15)
            assert bars[0].get_facecolor()[:3] == to_rgb(color)
    (axes,) = density_histogram({"train": normal, "test": ood}, "log-density, nats", "rows").axes
    assert labels(axes) == ("log-density, nats (outermost bins include values beyond)", "% of rows")
    assert [patch.get_label() for patch in axes.patches] == ["train (50 rows)", "test (90 rows)"]
    for patch, mean, values in zip(axes.patches, axes.lines, (normal, ood), strict=True):
        assert start(patch) == pytest.approx(values.min(), abs=0.15)
        assert mean.get_xdata()[0] == pytest.approx(values.mean())
        assert to_rgb(mean.get_color()) == patch.get_edgecolor()[:3]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0, -1.0])
def test_scores_that_are_not_finite_or_not_positive_are_drawn(value):
    """Without any value that an axis can show the figure is empty, and renders without warnings."""
    scores = {"normal": np.full(4, value), "ood": np.full(3, value)}
    figure = threshold_histogram(**scores, thresholds={"5%": value})
    (axes,) = figure.axes
    assert legend(axes) == ["in-distribution", "out-of-distribution"]
    assert not any(bar.get_height() for bars in axes.containers for bar in bars)
    assert not axes.texts
    rendered(figure)
    rendered(score_histograms({"density": scores}))
    rendered(density_histogram(scores))
    rendered(density_and_distance({part: (values, values) for part, values in scores.items()}))


def test_densities_are_horizontal_and_distances_vertical():
    points = {
        "normal": (np.array([1.0, 2.0]), np.array([0.1, 0.2])),
        "ood": (np.array([5.0, 6.0]), np.array([0.7, 0.8])),
    }
    (axes,) = density_and_distance(points).axes
    assert labels(axes) == ("bits per dimension", "mean squared error of the projection")
    expected = {"in-distribution": "normal", "out-of-distribution": "ood"}
    for dots, (name, part) in zip(axes.collections, expected.items(), strict=True):
        assert dots.get_label() == name
        np.testing.assert_array_equal(dots.get_offsets(), np.transpose(points[part]))


# ---- manifolds


def manifolds(columns, has_grid):
    """A circle or a sphere, a learned manifold near it, and a grid around the circle."""
    true = RNG.standard_normal((300, columns))
    true /= np.linalg.norm(true, axis=1, keepdims=True)
    x, y = np.linspace(-2, 2, 31), np.linspace(-2, 1, 26)
    density = -20 * (np.hypot(*np.meshgrid(x, y)) - 1) ** 2
    return {
        "true_points": true,
        "true_density": true[:, 0],
        "learned_points": 1.02 * true,
        "learned_density": true[:, 1].copy(),
        "samples": 1.02 * np.roll(true, 1, axis=0),
        "points": true + 0.1,
        "projections": 1.02 * true,
        "grid": (x, y, density, density - 1) if has_grid else None,
    }


@pytest.mark.parametrize("has_grid", [True, False])
def test_points_and_densities_are_those_given(has_grid):
    """The first density is the true one."""
    given = manifolds(2, has_grid)
    *panels, samples, projection, _ = manifold_figure(**given).axes
    np.testing.assert_array_equal(samples.collections[-1].get_offsets(), given["samples"])
    np.testing.assert_array_equal(
        projection.collections[-1].get_offsets(), given["projections"][:250]
    )
    lines = projection.lines[0].get_xydata().reshape(250, 3, 2)
    np.testing.assert_array_equal(lines[:, 0], given["points"][:250])
    np.testing.assert_array_equal(lines[:, 1], given["projections"][:250])
    for number, (axes, name) in enumerate(zip(panels, ("true", "learned"), strict=True)):
        shown = axes.collections[0]
        assert axes.get_title() == f"{name.capitalize()} density"
        if has_grid:
            np.testing.assert_allclose(shown.get_array(), np.exp(given["grid"][2 + number]))
        else:
            np.testing.assert_array_equal(shown.get_offsets(), given[f"{name}_points"])
            green = shown.get_facecolors()[:, 1]  # increases in viridis
            assert (np.diff(green[np.argsort(given[f"{name}_density"])]) >= 0).all()


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


def test_columns_and_pairs_show_data_and_samples():
    data = pd.DataFrame({"a": np.arange(40.0), "b": 2 * np.arange(40.0) + 100})
    samples = data + 7
    panels = marginals({"test rows": data, "samples": samples}).axes
    for axes, name in zip(panels, data, strict=True):
        assert (axes.get_title(), legend(axes)) == (name, ["test rows", "samples"])
        assert start(axes.patches[0]) < start(axes.patches[1])
    grid = np.reshape(pairs(data, samples).axes, (2, 2))
    for axes, points in ((grid[1, 0], data[["a", "b"]]), (grid[0, 1], samples[["b", "a"]])):
        np.testing.assert_array_equal(axes.collections[0].get_offsets(), points)
    assert [labels(axes) for axes in grid.ravel()] == [("", "a"), ("", ""), ("a", "b"), ("b", "")]


def test_prices_have_logarithmic_axes():
    normal = np.linspace(-2, 2, 60)
    table = pd.DataFrame({"price": np.exp(3 * normal), "age": normal})
    price, age = marginals({"test rows": table, "samples": table}).axes
    assert (price.get_xscale(), age.get_xscale()) == ("log", "linear")
    grid = np.reshape(pairs(table, table).axes, (2, 2))
    assert (grid[1, 0].get_xscale(), grid[1, 0].get_yscale()) == ("log", "linear")
    assert (grid[0, 1].get_xscale(), grid[0, 1].get_yscale()) == ("linear", "log")


def test_tables_of_one_constant_or_missing_value_have_figures():
    table = pd.DataFrame({"a": [1.0, 1.0], "b": [np.nan, 2.0], "c": [0.5, 1.5]})
    rendered(marginals({"test rows": table, "samples": table}))
    rendered(pairs(table, table))
    categories = pd.DataFrame({"city": ["a", "b"]})
    rendered(pairs(categories, categories))
