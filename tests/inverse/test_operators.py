"""Operators and tasks, against simple formulas."""

import numpy as np
import pytest
import scipy
import torch
from PIL import Image

from submanifold.common.errors import UserError
from submanifold.inverse import Deblur, Inpaint, Superresolve, parse

SHAPE = (3, 8, 8)


@pytest.fixture
def x():
    return torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0))


def test_deblur_is_the_filter_of_scipy(x):
    expected = scipy.ndimage.gaussian_filter(x.numpy(), (0, 0, 1.5, 1.5), mode="mirror")
    np.testing.assert_allclose(Deblur(1.5)(x), expected, atol=1e-6)


def test_inpaint_selects_the_observed_pixels_of_all_channels(x):
    mask = torch.ones(8, 8, dtype=torch.bool)
    mask[2:5, 3] = False
    expected = x.numpy()[:, :, mask.numpy()].reshape(2, -1)
    np.testing.assert_array_equal(Inpaint(mask)(x), expected)
    assert not torch.equal(Inpaint(mask)(x), Inpaint(~mask)(x))


def test_observations_have_the_noise_of_the_task(x):
    task = parse("superresolve:2", SHAPE, noise=0.3)
    y = task.observe(x.expand(2, *SHAPE).repeat(500, 1, 1, 1), torch.Generator().manual_seed(0))
    noise = y - Superresolve(2)(x).repeat(500, 1, 1, 1)
    assert noise.std() == pytest.approx(0.3, rel=0.02)
    assert parse("denoise:0.2", SHAPE).noise == 0.2
    with pytest.raises(UserError, match=r"noise: expected 0\.2 as in task=.*, got 0\.1"):
        parse("denoise:0.2", SHAPE, noise=0.1)


def test_masks_are_pictures(x, tmp_path):
    picture = np.full((8, 8), 255, np.uint8)
    picture[:2] = 0
    Image.fromarray(picture).save(tmp_path / "mask.png")
    task = parse(f"inpaint:{tmp_path}/mask.png", SHAPE)
    assert torch.equal(task.operator(x), x[:, :, 2:].flatten(1))
    assert torch.equal(parse("inpaint:4", SHAPE).operator(x)[0, :16], x[0, 0, :2].flatten())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("denoize:0.1", "expected one of denoise, .* Did you mean denoise"),
        ("denoise:1e300", "expected a number above 0 and up to 100, got 1e300"),
        ("inpaint:8", "expected a side from 1 to 7 pixels, got 8"),
        ("inpaint:mask.png", "expected a picture whose black pixels are missing, got"),
        ("superresolve:3", "expected a divisor of the sides 8 and 8, got 3"),
        ("deblur:3", "expected a number above 0 and up to 1.75, got 3"),
        ("sense:100000000", "expected an integer from 1 to 192"),
    ],
)
def test_mistakes_in_tasks(text, message):
    with pytest.raises(UserError, match=f"^task={text}: {message}"):
        parse(text, SHAPE)
