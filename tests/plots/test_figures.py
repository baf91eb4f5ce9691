import io
import math
import warnings

import numpy as np
import pytest
from PIL import Image

from submanifold.plots import (
    as_png,
    image_grid,
    latent_histogram,
    rejection_blocks,
    training_curves,
)
from submanifold.plots.images import sample_sheet

RNG = np.random.default_rng(0)


def drawn(figure):
    """Pixels of the PNG, without a warning on the way."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = Image.open(io.BytesIO(as_png(figure)))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


def noise(count, channels, size):
    return RNG.integers(0, 256, (count, channels, size, size), dtype=np.uint8)


@pytest.mark.parametrize("title", [None, "Samples"])
@pytest.mark.parametrize(("count", "columns"), [(1, 16), (3, 8), (64, 16), (8, 8)])
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32), (3, 65)])
def test_a_grid_takes_any_number_of_images_of_any_size(count, columns, channels, size, title):
    assert drawn(image_grid(noise(count, channels, size), columns, title)).std() > 5


def test_a_grid_shows_the_colours_of_the_images_in_their_order():
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    images = np.tile(colours[:, :, None, None], (1, 1, 8, 8))
    pixels = drawn(image_grid(images, columns=3))
    middle = pixels[pixels.shape[0] // 2]
    seen = [tuple(middle[len(middle) * k // 6]) for k in (1, 3, 5)]
    assert seen == [tuple(colour) for colour in colours]


def test_a_grey_grid_is_grey_and_keeps_its_values():
    images = np.tile(np.array([0, 100, 255], np.uint8)[:, None, None, None], (1, 1, 8, 8))
    pixels = drawn(image_grid(images, columns=3))
    assert (pixels[..., 0] == pixels[..., 1]).all()
    middle = pixels[pixels.shape[0] // 2, :, 0]
    assert [middle[len(middle) * k // 6] for k in (1, 3, 5)] == pytest.approx([0, 100, 255], abs=1)


@pytest.mark.parametrize("count", [1, 2, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_rejection_maps_take_any_number_of_images(count, channels):
    assert drawn(rejection_blocks(noise(count, channels, 8), noise(count, channels, 8))).std() > 5


def test_a_perfect_projection_has_a_black_rejection_map():
    images = np.full((2, 3, 8, 8), 200, np.uint8)
    figure = rejection_blocks(images, images)
    drawn(figure)
    shown = [image.get_array() for image in figure.axes[0].images]
    assert all(
        (image == value).all() for image, value in zip(shown, 2 * [200, 200, 0, 0], strict=True)
    )


def test_the_difference_is_where_the_projection_differs():
    images = np.zeros((1, 3, 8, 8), np.uint8)
    projection = images.copy()
    projection[0, :, 2, 5] = 250
    figure = rejection_blocks(images, projection)
    _, _, difference, edges = (image.get_array() for image in figure.axes[0].images)
    assert np.argwhere(difference > 0).tolist() == [[2, 5]]
    assert np.argwhere(edges > 0).tolist() == [[1, 5], [2, 4], [2, 5], [2, 6], [3, 5]]


def history(steps, keys=("loss", "bits_per_dim", "mse"), value=lambda step: 1 / step):
    rows = [{"step": step, **dict.fromkeys(keys, value(step))} for step in steps]
    return {"train": rows, "valid": rows[::2], "best_step": steps[-1]}


@pytest.mark.parametrize(
    "histories",
    {
        "one": {"stage_1": history([10])},
        "two": {"stage_1": history([10, 20, 30]), "stage_2": history([5, 10])},
        "no projection": {"stage_1": history([10, 20], keys=("loss", "bits_per_dim"))},
        "constant": {"stage_1": history([10, 20, 30], value=lambda step: 1.0)},
        "no error": {"stage_1": history([10, 20, 30], value=lambda step: 0.0)},
        "negative": {"stage_1": history([10, 20, 30], value=lambda step: -float(step))},
        "not finite": {
            "stage_1": history(
                [10, 20, 30], value=lambda step: math.inf if step == 20 else 1 / step
            )
        },
        "not a number": {
            "stage_1": history(
                [10, 20, 30], value=lambda step: math.nan if step == 20 else 1 / step
            )
        },
    }.values(),
    ids=["one", "two", "no projection", "constant", "no error", "negative", "inf", "nan"],
)
def test_curves_are_drawn_whatever_the_training_did(histories):
    assert drawn(training_curves(histories)).std() > 5


def test_curves_have_a_row_for_each_training_and_all_points():
    figure = training_curves({"stage_1": history([10, 20, 30]), "stage_2": history([5, 10])})
    assert len(figure.axes) == 6
    train, valid = figure.axes[0].lines[:2]
    assert train.get_xdata().tolist() == [10, 20, 30]
    assert valid.get_xdata().tolist() == [10, 30]
    assert [axes.get_title() for axes in figure.axes[::3]] == ["stage_1: loss", "stage_2: loss"]


def test_the_first_panel_has_each_term_of_the_loss_by_name_where_there_are_several():
    several = history([10, 20, 30], keys=("loss", "bits_per_dim", "mse", "likelihood", "twist"))
    several["terms"] = ["likelihood", "twist"]
    for row in several["train"]:  # the validation's are some of these
        row["twist"] -= 9
    one = history([10, 20, 30], keys=("loss", "bits_per_dim", "likelihood"))
    one["terms"] = ["likelihood"]
    figure = training_curves({"phase_1": several, "phase_2": one})
    drawn(figure)
    first, second = figure.axes[0], figure.axes[3]
    names = [text.get_text() for text in first.get_legend().get_texts()]
    assert names == ["loss, train", "loss, valid", "likelihood", "twist"]
    (twist,) = [line for line in first.lines if line.get_label() == "twist"]
    assert twist.get_xydata().tolist() == [[10, 1 / 10 - 9], [30, 1 / 30 - 9]]
    assert first.get_ylim()[0] < 1 / 30 - 9 < 1 / 20 < first.get_ylim()[1]
    loss = first.lines[:2]
    assert (loss[0].get_alpha() or 1) < (loss[1].get_alpha() or 1)
    assert twist.get_linewidth() < loss[0].get_linewidth()
    assert len({line.get_color() for line in first.lines[:6]}) == 3
    assert len(second.get_legend().get_texts()) == 2
    assert len(figure.axes[1].lines) == 3


def test_the_first_fall_of_the_loss_is_left_out():
    falling = history([10 * (each + 1) for each in range(40)], value=lambda step: 1.0)
    falling["train"][0]["loss"] = 1e6
    falling["train"][-1]["loss"] = 0.5
    low, high = training_curves({"phase_1": falling}).axes[0].get_ylim()
    assert low < 0.5
    assert 1 < high < 2


@pytest.mark.parametrize("shape", [(1, 1), (3000, 5)])
def test_latents_are_drawn(shape):
    assert drawn(latent_histogram(RNG.standard_normal(shape).astype(np.float32))).std() > 5


def test_latents_that_are_not_finite_are_left_out():
    latents = RNG.standard_normal((10, 3)).astype(np.float32)
    latents[0] = [np.nan, np.inf, -np.inf]
    drawn(latent_histogram(latents))


def test_a_sheet_of_grey_images_that_are_large_and_few_shows_them_as_they_are():
    images = np.arange(3 * 80 * 80, dtype=np.uint8).reshape(3, 1, 80, 80)
    sheet = np.asarray(Image.open(io.BytesIO(as_png(sample_sheet(images)))))
    assert sheet.shape == (80, 8 * 85 - 5)
    assert np.array_equal(sheet[:, 85:165], images[1, 0])
    assert (sheet[:, 3 * 85 - 5 :] == 255).all()
