"""Patches of photographs."""

import numpy as np
import pytest
from scipy import ndimage

from submanifold.data.settings import ImageSettings
from submanifold.data.sources import photos as module
from submanifold.data.sources.photos import GAP


def photos(seed=0, **settings):
    return module.open_photos(ImageSettings(seed=seed, **settings), None)


def test_there_are_about_8000_patches_in_proportions_80_10_10():
    source = photos(channels=1)
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
    assert (image.shape, image.dtype) == ((1, 32, 32), np.uint8)


@pytest.mark.parametrize(("size", "fewest"), [(32, 30), (128, 4)])
def test_groups_are_cells_and_each_is_in_one_split(size, fewest):
    source = photos(size=size)
    assert {name.rpartition("/")[0].rpartition("/")[0] for name in source.names} == set(
        source.groups.values()
    )
    cells = {
        part: {source.groups[name] for name in source.names if source.splits[name] == part}
        for part in ("train", "valid", "test")
    }
    assert sum(map(len, cells.values())) == len(set(source.groups.values()))
    assert min(len(cells["valid"]), len(cells["test"])) >= fewest


def test_splits_share_no_pixel_and_are_separated_by_gaps(monkeypatch):
    # Each pixel stores its row and column, so that a patch shows its origin.
    shapes = {"a": (301, 451), "b": (512, 512), "c": (427, 641)}
    pictures = {
        name: np.stack(np.mgrid[:height, :width], axis=-1)
        for name, (height, width) in shapes.items()
    }
    monkeypatch.setattr(module, "read_photos", lambda channels: pictures)
    source = photos()
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
