"""Patches of photographs."""

import numpy as np
import pytest
from scipy import ndimage

from submanifold.common.errors import UserError
from submanifold.data.settings import ImageSettings
from submanifold.data.sources.photos import GAP, PLAY, grid, halve, open_photos, read_photos, starts


def photos(seed=0, pictures=None, **settings):
    return open_photos(ImageSettings(seed=seed, **settings), pictures)


def test_there_are_about_8000_patches_in_proportions_80_10_10():
    source = photos()
    parts = source.splits
    names = source.names
    assert 7600 < len(names) < 8400
    assert sorted(parts) == names
    for part, share in {"train": 0.8, "valid": 0.1, "test": 0.1}.items():
        mine = [name for name in names if parts[name] == part]
        assert abs(len(mine) / len(names) - share) < 0.04
        assert len({name.split("/")[0] for name in mine}) >= 5
        assert {name.split("/")[2] for name in mine} == {"full", "half"}
    image = source.image(names[0])
    assert (image.shape, image.dtype) == ((3, 32, 32), np.uint8)


@pytest.mark.parametrize(("size", "fewest"), [(8, 50), (32, 30), (64, 12), (128, 4)])
def test_groups_are_cells_and_each_is_in_one_split(size, fewest):
    source = photos(size=size)
    assert len(source.names) == pytest.approx(8000, rel=0.08)
    assert {name.rpartition("/")[0].rpartition("/")[0] for name in source.names} == set(
        source.groups.values()
    )
    cells = {part: {source.groups[name] for name in source.names if source.splits[name] == part}
             for part in ("train", "valid", "test")}  # fmt: skip
    assert sum(map(len, cells.values())) == len(set(source.groups.values()))
    assert min(len(cells["valid"]), len(cells["test"])) >= fewest


def test_a_patch_is_a_window_of_its_photo():
    source = photos()
    pixels = read_photos(3)["coffee"]
    windows = np.lib.stride_tricks.sliding_window_view(pixels[:, :, 0], (32, 32))
    name = next(name for name in source.names if name.startswith("coffee/017/full"))
    assert (windows == source.image(name)[0]).all(axis=(2, 3)).any()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_splits_share_no_pixel_and_are_separated_by_gaps(seed):
    # Each pixel stores its row and column, so that a patch shows its origin.
    shapes = {"a": (301, 451), "b": (512, 512), "c": (427, 641)}
    pictures = {
        name: np.stack(np.mgrid[:height, :width], axis=-1)
        for name, (height, width) in shapes.items()
    }
    source = photos(seed, pictures)
    owner = {name: np.full(shape, "", dtype="<U5") for name, shape in shapes.items()}
    parts = source.splits
    halves = 0
    for name in source.names:
        photo, _, scale, _ = name.split("/")
        row, column = source.image(name)
        for dy, dx in [(0, 0)] if scale == "full" else [(0, 0), (0, 1), (1, 0), (1, 1)]:
            # The mean of rows y, y, y+1, y+1 rounds up to y+1.
            y, x = (row, column) if scale == "full" else (row - 1 + dy, column - 1 + dx)
            there = owner[photo][y, x]
            assert np.isin(there, ["", parts[name]]).all()
            owner[photo][y, x] = parts[name]
        halves += scale == "half"
    assert halves > 100
    for part in ("train", "valid", "test"):
        assert sum((pixels == part).any() for pixels in owner.values()) >= 2
    for pixels in owner.values():
        for part in ("train", "valid", "test"):
            near = ndimage.maximum_filter(pixels == part, 2 * GAP + 1)
            assert np.isin(pixels[near], ["", part]).all()


def test_halving_is_an_average_over_2_by_2_pixels():
    pixels = np.array([[1, 3, 9], [5, 7, 9], [9, 9, 9]], np.uint8)[..., None]
    assert halve(pixels).tolist() == [[[4]]]
    assert halve(np.array([[0, 0], [1, 1]], np.uint8)[..., None]).item() == 1
    assert halve(np.full((2, 2, 3), 255, np.uint8)).tolist() == [[[255, 255, 255]]]


def test_cells_cover_an_image_except_for_the_gaps():
    seen = np.zeros((300, 451), int)
    for top, bottom, left, right in grid((300, 451), 64):
        assert 64 <= min(bottom - top, right - left) <= max(bottom - top, right - left) < 80
        seen[top:bottom, left:right] += 1
    assert seen.max() == 1
    assert ((seen.max(1) == 0).sum(), (seen.max(0) == 0).sum()) == (3 * GAP, 5 * GAP)


def test_an_image_smaller_than_a_cell_is_one_cell():
    assert grid((PLAY, 2 * PLAY), 3 * PLAY) == [(0, PLAY, 0, 2 * PLAY)]


def test_starts_reach_both_ends():
    assert starts(128, 32, 13)[0] == 0
    assert starts(128, 32, 13)[-1] == 96
    assert starts(32, 32, 13) == [0]
    assert starts(31, 32, 13) == []


def test_photos_in_grey_and_at_another_size():
    source = photos(size=48, channels=1)
    assert source.image(source.names[0]).shape == (1, 48, 48)
    assert 7000 < len(source.names) < 9000


def test_a_size_that_does_not_fit_in_a_cell_is_rejected():
    with pytest.raises(UserError, match=r"^size: expected at most 128 with source=photos, got 200"):
        photos(size=200)
