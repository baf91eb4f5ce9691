import io
import warnings

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from mpl_toolkits.mplot3d.art3d import Line3DCollection
from mpl_toolkits.mplot3d.proj3d import proj_transform
from PIL import Image

from submanifold.plots import DensityGrid, as_png, manifold_figure

COUNT = 300
WAYS = {"plane": (2, True), "curves": (2, False), "space": (3, False)}


def given(columns, has_grid=False, seed=0, **changes):
    """A circle or a sphere, one learned from it, and a grid around the circle."""
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((COUNT, columns))
    true = points / np.linalg.norm(points, axis=1, keepdims=True)
    learned = 1.02 * true
    steps = np.linspace(-2, 2, 31)
    radius = np.hypot(*np.meshgrid(steps, steps[:26]))
    return {
        "true_points": true,
        "true_density": true[:, 0],
        "learned_points": learned,
        "learned_density": 0.5 * learned[:, 1],
        "samples": 1.02 * np.roll(true, 1, axis=0),
        "points": true + 0.1 * rng.standard_normal((COUNT, columns)),
        "projections": learned,
        "grid": DensityGrid(steps, steps[:26], -20 * (radius - 1) ** 2, -20 * (radius - 1.02) ** 2)
        if has_grid
        else None,
    } | changes


def drawn(figure):
    """Pixels of the PNG, without a warning on the way."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = Image.open(io.BytesIO(as_png(figure, dpi=60)))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


def surface(axes):
    """Where the discs of a panel are, or the dots in the plane, and their colours."""
    first = axes.collections[0]
    if axes.name == "3d":
        return np.mean(first._faces, axis=1), first.get_facecolor()
    return np.asarray(first.get_offsets()), first.get_facecolor()


def dots(axes, label):
    (found,) = [each for each in axes.collections if each.get_label() == label]
    return found


def offsets(collection):
    where = collection._offsets3d if hasattr(collection, "_offsets3d") else None
    return np.asarray(collection.get_offsets()) if where is None else np.stack(where, axis=1)


def lines(axes):
    (found,) = [each for each in axes.collections if isinstance(each, LineCollection)]
    space = isinstance(found, Line3DCollection)
    return np.array(found._segments3d if space else found.get_segments())


@pytest.mark.parametrize(("columns", "has_grid"), WAYS.values(), ids=WAYS)
def test_a_picture_has_four_panels_and_one_scale(columns, has_grid):
    figure = manifold_figure(**given(columns, has_grid))
    assert drawn(figure).std() > 5
    *panels, scale = figure.axes
    titles = [axes.get_title() for axes in panels]
    assert titles == ["True density", "Learned density", "Samples", "Projection"]
    assert scale.get_xlabel() == ("density" if has_grid else "density on the manifold")
    assert scale.get_xlim()[0] == 0


def test_no_text_is_cut_or_lies_on_another_panel():
    figure = manifold_figure(**given(3, learned_density=None))
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [axes.title.get_window_extent(renderer) for axes in figure.axes[:4]]
    boxes += [axes.get_legend().get_window_extent(renderer) for axes in figure.axes[2:4]]
    boxes.append(figure.axes[4].get_tightbbox(renderer))
    for i, box in enumerate(boxes):
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_both_densities_of_the_plane_have_one_scale_and_their_values_at_their_places():
    arguments = given(2, True)
    grid = arguments["grid"]
    true, learned = (axes.images[0] for axes in manifold_figure(**arguments).axes[:2])
    assert true.norm is learned.norm
    assert (true.norm.vmin, true.norm.vmax) == (0, pytest.approx(np.exp(grid.true.max())))
    assert np.allclose(true.get_array(), np.exp(grid.true))
    assert np.allclose(learned.get_array(), np.exp(grid.learned))
    assert true.origin == "lower"
    assert np.allclose(true.get_extent(), [-2 - 1 / 15, 2 + 1 / 15, -2 - 1 / 15, 4 / 3 + 1 / 15])


@pytest.mark.parametrize("columns", [2, 3])
def test_both_densities_on_manifolds_have_the_true_one_s_scale(columns):
    same = given(columns)
    same |= {"learned_points": same["true_points"], "learned_density": same["true_density"]}
    true, learned, *_, scale = manifold_figure(**same).axes
    assert np.array_equal(surface(true)[1], surface(learned)[1])
    same["learned_density"] = same["true_density"] + 0.3
    denser_true, denser, *_, denser_scale = manifold_figure(**same).axes
    assert np.array_equal(surface(denser_true)[1], surface(true)[1])
    assert not np.array_equal(surface(denser)[1], surface(true)[1])
    assert denser_scale.get_xlim() == scale.get_xlim()


def test_an_even_density_has_the_colour_in_the_middle_of_the_scale():
    figure = manifold_figure(**given(3, true_density=np.full(COUNT, np.log(0.25))))
    assert figure.axes[4].get_xlim() == (0, pytest.approx(0.5))


@pytest.mark.parametrize(("columns", "has_grid"), WAYS.values(), ids=WAYS)
def test_points_and_lines_are_those_given(columns, has_grid):
    arguments = given(columns, has_grid)
    panels = manifold_figure(**arguments).axes[:4]
    for axes, name in zip(panels, ("true", "learned", "true", "learned"), strict=True):
        assert np.allclose(surface(axes)[0], arguments[f"{name}_points"])
    *_, samples, projection = panels
    assert np.array_equal(offsets(dots(samples, "sample")), arguments["samples"])
    ends = lines(projection)
    for index, (name, label) in enumerate(
        {"points": "test point", "projections": "projection"}.items()
    ):
        assert np.array_equal(ends[:, index], arguments[name][:250])
        assert np.array_equal(offsets(dots(projection, label)), arguments[name][:250])


def on_page(axes, points):
    """Where points are seen, in dots."""
    flat = points.T if points.shape[1] == 2 else proj_transform(*points.T, axes.get_proj())[:2]
    return axes.transData.transform(np.stack(flat, axis=1))


@pytest.mark.parametrize(("columns", "has_grid"), WAYS.values(), ids=WAYS)
def test_one_unit_is_as_long_in_every_direction_and_every_panel(columns, has_grid):
    figure = manifold_figure(**given(columns, has_grid))
    drawn(figure)
    steps = np.vstack([np.zeros(columns), np.eye(columns)])
    views = [np.diff(on_page(axes, steps)[[0, i + 1]], axis=0)[0]
             for axes in figure.axes[:4] for i in range(columns)]  # fmt: skip
    views = np.reshape(views, (4, columns, 2))
    # orthonormal columns, but for the scale: a view from one side, without perspective
    assert np.allclose(views, views[0])
    inner = views[0].T @ views[0]
    assert np.allclose(inner, inner[0, 0] * np.eye(2))


def test_up_is_up_and_points_behind_the_surface_are_faint():
    arguments = given(3)
    arguments["samples"] = arguments["true_points"]
    figure = manifold_figure(**arguments)
    drawn(figure)
    samples = figure.axes[2]
    right, up = np.diff(on_page(samples, np.array([[0, 0, 0], [0, 0, 1]])), axis=0)[0]
    assert right == pytest.approx(0, abs=1e-6)
    assert up > 0
    *_, depth = proj_transform(*arguments["samples"].T, samples.get_proj())
    depth = np.sort(depth - depth.mean())[::-1]  # the colours are those of the farthest first
    opacity = dots(samples, "sample").get_facecolor()[:, 3]
    assert opacity[depth < 0.5 * depth.min()].min() > 2 * opacity[depth > 0.5 * depth.max()].max()


def test_near_parts_of_a_surface_cover_far_ones():
    rng = np.random.default_rng(0)
    shell = rng.standard_normal((1500, 3))
    shell /= np.linalg.norm(shell, axis=1, keepdims=True)
    arguments = given(3, true_points=np.vstack([shell, 0.5 * shell]))

    def yellow(density):
        pixels = drawn(manifold_figure(**arguments | {"true_density": density})).astype(int)
        panel = pixels[30:-60, : pixels.shape[1] // 4]
        return ((panel[..., 0] > 150) & (panel[..., 1] > 150) & (panel[..., 2] < 100)).sum()

    inside = np.repeat([-5.0, 0.0], 1500)
    assert yellow(inside) < 0.02 * yellow(inside[::-1])


def test_a_bowl_is_seen_from_higher_up_than_a_roll():
    rng = np.random.default_rng(0)
    turn, along = rng.uniform(4.7, 14.1, 2000), rng.uniform(0, 21, 2000)
    roll = np.column_stack([turn * np.cos(turn), along, turn * np.sin(turn)])
    flat = rng.standard_normal((2000, 2))
    bowl = np.column_stack([flat, (flat**2).sum(1) / 2])
    heights = []
    for shape in (roll, bowl):
        arguments = given(3, true_points=shape, true_density=np.zeros(2000))
        heights.append({axes.elev for axes in manifold_figure(**arguments).axes[:4]})
    assert max(heights[0]) < 30 < min(heights[1])


def test_a_manifold_of_another_dimension_is_plain_and_says_so():
    figure = manifold_figure(**given(3, learned_density=None))
    assert drawn(figure).std() > 5
    assert "no density" in figure.axes[1].get_title()
    assert np.ptp(surface(figure.axes[1])[1][:, :3], axis=1).max() < 1e-6
    assert np.ptp(surface(figure.axes[0])[1][:, :3], axis=1).max() > 0.1


def test_the_plane_s_density_is_shown_whatever_the_dimension_of_the_manifold():
    figure = manifold_figure(**given(2, True, learned_density=None))
    assert drawn(figure).std() > 5
    learned = figure.axes[1]
    assert learned.get_title() == "Learned density"
    assert learned.images
    assert not learned.collections


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("columns", "has_grid"), WAYS.values(), ids=WAYS)
def test_what_is_not_finite_is_left_out(columns, has_grid, bad):
    arguments = given(columns, has_grid)
    for index, name in enumerate(
        ("true_points", "learned_points", "samples", "points", "projections")
    ):
        arguments[name] = arguments[name].copy()
        arguments[name][index, 0] = bad
    for name in ("true_density", "learned_density"):
        arguments[name][7] = bad
    if has_grid:
        for density in arguments["grid"][2:]:
            density[3, 4] = bad
    figure = manifold_figure(**arguments)
    assert drawn(figure).std() > 5
    samples, projection = figure.axes[2:4]
    assert len(offsets(dots(samples, "sample"))) == COUNT - 1
    assert len(lines(projection)) == 250 - 2
    assert 0 < figure.axes[4].get_xlim()[1] < 5


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize(("columns", "has_grid"), WAYS.values(), ids=WAYS)
def test_few_points_are_enough(columns, has_grid, count):
    arguments = given(columns, has_grid)
    few = {name: value[:count] for name, value in arguments.items() if name != "grid"}
    drawn(manifold_figure(**arguments | few))


@pytest.mark.parametrize(("columns", "has_grid"), WAYS.values(), ids=WAYS)
def test_a_model_that_went_astray_is_drawn_on_the_true_one_s_scale(columns, has_grid):
    arguments = given(columns, has_grid)
    near = manifold_figure(**arguments)
    for name in ("learned_points", "samples", "projections"):
        arguments[name] = arguments[name].copy()
        arguments[name][::3] *= 1e30
    arguments["learned_density"] = np.full(COUNT, np.nan)
    arguments["learned_density"][::2] = 800
    astray = manifold_figure(**arguments)
    assert drawn(astray).std() > 5
    for before, after in zip(near.axes, astray.axes, strict=True):
        assert before.get_xlim() == after.get_xlim()


@pytest.mark.parametrize("columns", [2, 3])
def test_repeated_points_are_drawn(columns):
    drawn(manifold_figure(**given(columns, true_points=np.zeros((COUNT, columns)))))


def test_what_is_given_stays_as_it_is():
    arguments = given(3)
    before = {name: np.copy(value) for name, value in arguments.items() if value is not None}
    manifold_figure(**arguments)
    assert all(np.array_equal(arguments[name], value) for name, value in before.items())
