"""What the figures show, by the public interfaces of matplotlib, plotly, and Pillow."""

import io
import math
import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from submanifold.plots.comparisons import auroc_dots, frontier, number_grids
from submanifold.plots.curves import training_curves
from submanifold.plots.dimensions import dimension_curves, latent_histogram
from submanifold.plots.images import as_png, sample_sheet, tile
from submanifold.plots.likelihood import density_histogram
from submanifold.plots.manifolds import manifold_figure
from submanifold.plots.ood import (
    density_and_distance,
    roc_curves,
    score_histograms,
    threshold_histogram,
)
from submanifold.plots.paper import delta_rows, rejection_blocks, sample_panels
from submanifold.plots.sparklines import sparkline
from submanifold.plots.strips import film, spectrum
from submanifold.plots.tables import marginals, most_correlated, pairs
from submanifold.plots.trials import study_figure, sweep_figure

RNG = np.random.default_rng(0)


def rendered(figure):
    """Return the pixels of the PNG file; fail on a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return np.asarray(Image.open(io.BytesIO(as_png(figure))).convert("RGB"))


def noise(count, channels=3, size=8):
    return RNG.integers(0, 256, (count, channels, size, size), dtype=np.uint8)


def labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


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


@pytest.mark.parametrize(("size", "scale"), [(1, 64), (8, 8), (80, 1)])
def test_a_sheet_enlarges_small_images(size, scale):
    images = noise(5, 1, size)
    sheet = sample_sheet(images, columns=5)
    assert sheet.size == tuple(scale * side for side in tile(images, 5).shape[1::-1])


def test_panels_are_labeled_in_order_and_need_enough_images():
    panels = {name: noise(9) for name in ("DNF", "PR-M", "PR-H")}
    figure = sample_panels(panels, columns=2, per_row=3)
    rendered(figure)
    names = [axes.get_xlabel() for axes in figure.axes]
    assert names == ["(a) DNF", "(b) PR-M", "(c) PR-H"]
    assert all(len(axes.images) == 1 for axes in figure.axes)
    with pytest.raises(ValueError, match="PR-M: expected at least 9 images, got 8"):
        sample_panels(panels | {"PR-M": noise(8)}, 2, per_row=3)


def test_each_delta_has_a_row_of_reconstructions_and_rows_of_samples():
    figure = delta_rows(noise(3), {0.01: (noise(3), noise(7)), math.inf: (noise(3), noise(7))})
    rendered(figure)
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "original",
        *(f"$\\delta = {d}$\n{kind}" for d in ("0.01", r"\infty")
          for kind in ("reconstructed", "generated")),
    ]  # fmt: skip


@pytest.mark.parametrize(("count", "channels"), [(1, 1), (5, 3)])
def test_rejection_shows_where_the_projection_differs(count, channels):
    images = np.full((count, channels, 8, 8), 9, np.uint8)
    projections = images.copy()
    projections[0, :, 2, 5] = 250
    figure = rejection_blocks(images, projections, per_row=2)
    rendered(figure)
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names == ["original", "projection", "difference", "edges"] * min(count, 2)
    shown = np.asarray(axes.images[0].get_array())[:16:2, :, 0]  # pixels are enlarged
    difference, edges = shown[:, 36:52:2], shown[:, 54:70:2]
    assert np.argwhere(difference > 0).tolist() == [[2, 5]]
    assert np.argwhere(edges > 0).tolist() == [[1, 5], [2, 4], [2, 5], [2, 6], [3, 5]]


# ---- training


def history(steps, keys=("loss", "bits_per_dim", "mse"), value=lambda step: 1 / step, **more):
    entries = [{"step": step, **dict.fromkeys(keys, value(step))} for step in steps]
    return {"train": entries, "valid": entries[::2], "best_step": steps[-1], **more}


@pytest.mark.parametrize("keys", [("loss", "bits_per_dim", "mse"), ("loss", "bits_per_dim")])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_training_curves_accept_any_value(keys, value):
    values = {10: 1.0, 20: value, 30: 0.5}
    rendered(training_curves({"stage_1": history([*values], keys, values.get)}))


def titles(figure):
    return [axes.get_title() for axes in figure.axes]


def test_training_curves_are_drawn_without_repeated_and_exact_ones():
    several = history([10, 20, 30], terms=["likelihood", "reconstruction"])
    for entry in several["train"]:
        entry["loss"] += 3 * entry["step"]
    density = history([5, 10], ("loss", "bits_per_dim", "mse"), terms=["likelihood"])
    density["train"] = density["valid"] = [{**each, "mse": 1e-14} for each in density["train"]]
    mse = history([5, 10], ("loss", "mse"), terms=["reconstruction"])
    figure = training_curves({"density": density, "nested": several, "last": mse})
    assert titles(figure) == [
        "density: bits per dimension", "nested: loss", "nested: bits per dimension",
        "nested: squared error of the projection", "last: squared error of the projection",
    ]  # fmt: skip
    train, valid, best = figure.axes[2].lines
    np.testing.assert_allclose(train.get_xydata(), [[10, 1 / 10], [20, 1 / 20], [30, 1 / 30]])
    assert valid.get_xdata().tolist() == [10, 30]
    assert best.get_xdata() == [30, 30]


def test_the_loss_is_shown_with_its_terms_if_it_has_several():
    keys = ("loss", "likelihood", "twist")
    several = history([10, 20, 30], keys, terms=["likelihood", "twist"])
    figure = training_curves({"phase_1": several})
    assert labels(figure.axes[0]) == ["train", "valid", "likelihood", "twist"]


def test_the_start_of_the_loss_does_not_determine_the_range():
    falling = history(list(range(10, 410, 10)), ("loss",), value=lambda step: 1.0)
    falling["train"][0]["loss"], falling["train"][-1]["loss"] = 1e6, 0.5
    low, high = training_curves({"phase_1": falling}).axes[0].get_ylim()
    assert low < 0.5 < 1 < high < 2


# ---- parts of the report


def test_histograms_and_sparklines_accept_any_values():
    bits = {"train": RNG.normal(3, 1, 50), "valid": np.array([2.5]), "test": np.array([])}
    figure = density_histogram(bits | {"diverged": np.array([np.inf, np.nan])})
    rendered(figure)
    assert labels(figure.axes[0]) == ["train (50 images)", "valid (1 images)"]
    rendered(density_histogram({"train": np.array([3.0])}))
    assert sparkline([(1, 2.0)], "one") == ""
    svg = sparkline([(1, 100.0), (10, 10.0), (100, 1.0)], "a <b>")
    assert "&lt;b&gt;" in svg
    assert 'points="2.0,2.0 55.0,15.0 108.0,28.0"' in svg


def test_the_spectrum_sums_to_the_error():
    rotation = {"dims": [0, 1, 4, 8], "mse": [1.0, 0.5, 0.2, 0.0]}
    points = spectrum(rotation, event_dim=8)
    widths = np.diff(rotation["dims"])
    assert sum(value * width for (_, value), width in zip(points, widths, strict=True)) == 8.0


@pytest.mark.parametrize(("size", "side"), [(8, 8), (128, 128), (200, 100)])
def test_a_film_has_a_frame_of_equal_height_for_each_row(size, side):
    frames = np.stack([np.full((3, 3, size, size), 10 * k, np.uint8) for k in range(5)])
    picture, ratio = film(frames)
    height = picture.height / 5
    assert height == int(height)
    pixels = np.asarray(picture)
    for k in range(5):
        frame = pixels[int(k * height) : int(k * height) + side]
        assert (frame[:, :side] == 10 * k).all()
    assert ratio == picture.width / side


# ---- dimensions and comparisons


def test_dimension_curves_omit_missing_and_zero_errors():
    curve = {"dims": [1, 9], "mse": [0.5, 0.0], "pca_mse": [0.4, None],
             "nearest_dims": [5], "nearest_mse": [0.1]}  # fmt: skip
    figure = dimension_curves(curve, 5, {"dims": [1], "mse": [0.3]})
    rendered(figure)
    points = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines[:-1]}
    assert points == {
        "encoder projection": [[1, 0.5]], "nearest projection": [[5, 0.1]], "PCA": [[1, 0.4]],
        "first-order estimate": [[1, 0.3]],
    }  # fmt: skip


def test_latents_with_non_finite_values_are_drawn():
    latents = RNG.standard_normal((3000, 3)).astype(np.float32)
    latents[0] = [np.nan, np.inf, -np.inf]
    figure = latent_histogram(latents)
    rendered(figure)
    assert figure.axes[0].get_title() == "3,000 points in 3 dimensions"


def test_comparisons_show_each_method():
    figure = frontier({"H-MM": (3.0, 0.01, 0.008), "PCA": (math.nan, 0.004, math.nan)})
    rendered(figure)
    assert labels(figure.axes[0]) == ["H-MM", "PCA"]
    table = pd.DataFrame({"a_b": [0.5, np.nan], "c": [0.001, 30.0]}, index=["x", "y"])
    figure = number_grids({"noise": table, "density": table}, (0.01, 1))
    rendered(figure)
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.50", "0.00", "30"]
    figure = auroc_dots({"mnist, kmnist": {"p_value": 0.9}, "a, b": {"pca": 0.6}}, plain=["pca"])
    rendered(figure)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["p value", "pca"]


def test_ood_figures_show_normal_and_ood_images():
    scores = {kind: RNG.normal(mean, 1, 50) for kind, mean in (("normal", 0), ("ood", 3))}
    scores["ood"][0] = np.inf
    figure = score_histograms({"density": scores, "constant": dict.fromkeys(scores, np.ones(9))})
    rendered(figure)
    assert [axes.get_title() for axes in figure.axes] == ["density", "constant"]
    kinds = ["in-distribution", "out-of-distribution"]
    assert labels(figure.axes[0]) == kinds
    figure = density_and_distance({kind: (each, np.exp(each)) for kind, each in scores.items()})
    assert labels(figure.axes[0]) == kinds
    figure = threshold_histogram(scores["ood"], np.exp(scores["ood"]), {"5%": 3.0, "1%": 4.0})
    rendered(figure)
    assert [line.get_xdata()[0] for line in figure.axes[0].lines] == [3.0, 4.0]
    assert labels(figure.axes[0]) == kinds
    figure = roc_curves({"density": (np.array([0, 1.0]), np.array([0.5, 1]))})
    rendered(figure)
    np.testing.assert_allclose(figure.axes[0].lines[0].get_xydata(), [[1e-4, 0.5], [1, 1]])


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


KINDS = pytest.mark.parametrize(
    ("columns", "has_grid"), [(2, True), (2, False), (3, False)], ids=["plane", "curves", "space"]
)


@KINDS
def test_manifolds_have_four_panels_and_one_color_scale(columns, has_grid):
    figure = manifold_figure(**manifolds(columns, has_grid))
    rendered(figure)
    *panels, scale = figure.axes
    titles = [axes.get_title() for axes in panels]
    assert titles == ["True density", "Learned density", "Samples", "Projection"]
    assert labels(panels[2]) == ["true manifold", "sample"]
    assert labels(panels[3]) == ["test point", "projection"]
    assert scale.get_xlabel() == ("density" if has_grid else "density on the manifold")
    assert all(axes.get_xlim() == panels[2].get_xlim() for axes in panels)


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


def test_a_constant_density_has_the_middle_color():
    given = manifolds(3, False) | {"true_density": np.full(300, np.log(0.25))}
    assert manifold_figure(**given).axes[4].get_xlim() == (0, pytest.approx(0.5))


@pytest.mark.parametrize("columns", [2, 3])
def test_a_manifold_of_another_dimension_has_no_density(columns):
    figure = manifold_figure(**manifolds(columns, False) | {"learned_density": None})
    rendered(figure)
    assert "not comparable" in figure.axes[1].get_title()


@KINDS
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


# ---- sweeps and studies


def swept(values, dims, **more):
    bpd, mse = np.linspace(4, 3.5, len(values)), np.geomspace(0.02, 0.002, len(values))
    return pd.DataFrame(
        {"value": values, "dim": dims, "bpd": bpd, "bpd_low": bpd - 0.02, "bpd_high": bpd + 0.04,
         "mse": mse, "mse_low": 0.9 * mse, "mse_high": 1.2 * mse, **more}
    )  # fmt: skip


def test_a_sweep_shows_each_value_with_its_intervals():
    table = swept([10.0, 0.1, 1.0], [500] * 3)
    before = table.copy()
    figure = sweep_figure(table, "lambda", [0.001] * 3)
    traces = {trace.name: trace for trace in figure.data}
    assert list(traces) == ["0.1", "1", "10", "PCA"]
    assert figure.layout.xaxis.type == "log"
    assert figure.layout.legend.title.text == "lambda"
    for row in before.itertuples():
        trace = traces[f"{row.value:g}"]
        assert (trace.x[0], trace.y[0]) == (row.mse, row.bpd)
        assert trace.y[0] + trace.error_y.array[0] == pytest.approx(row.bpd_high)
        assert trace.x[0] - trace.error_x.arrayminus[0] == pytest.approx(row.mse_low)
    assert set(traces["PCA"].x) == {0.001}
    assert len({trace.marker.color for name, trace in traces.items() if name != "PCA"}) == 3
    pd.testing.assert_frame_equal(table, before)


def test_a_sweep_of_the_dimension_has_a_second_panel():
    table = swept([1000, 50, 200], [1000, 50, 200])
    figure = sweep_figure(table, "stage_1.dim", [0.0003, 0.01, 0.004])
    second = {trace.name: trace for trace in figure.data if trace.xaxis == "x2"}
    assert list(second["PCA"].x) == [50, 200, 1000]
    assert list(second["PCA"].y) == [0.01, 0.004, 0.0003]
    for row in table.itertuples():
        trace = second[str(row.value)]
        assert (trace.x[0], trace.y[0], trace.showlegend) == (row.dim, row.mse, False)
    assert "bits per dimension" in figure.to_html()


@pytest.mark.parametrize("rows", [[0], [0, 1, 2]])
def test_a_sweep_with_diverged_models_is_drawn(rows):
    bad = swept([1, 2, 3], [500] * 3)
    bad.loc[rows, ["bpd", "bpd_low", "bpd_high", "mse"]] = [np.nan, np.inf, -np.inf, np.inf]
    assert sweep_figure(bad, "seed", [0.001] * 3).to_html()


def test_a_study_shows_its_pareto_front_and_counts_trials_without_values():
    table = pd.DataFrame({
        "trial": range(5), "state": [*["complete"] * 3, "pruned", "failed"],
        "front": [True, False, True, False, False], "bpd": [3.0, 3.5, 2.5, np.nan, np.nan],
        "mse": [0.001, 0.02, 0.01, np.nan, np.nan], "dim": [10, 20, 30, 40, 50],
        "test_bpd": 3.0, "test_mse": 0.01,
    })  # fmt: skip
    figure = study_figure(table, ["dim"])
    others, front = figure.data
    assert (others.name, front.name) == ("other trials (1)", "Pareto front (2)")
    assert (list(front.x), list(front.y)) == ([0.001, 0.01], [3.0, 2.5])
    assert figure.layout.title.text == "Not shown: 1 pruned, 1 failed"


# ---- tables


def columns(count, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=count)
    return pd.DataFrame({"x": x, "y": x + 0.1 * rng.normal(size=count), "z": rng.normal(size=count),
                         "dice": rng.integers(1, 7, count),
                         "city": rng.choice(["Bern", "Rome"], count)})  # fmt: skip


def test_marginals_have_a_panel_for_each_column_and_the_categories_of_the_data():
    samples = columns(50, 1)
    samples.loc[0, "x"] = 1e9
    figure = marginals({"test rows": columns(400, 0), "samples": samples})
    rendered(figure)
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert list(panels) == ["x", "y", "z", "dice", "city"]
    assert [text.get_text() for text in panels["city"].get_xticklabels()] == ["Bern", "Rome"]
    assert panels["x"].get_xlim()[1] < 10
    for axes in panels.values():  # fractions of two tables
        heights = [patch.get_height() for patch in axes.patches if hasattr(patch, "get_height")]
        assert sum(heights) == pytest.approx(2 if heights else 0)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["test rows", "samples"]


def test_marginals_of_few_rows_show_samples_between_their_values():
    rows = pd.DataFrame({"x": [0.5, 1.5, 2.5]})
    figure = marginals({"test rows": rows, "samples": pd.DataFrame({"x": np.linspace(0.6, 2, 50)})})
    assert len(figure.axes[0].patches) == 2, "outlines of histograms, not bars"


def test_pairs_show_the_correlated_columns_with_data_below_the_diagonal():
    data = columns(400, 0)
    assert most_correlated(data, 2) == ["x", "y"]
    figure = pairs(data, columns(50, 1))
    rendered(figure)
    size = 4  # without the categories
    assert len(figure.axes) == size**2
    counts = [len(axes.collections[0].get_offsets()) if axes.collections else 0
              for axes in figure.axes]  # fmt: skip
    assert counts[size] == 400
    assert counts[1] == 50
    assert [axes.get_xlabel() for axes in figure.axes[-size:]] == ["x", "y", "z", "dice"]


def test_tables_of_one_constant_or_missing_value_have_figures():
    table = pd.DataFrame({"a": [1.0, 1.0], "b": [np.nan, 2.0], "c": [0.5, 1.5]})
    rendered(marginals({"test rows": table, "samples": table}))
    rendered(pairs(table, table))
    categories = pd.DataFrame({"city": ["a", "b"]})
    rendered(pairs(categories, categories))
