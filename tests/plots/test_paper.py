import io
import warnings

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from submanifold.plots import (
    as_png,
    delta_rows,
    rejection_blocks,
    sample_panels,
    sweep_figure,
)

RNG = np.random.default_rng(0)
METHODS = ("DNF", "PR-M", "PR-H", "PR-D", "EE-M", "EE-H", "H-MM*", "H-HH")


def drawn(figure, dpi=150):
    """Pixels of the PNG, without a warning on the way."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = Image.open(io.BytesIO(as_png(figure, dpi=dpi)))
    return np.asarray(image.convert("RGB"))


def noise(count, size=8, channels=3):
    return RNG.integers(0, 256, (count, channels, size, size), dtype=np.uint8)


def panels(count, per_row=2, size=8, channels=3):
    return {name: noise(per_row**2, size, channels) for name in METHODS[:count]}


def shown(figure):
    """The images, and where they are: left, top, right, bottom in dots."""
    images = figure.axes[0].images
    frames = [(left, top, right, bottom) for left, right, bottom, top
              in (image.get_extent() for image in images)]  # fmt: skip
    return [np.asarray(image.get_array()) for image in images], np.array(frames)


def texts(figure):
    return [text.get_text() for text in figure.texts]


def no_text_is_cut_or_lies_on_something(figure):
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [image.get_window_extent(renderer) for image in figure.axes[0].images]
    for text in figure.texts:
        box = text.get_window_extent(renderer)
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes)
        boxes.append(box)
    return True


def same_pixels(seen, image, times):
    """Whether pixels are those of an image, each as a square; matplotlib's greys may be one off."""
    wanted = enlarged(image, times)
    return seen.shape == wanted.shape and np.allclose(seen, wanted, rtol=0, atol=image.ndim == 2)


def enlarged(image, times):
    colours = np.broadcast_to(image.reshape(*image.shape[:2], -1), (*image.shape[:2], 3))
    return colours.repeat(times, axis=0).repeat(times, axis=1)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(
    ("count", "columns", "channels", "size"),
    [(1, 2, 3, 8), (3, 2, 1, 8), (5, 3, 3, 32), (8, 4, 1, 32), (4, 2, 3, 65)],
)
def test_panels_show_the_pixels_of_the_images_sharp_and_in_their_order(
    count, columns, channels, size, times
):
    given = panels(count, 2, size, channels)
    figure = sample_panels(given, columns, per_row=2)
    pixels = drawn(figure, dpi=150 * times)
    squares, frames = shown(figure)
    assert len(squares) == count
    for images, square, frame in zip(given.values(), squares, frames, strict=True):
        left, top, right, bottom = (frame * times).round().astype(int)
        dots = (right - left) // square.shape[1]
        assert same_pixels(pixels[top:bottom, left:right], square, dots)
        for index, image in enumerate(images):
            row, column = (each * (size + max(1, size // 16)) for each in divmod(index, 2))
            part = square[row : row + size, column : column + size].reshape(size, size, channels)
            assert np.array_equal(part, image.transpose(1, 2, 0))


@pytest.mark.parametrize(
    ("count", "columns"), [(1, 1), (1, 2), (2, 1), (3, 2), (4, 2), (5, 3), (6, 3), (7, 4), (8, 4)]
)
def test_panels_are_equal_squares_at_equal_distances_from_edge_to_edge(count, columns):
    figure = sample_panels(panels(count), columns, per_row=2)
    width, _ = figure.get_size_inches() * 150
    _, frames = shown(figure)
    sides = frames[:, 2:] - frames[:, :2]
    assert np.allclose(sides, sides[0, 0])
    columns = min(columns, count)
    assert len(set(frames[:, 1].round())) == -(-count // columns)
    for top in set(frames[:, 1].round()):
        row = frames[frames[:, 1].round() == top]
        assert np.allclose(row[1:, 0] - row[:-1, 2], 12)
        assert row[0, 0] == pytest.approx(width - row[-1, 2], abs=1.1)
        if len(row) == columns:
            assert row[0, 0] == pytest.approx(0)


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (5, 3), (8, 4)])
@pytest.mark.parametrize("suffix", ["", "\nat a temperature of 1"])
def test_panels_are_named_below_in_order(count, columns, suffix):
    given = {name + suffix: images for name, images in panels(count, 8).items()}
    figure = sample_panels(given, columns)
    expected = [f"({letter}) {name}" for letter, name in zip("abcdefgh", given, strict=False)]
    assert texts(figure) == expected
    assert no_text_is_cut_or_lies_on_something(figure)
    _, frames = shown(figure)
    width, height = figure.get_size_inches() * 150
    for text, (left, _, right, bottom) in zip(figure.texts, frames, strict=True):
        x, y = text.get_position()
        assert x * width == pytest.approx((left + right) / 2)
        assert 0 < (1 - y) * height - bottom < 10


def test_only_the_square_s_images_are_shown_and_too_few_are_an_error():
    given = panels(2, 3)
    first, _ = shown(sample_panels(given, 2, per_row=2))
    same, _ = shown(sample_panels({name: each[:4] for name, each in given.items()}, 2, per_row=2))
    assert np.array_equal(first, same)
    with pytest.raises(ValueError, match="PR-M: 8 images, 9"):
        sample_panels(given | {"PR-M": noise(8)}, 2, per_row=3)


def test_large_images_do_not_make_a_huge_figure():
    figure = sample_panels(panels(1, 2, 600), 1, per_row=2)
    assert figure.get_figwidth() < 5
    pixels = drawn(figure, dpi=300)
    (square,), frames = shown(figure)
    left, top, right, bottom = (frames[0] * 2).round().astype(int)
    assert np.array_equal(pixels[top:bottom, left:right], square)


def test_the_rows_of_each_delta_are_below_the_originals_and_named():
    originals, samples = noise(3), noise(7)
    by_delta = {0.01: (noise(3), samples), 0.3: (noise(3), samples[::-1])}
    figure = delta_rows(originals, by_delta)
    pixels = drawn(figure)
    blocks, frames = shown(figure)
    expected = [originals]
    for projections, generated in by_delta.values():
        expected += [projections, generated[:6]]
    for block, images, frame in zip(blocks, expected, frames, strict=True):
        left, top, right, bottom = frame.round().astype(int)
        dots = (right - left) // block.shape[1]
        assert np.array_equal(pixels[top:bottom, left:right], enlarged(block, dots))
        for index, image in enumerate(images):
            row, column = (9 * each for each in divmod(index, 3))
            part = block[row : row + 8, column : column + 8]
            assert np.array_equal(part, image.transpose(1, 2, 0))
    assert np.allclose(frames[:, 0], frames[0, 0])
    assert (frames[1:, 1] > frames[:-1, 3]).all()
    assert texts(figure) == [
        "original",
        "reconstructed", "generated", "$\\delta = 0.01$",
        "reconstructed", "generated", "$\\delta = 0.3$",
    ]  # fmt: skip
    _, height = figure.get_size_inches() * 150
    for text, frame in zip((figure.texts[3], figure.texts[6]), (1, 3), strict=True):
        middle = (1 - text.get_position()[1]) * height
        assert frames[frame, 1] < middle < frames[frame + 1, 3]


@pytest.mark.parametrize("count", [8, 16])
@pytest.mark.parametrize("delta", [0.001, np.inf])
def test_labels_of_delta_are_not_cut(count, delta):
    images = noise(count, 32)
    figure = delta_rows(images, {delta: (images, images), 2.0: (images, images)}, sample_rows=1)
    assert no_text_is_cut_or_lies_on_something(figure)
    assert ("infty" in figure.texts[3].get_text()) == (delta == np.inf)


def test_no_delta_leaves_the_originals():
    figure = delta_rows(noise(4), {})
    assert texts(figure) == ["original"]
    assert drawn(figure).std() > 5


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("count", "per_row"), [(1, 4), (4, 2), (7, 4)])
def test_what_becomes_of_an_image_is_beside_it(count, per_row, channels):
    original, projection = noise(count, 32, channels), noise(count, 32, channels)
    projection[0] = original[0]
    figure = rejection_blocks(original, projection, per_row)
    pixels = drawn(figure)
    images, frames = shown(figure)
    assert len(images) == 4 * count
    for index in range(count):
        first, second, difference, edges = images[4 * index : 4 * index + 4]
        assert np.array_equal(first.reshape(32, 32, -1), original[index].transpose(1, 2, 0))
        assert np.array_equal(second.reshape(32, 32, -1), projection[index].transpose(1, 2, 0))
        assert (difference.max() == 0) == (edges.max() == 0) == (index == 0)
        own = frames[4 * index : 4 * index + 4]
        assert np.ptp(own[:, 1]) < 1e-6
        assert (own[1:, 0] > own[:-1, 2]).all()
    for image, frame in zip(images, frames, strict=True):
        left, top, right, bottom = frame.round().astype(int)
        assert same_pixels(pixels[top:bottom, left:right], image, (right - left) // 32)
    across = min(count, per_row)
    assert texts(figure) == ["original", "projection", "difference", "edges"] * across
    assert len(set(frames[:, 1].round())) == -(-count // across)
    assert no_text_is_cut_or_lies_on_something(figure)


def swept(values, dims, **changes):
    rows = len(values)
    bpd, mse = np.linspace(4, 3.5, rows), np.geomspace(0.02, 0.002, rows)
    return pd.DataFrame(
        {"value": values, "dim": dims}
        | {"bpd": bpd, "bpd_low": bpd - 0.02, "bpd_high": bpd + 0.04}
        | {"mse": mse, "mse_low": 0.9 * mse, "mse_high": 1.2 * mse}
        | changes
    )


def by_name(figure, column=1):
    axis = "x" if column == 1 else "x2"
    return {each.name: each for each in figure.data if each.xaxis == axis}


def test_a_sweep_has_each_model_at_its_place_with_its_intervals_and_a_colour_by_value():
    table = swept([10.0, 0.1, 1.0], [500] * 3)
    figure = sweep_figure(table, "lambda", [0.001] * 3)
    traces = by_name(figure)
    assert list(traces) == ["PCA", "0.1", "1", "10"]
    assert figure.layout.xaxis.type == "log"
    assert figure.layout.legend.title.text == "lambda"
    colours = set()
    for row in table.itertuples():
        trace = traces[f"{row.value:g}"]
        assert (trace.x[0], trace.y[0]) == (row.mse, row.bpd)
        for bars, name in ((trace.error_x, "mse"), (trace.error_y, "bpd")):
            middle = getattr(row, name)
            assert middle + bars.array[0] == pytest.approx(getattr(row, f"{name}_high"))
            assert middle - bars.arrayminus[0] == pytest.approx(getattr(row, f"{name}_low"))
        for text in (f"lambda = {row.value:g}<br>", "d = 500", f"{row.bpd:.3f}", f"{row.mse:.5f}"):
            assert text in trace.hovertext[0]
        colours.add(trace.marker.color)
    assert len(colours) == 3


def test_pca_is_a_vertical_line_where_all_manifolds_have_one_dimension():
    figure = sweep_figure(swept([1, 2], [500, 500]), "seed", [0.001, 0.001])
    assert "xaxis2" not in figure.layout
    line = by_name(figure)["PCA"]
    assert set(line.x) == {0.001}
    low, high = figure.layout.yaxis.range
    assert (line.y[0], line.y[-1]) == (low, high)
    assert low < 3.48 < 4.04 < high
    left, right = figure.layout.xaxis.range
    assert left < np.log10(0.001) < np.log10(0.024) < right


def test_pca_is_a_curve_over_the_dimensions_where_they_differ():
    table = swept([1000, 50, 200], [1000, 50, 200])
    figure = sweep_figure(table, "d", [0.0003, 0.01, 0.004])
    assert "PCA" not in by_name(figure, 1)
    traces = by_name(figure, 2)
    assert list(traces["PCA"].x) == [50, 200, 1000]
    assert list(traces["PCA"].y) == [0.01, 0.004, 0.0003]
    for row in table.itertuples():
        trace = traces[str(row.value)]
        assert (trace.x[0], trace.y[0]) == (row.dim, row.mse)
        assert row.mse + trace.error_y.array[0] == pytest.approx(row.mse_high)
        assert not trace.showlegend
    assert list(figure.layout.xaxis2.tickvals) == [50, 200, 1000]
    assert 10 ** figure.layout.yaxis2.range[0] < 0.0003
    assert 10 ** figure.layout.xaxis.range[0] > 0.0015


def test_seeds_of_a_value_share_its_colour_and_tell_themselves_apart_when_pointed_at():
    table = swept(["H-MM", "DNF", "DNF"], [500] * 3, seed=[0, 0, 1])
    traces = by_name(sweep_figure(table, "method", None))
    assert list(traces) == ["DNF", "H-MM"]
    assert ["seed 0" in text for text in traces["DNF"].hovertext] == [True, False]
    assert "seed 1" in traces["DNF"].hovertext[1]


@pytest.mark.parametrize("low", [0.5, 0.9, 0.97, 0.999])
def test_the_error_s_ticks_are_round_numbers_that_can_be_read_apart(low):
    table = swept([1, 2], [500, 500])
    table[["mse_low", "mse", "mse_high"]] = [[low**9 * 0.02] * 3, [0.02, 0.02, 0.02]]
    axis = sweep_figure(table, "seed", None).layout.xaxis
    if axis.tickvals is not None:
        apart = np.diff(np.log10(axis.tickvals)) / np.ptp(axis.range)
        assert len(axis.tickvals) >= 3
        assert apart.min() > 0.08
        assert [float(text) for text in axis.ticktext] == pytest.approx(list(axis.tickvals))


def test_models_that_diverged_are_drawn_where_they_can_be():
    bad = swept([1, 2, 3], [500] * 3)
    bad.loc[0, ["bpd", "bpd_low", "bpd_high"]] = [np.nan, np.inf, -np.inf]
    bad.loc[1, ["mse", "mse_low"]] = [np.inf, -1.0]
    figure = sweep_figure(bad, "seed", [0.001] * 3)
    assert np.isfinite([figure.layout.xaxis.range, figure.layout.yaxis.range]).all()
    nothing = bad.assign(**{name: np.nan for name in bad if name[:3] in ("bpd", "mse")})
    assert len(sweep_figure(nothing, "seed", None).data) == 3


def test_a_sweep_can_be_written_as_a_page_and_leaves_its_table_as_it_was():
    table = swept([1, 2], [100, 200])
    before = table.copy()
    assert "bits per dimension" in sweep_figure(table, "d", [0.1, 0.2]).to_html()
    pd.testing.assert_frame_equal(table, before)


def test_pca_of_other_rows_is_an_error():
    with pytest.raises(ValueError, match="length"):
        sweep_figure(swept([1, 2], [100, 200]), "d", [0.1])
