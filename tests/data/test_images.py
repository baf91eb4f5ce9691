"""Decoding of image files."""

import zipfile

import numpy as np
import pytest
from PIL import Image
from source_files import encode, plain, write_celeba

from submanifold.common.errors import UserError
from submanifold.data.images import decode, load_pictures
from submanifold.data.settings import ImageSettings

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
GREY16 = Image.fromarray(np.full((8, 8), 0x4080, np.uint16))


def colour(array):
    """The colour of a uniform image."""
    flat = array.reshape(len(array), -1)
    assert (flat == flat[:, :1]).all()
    return tuple(flat[:, 0].tolist())


@pytest.mark.parametrize(
    ("content", "channels", "expected"),
    [
        (encode(Image.new("L", (8, 8), 77)), 3, (77, 77, 77)),
        (plain(GREEN), 1, (150,)),  # luma
        (encode(GREY16), 3, (0x40, 0x40, 0x40)),
        (
            encode(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=100),
            3,
            (0, 255, 255),
        ),
    ],
    ids=["grey to RGB", "RGB to grey", "16 bits", "CMYK"],
)
def test_colours_are_converted(content, channels, expected):
    assert colour(decode(content, 4, channels)) == pytest.approx(expected, abs=10)


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (8, 8), BLUE)
    image.paste(RED, (0, 0, 8, 4))  # red above
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise: red on the right
    array = decode(encode(image, exif=exif), 8, 3)
    assert colour(array[:, :, 4:]) == RED
    assert colour(array[:, :, :4]) == BLUE


def test_broken_images_raise():
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for kind in ("JPEG", "PNG"):
        content = encode(noise, kind)
        with pytest.raises(OSError, match=r"truncated|broken"):
            decode(content[: len(content) // 2], 4, 3)
    for content in (b"", b"not an image"):
        with pytest.raises(ValueError, match=r"^not an image$"):
            decode(content, 4, 3)


@pytest.mark.parametrize("side", [10_000, 20_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_raise(side):
    bomb = encode(Image.new("1", (side, 9_999)))
    with pytest.raises((ValueError, Image.DecompressionBombError)):
        decode(bomb, 4, 3)


@pytest.mark.parametrize(("width", "height", "side"), [(178, 218, 148), (89, 109, 74)])
def test_the_celeba_crop_is_the_scaled_centre_148_pixels(width, height, side):
    left, top = round((width - side) / 2), round((height - side) / 2)
    image = Image.new("RGB", (width, height), BLUE)
    image.paste(RED, (left, top, left + side, top + side))
    assert colour(decode(encode(image), 32, 3, "celeba")) == RED
    image.paste(GREEN, (left, top, left + side, top + 1))
    assert decode(encode(image), 32, 3, "celeba")[1, 0].min() > 20  # the first row is inside


@pytest.mark.parametrize("kind", ["EPS", "PPM"])
def test_other_formats_are_rejected(kind):
    """PIL gives EPS to another program, whatever a file is called."""
    with pytest.raises(ValueError, match="not an image"):
        decode(plain(kind=kind), 4, 3)


def test_pictures_are_loaded_like_the_images_of_a_model(tmp_path):
    write_celeba(tmp_path, count=3)
    settings = ImageSettings(source="celeba", path=str(tmp_path), size=6, channels=1)
    source = settings.open(tmp_path)
    with zipfile.ZipFile(tmp_path / "img_align_celeba.zip") as archive:
        archive.extractall(tmp_path)
    files = [tmp_path / name for name in source.names]
    pictures = load_pictures(files, **settings.facts)
    assert (pictures.shape, pictures.dtype) == ((3, 1, 6, 6), np.uint8)
    assert (
        pictures == np.stack([decode(source.image(name), **settings.form) for name in source.names])
    ).all()
    assert load_pictures([], **settings.facts).shape == (0, 1, 6, 6)


@pytest.mark.parametrize(("name", "reason"), [("a", "not an image"), ("b", "No such file")])
def test_a_file_that_is_not_a_picture_is_named(tmp_path, name, reason):
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=rf"{name}\.png: expected an image file, got .*{reason}"):
        load_pictures([tmp_path / f"{name}.png"], size=8, channels=3)
