import contextlib
import hashlib
import io
import os
import tracemalloc
import zipfile

import lmdb
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from submanifold.common.errors import UserError
from submanifold.common.settings import read_settings
from submanifold.data.images import decode, load_pictures
from submanifold.data.settings import ImageSettings
from submanifold.data.sources import fingerprint, open_source
from submanifold.data.sources.photos import (
    GAP,
    PLAY,
    grid,
    halve,
    open_photos,
    read_photos,
    starts,
)
from submanifold.data.sources.scan import cached_by_stamp
from submanifold.data.sources.stores import open_store

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def read(settings):
    return read_settings(ImageSettings, settings, "data")


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def plain(colour=RED, size=(8, 8), kind="PNG"):
    return encode(Image.new("RGB", size, colour), kind)


def colour(array):
    """The one colour of a uniform image."""
    flat = array.reshape(len(array), -1)
    assert (flat == flat[:, :1]).all()
    return tuple(flat[:, 0].tolist())


# ---- settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sise": 32}, ["data.sise", "path", "size", "counts"]),
        ({"counts": {"dev": 3}}, ["data.counts.dev", "train, valid, test"]),
        ({"source": "celebs"}, ["data.source=celebs", "photos", "celeba", "lsun_bedroom"]),
        ({"channels": 2}, ["data.channels=2", "1 or 3"]),
        ({"size": 0}, ["data.size=0", "greater than 0"]),
        ({"counts": {"train": -1}}, ["data.counts.train=-1", "greater than 0"]),
        ({"split": "halves"}, ["data.split=halves", "official"]),
        ({"source": "celeba", "hash": "abc"}, ["data.hash=abc", "md5"]),
        ({"source": "celeba", "url": "ftp://x"}, ["data.url=ftp://x", "http"]),
        ({"source": "folder"}, ["source=folder", "needs path"]),
        ({"source": "lsun_bedroom"}, ["source=lsun_bedroom", "needs path"]),
        ({"path": "pictures"}, ["path=pictures", "photos", "set source"]),
        ({"crop": "square"}, ["source=photos", "crop=square", "leave crop out"]),
        ({"groups": "folder"}, ["source=photos", "got folder", "Leave it out"]),
        ({"split": "official"}, ["source=photos", "split=official", "set split=random"]),
        ({"source": "folder", "path": "x", "split": "official"}, ["source=folder", "split=random"]),
        ({"source": "celeba", "path": "x", "url": "http://x"}, ["path=x", "url", "leave them out"]),
        ({"source": "celeba", "path": "x", "hash": "md5:0"}, ["path=x", "hash", "leave them out"]),
        ({"source": "celeba", "hash": "md5:0"}, ["hash=md5:0", "give url"]),
        ({"source": "folder", "path": "x", "url": "http://x"}, ["url", "celeba"]),
    ],
)
def test_a_wrong_setting_is_one_message_that_says_what_is_allowed(settings, words):
    with pytest.raises(UserError) as caught:
        read(settings)
    assert [word for word in [*words, "--params=data."] if word not in str(caught.value)] == []


def test_two_wrong_settings_are_both_named():
    with pytest.raises(UserError, match=r"data\.size.*data\.colour"):
        read({"size": 0, "colour": 3})


# ---- decoding


def test_grey_becomes_three_equal_channels():
    assert colour(decode(encode(Image.new("L", (8, 8), 77)), 4, 3)) == (77, 77, 77)


def test_colour_becomes_grey_by_luma():
    assert colour(decode(plain(GREEN), 4, 1)) == (150,)


def test_cmyk_becomes_rgb():
    cyan = encode(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=100)
    red, green, blue = colour(decode(cyan, 4, 3))
    assert red < 10
    assert min(green, blue) > 245


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_white_whatever_colour_lies_under_them(mode):
    if mode == "P":
        image = Image.new("P", (8, 8), 1)
        image.putpalette([0, 0, 255, 255, 0, 0])
        content = encode(image, transparency=1)
    else:
        content = encode(Image.new("RGBA", (8, 8), (255, 0, 0, 0)).convert(mode))
    assert colour(decode(content, 4, 3)) == (255, 255, 255)


def test_palette_becomes_its_colours():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 255, 255, 0, 0])
    assert colour(decode(encode(image, "GIF"), 4, 3)) == RED


def test_sixteen_bits_are_scaled_not_clipped():
    image = Image.fromarray(np.full((8, 8), 0x4080, np.uint16))
    assert colour(decode(encode(image), 4, 3)) == (0x40, 0x40, 0x40)
    assert colour(decode(encode(image, "TIFF"), 4, 1)) == (0x40,)


def test_float_pixels_are_refused():
    with pytest.raises(ValueError, match="floating-point"):
        decode(encode(Image.new("F", (8, 8), 0.5), "TIFF"), 4, 3)


def test_exif_orientation_is_honoured():
    image = Image.new("RGB", (8, 8), BLUE)
    image.paste(RED, (0, 0, 8, 4))  # red above
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise: red on the right
    array = decode(encode(image, exif=exif), 8, 3)
    assert colour(array[:, :, 4:]) == RED
    assert colour(array[:, :, :4]) == BLUE


def test_broken_truncated_and_foreign_bytes_raise():
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for kind in ("JPEG", "PNG"):
        whole = encode(noise, kind)
        with pytest.raises(OSError, match=r"truncated|broken"):
            decode(whole[: len(whole) // 2], 4, 3)
    for content in (b"", b"not an image"):
        with pytest.raises(ValueError, match=r"^not an image$"):
            decode(content, 4, 3)


@pytest.mark.parametrize("side", [10_000, 20_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_raises(side):
    bomb = encode(Image.new("1", (side, 9_999)))
    with pytest.raises((ValueError, Image.DecompressionBombError)):
        decode(bomb, 4, 3)


@pytest.mark.parametrize(("width", "height"), [(30, 50), (50, 30)])
def test_the_centre_square_is_kept(width, height):
    image = Image.new("RGB", (width, height), BLUE)
    left, top = (width - 30) // 2, (height - 30) // 2
    image.paste(RED, (left, top, left + 30, top + 30))
    assert colour(decode(encode(image), 8, 3, "square")) == RED


@pytest.mark.parametrize(("width", "height", "side"), [(178, 218, 148), (89, 109, 74)])
def test_celeba_keeps_the_scaled_centre_148_and_all_of_it(width, height, side):
    left, top = round((width - side) / 2), round((height - side) / 2)
    image = Image.new("RGB", (width, height), BLUE)
    image.paste(RED, (left, top, left + side, top + side))
    assert colour(decode(encode(image), 32, 3, "celeba")) == RED
    image.paste(GREEN, (left, top, left + side, top + 1))
    assert decode(encode(image), 32, 3, "celeba")[1, 0].min() > 20  # the first row is inside


def test_resizing_is_antialiased():
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    array = decode(encode(Image.fromarray(stripes)), 8, 1)
    assert abs(array.astype(int) - 127).max() <= 16  # taking nearby pixels alone gives 0 or 255


# ---- stores


def test_folder_finds_images_of_any_case_and_passes_over_the_rest(tmp_path):
    wanted = ["a.JPG", "b/c.jpeg", "b/d.png", "e.bmp", "f.webp", "g.gif", "h.TIF", "i.tiff"]
    others = ["notes.txt", ".hidden.png", ".git/x.png", "__MACOSX/a.jpg", "b/Thumbs.db"]
    for name in wanted + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    store = open_store(tmp_path)
    assert store.fingerprint().startswith("folder:")
    assert store.names() == sorted(wanted)
    assert store.read("b/c.jpeg") == b"b/c.jpeg"


def test_zip_never_reads_a_member_that_points_outside(tmp_path):
    path = tmp_path / "images.zip"
    unsafe = [
        "../up.png",
        "in/../../up.png",
        "/root.png",
        "C:/drive.png",
        "C:drive.png",
        "..\\back.png",
    ]
    with zipfile.ZipFile(path, "w") as archive:
        for name in ["in/a.png", "__MACOSX/in/a.png", "in/.b.png", "in/read.me", *unsafe]:
            archive.writestr(name, name)
    store = open_store(path)
    assert store.fingerprint().startswith("zip:")
    assert store.names() == ["in/a.png"]
    assert store.read("in/a.png") == b"in/a.png"
    assert store.skipped == [{"name": n, "reason": "unsafe path"} for n in sorted(unsafe)]


def test_a_member_of_a_zip_takes_no_more_memory_than_it_says(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("lie.png", bytes(2**26))
        archive.infolist()[0].file_size = 1000
    store = open_store(tmp_path / "a.zip")
    tracemalloc.start()
    with contextlib.suppress(zipfile.BadZipFile):
        assert store.read("lie.png") == bytes(1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**21


def test_a_member_that_could_grow_without_limit_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", bytes(2**28 + 1), zipfile.ZIP_DEFLATED)
        archive.writestr("b.png", bytes(1000), zipfile.ZIP_BZIP2)
        archive.writestr("c.png", bytes(1000), zipfile.ZIP_LZMA)
    store = open_store(tmp_path / "a.zip")
    for name, said in {"a": "unpacks to", "b": "not by deflate", "c": "not by deflate"}.items():
        with pytest.raises(ValueError, match=said):
            store.read(f"{name}.png")


def test_a_file_that_is_too_large_for_an_image_is_not_read(tmp_path):
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(2**28 + 1)
    with pytest.raises(ValueError, match="268435457 bytes, more than the 268435456 an image may"):
        open_store(tmp_path).read("a.png")


@pytest.mark.parametrize("kind", ["EPS", "PPM"])
def test_formats_of_no_suffix_are_no_images(kind):
    """PIL gives EPS to another program, whatever a file is called."""
    with pytest.raises(ValueError, match="not an image"):
        decode(plain(kind=kind), 4, 3)


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "BMP", "WEBP", "GIF", "TIFF"])
def test_formats_of_the_suffixes_are_read_under_any_name(kind):
    assert decode(plain(kind=kind), 4, 3).shape == (3, 4, 4)


def special(kind, folder):
    """A pipe, which whoever opens it waits for, or a device, which never ends."""
    path = folder / "it.zip"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    return path


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("source", ["folder", "celeba", "lsun_bedroom"])
def test_a_path_that_is_neither_file_nor_folder(tmp_path, kind, source):
    path = special(kind, tmp_path)
    for ask in (open_source, fingerprint):
        with pytest.raises(UserError, match=r"^path=.*it\.zip is neither a file nor a folder"):
            ask(read({"source": source, "path": str(path)}), tmp_path)
    with pytest.raises(UserError, match="cannot be read as a picture: not a file"):
        load_pictures([path], **read({}).facts)


def test_a_pipe_in_the_place_of_celebas_zip_is_not_opened(tmp_path):
    make_celeba(tmp_path / "Img", codes="0001200010")
    with zipfile.ZipFile(tmp_path / "Img" / "img_align_celeba.zip") as archive:
        archive.extractall(tmp_path / "Img")
    (tmp_path / "Img" / "img_align_celeba.zip").unlink()
    os.mkfifo(tmp_path / "Img" / "img_align_celeba.zip")
    assert len(open_celeba(tmp_path / "Img", split="official").names) == 10


def test_lmdb_gives_its_values_and_opens_again_after_close(tmp_path):
    with lmdb.open(str(tmp_path / "db")) as env, env.begin(write=True) as writer:
        writer.put(b"\xffkey", b"two")
        writer.put(b"akey", b"one")
    for _ in range(2):
        store = open_store(tmp_path / "db")
        assert store.fingerprint().startswith("lmdb:")
        assert [store.read(name) for name in store.names()] == [b"one", b"two"]
        store.close()


def test_an_lsun_is_read_as_it_was_downloaded(tmp_path):
    """Keys are hashes, values are webp; there are two databases, which stay as they are."""
    for part, first in (("train", 0), ("val", 40)):
        folder = tmp_path / f"bedroom_{part}_lmdb"
        with lmdb.open(str(folder)) as env, env.begin(write=True) as writer:
            for value in range(first, first + 40):
                key = hashlib.sha1(bytes([value])).hexdigest()
                writer.put(key.encode(), plain((value, 0, 0), (20, 12), "WEBP"))
    path = tmp_path / "bedroom_train_lmdb"
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.iterdir()}
    assert {file.name for file in before} == {"data.mdb", "lock.mdb"}
    source = open_source(read({"source": "lsun_bedroom", "path": str(path), "size": 8}), tmp_path)
    names = sorted(hashlib.sha1(bytes([value])).hexdigest() for value in range(40))
    assert source.names == names
    reds = sorted(int(source.image(name)[0].mean().round()) for name in names)
    assert np.abs(np.array(reds) - np.arange(40)).max() <= 3
    source.close()
    assert before == {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.iterdir()}


def test_the_zip_that_an_lsun_comes_in_has_to_be_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "bedroom.zip", "w") as archive:
        archive.writestr("bedroom_train_lmdb/data.mdb", bytes(8192))
        archive.writestr("bedroom_train_lmdb/lock.mdb", bytes(8192))
    with pytest.raises(UserError, match=r"zip of an LMDB.*unzip bedroom\.zip.*data\.mdb as path"):
        open_folder(tmp_path / "bedroom.zip")
    with zipfile.ZipFile(tmp_path / "bedroom.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    with pytest.raises(
        UserError, match=r"no images found .* folder that holds data\.mdb is the path"
    ):
        open_folder(tmp_path / "unpacked")


def open_folder(path, **settings):
    return open_source(read({"source": "folder", "path": str(path), **settings}), path)


def test_a_path_that_does_not_exist(tmp_path):
    with pytest.raises(UserError, match=r"^path=.*nowhere does not exist.*as path"):
        open_folder(tmp_path / "nowhere")


def test_a_member_without_a_name_is_passed_over(tmp_path):
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo(""), b"")
        archive.writestr("a.png", b"")
    store = open_store(tmp_path / "some.zip")
    assert store.names() == ["a.png"]
    store.close()


def test_a_zip_of_a_later_version_is_not_readable(tmp_path):
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr("a.png", b"")
    content = bytearray((tmp_path / "some.zip").read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 99  # zipfile raises NotImplementedError
    (tmp_path / "some.zip").write_bytes(content)
    with pytest.raises(UserError, match="is not a readable zip"):
        open_store(tmp_path / "some.zip")


def test_a_file_that_is_no_zip(tmp_path):
    (tmp_path / "file.zip").write_bytes(b"PK no")
    with pytest.raises(UserError, match=r"^path=.*file\.zip is not a readable zip"):
        open_folder(tmp_path / "file.zip")


def test_a_folder_that_is_no_lmdb(tmp_path):
    (tmp_path / "data.mdb").write_bytes(b"no database")
    with pytest.raises(UserError, match=r"^path=.* is not a readable LMDB"):
        open_folder(tmp_path)


def test_an_empty_folder(tmp_path):
    (tmp_path / "read.me").touch()
    with pytest.raises(UserError, match=r"^path=.*no images found in.*\.webp"):
        open_folder(tmp_path)


# ---- CelebA


def make_celeba(folder, count=10, codes=None):
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as archive:
        for i in range(count):
            archive.writestr(f"img_align_celeba/{i:06d}.jpg", plain(kind="JPEG"))
    if codes is not None:
        lines = [f"{i:06d}.jpg {code}" for i, code in enumerate(codes)]
        (folder / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")


def open_celeba(path=None, raw=None, **settings):
    settings = {"source": "celeba", "path": str(path) if path else None, **settings}
    return open_source(read(settings), raw or path)


def test_celeba_is_found_as_zip_folder_or_inside_a_folder_or_in_the_raw_folder(tmp_path):
    make_celeba(tmp_path / "raw" / "celeba")
    archive = tmp_path / "raw" / "celeba" / "img_align_celeba.zip"
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(tmp_path / "out")
    for path in (archive, archive.parent, tmp_path / "out", tmp_path / "out/img_align_celeba"):
        assert [n[-10:] for n in open_celeba(path).names] == [f"{i:06d}.jpg" for i in range(10)]
    assert len(open_celeba(raw=tmp_path / "raw").names) == 10


@pytest.mark.parametrize("place", ["beside", "inside", "Eval"])
def test_official_partition_is_followed_wherever_it_lies(tmp_path, place):
    make_celeba(tmp_path / "Img", codes="0001200010")
    file = tmp_path / "Img" / "list_eval_partition.txt"
    if place == "inside":
        with zipfile.ZipFile(tmp_path / "Img" / "img_align_celeba.zip", "a") as archive:
            archive.write(file, file.name)
        file.unlink()
    elif place == "Eval":
        (tmp_path / "Eval").mkdir()
        file.rename(tmp_path / "Eval" / file.name)
    source = open_celeba(tmp_path / "Img" / "img_align_celeba.zip", split="official")
    parts = source.splits
    assert "".join({"train": "0", "valid": "1", "test": "2"}[parts[n]] for n in source.names) == (
        "0001200010"
    )
    assert source.split_rule == "official"


def test_images_the_partition_does_not_list_are_skipped_and_named(tmp_path):
    make_celeba(tmp_path, count=4, codes="012")
    source = open_celeba(tmp_path, split="official")
    assert len(source.names) == 3
    reason = "not in list_eval_partition.txt"
    assert source.skipped == [{"name": "img_align_celeba/000003.jpg", "reason": reason}]


def test_official_without_a_file_falls_back_and_says_so(tmp_path, caplog):
    make_celeba(tmp_path)
    source = open_celeba(tmp_path, split="official")
    assert (source.split_rule, source.splits) == ("random", None)
    assert "list_eval_partition.txt lies neither" in source.note
    assert source.note in caplog.text


def test_a_partition_file_of_another_kind(tmp_path):
    make_celeba(tmp_path, codes="01x")
    with pytest.raises(UserError, match=r"line 3 of list_eval_partition.txt.*split=random"):
        open_celeba(tmp_path, split="official")


# ---- photographs


def photos(seed=0, pictures=None, **settings):
    return open_photos(read({"seed": seed, **settings}), pictures)


def test_about_8000_patches_in_about_80_10_10_from_several_photos():
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
def test_the_groups_of_patches_are_many_cells_of_which_each_is_in_one_split(size, fewest):
    source = photos(size=size)
    assert len(source.names) == pytest.approx(8000, rel=0.08)
    assert {name.rpartition("/")[0].rpartition("/")[0] for name in source.names} == set(
        source.groups.values()
    )
    cells = {part: {source.groups[name] for name in source.names if source.splits[name] == part}
             for part in ("train", "valid", "test")}  # fmt: skip
    assert sum(map(len, cells.values())) == len(set(source.groups.values()))
    assert min(len(cells["valid"]), len(cells["test"])) >= fewest


def test_photos_follow_the_seed():
    assert photos(seed=1).parts == photos(seed=1).parts
    assert photos(seed=1).parts != photos(seed=2).parts


def test_a_patch_is_a_window_of_its_photo():
    source = photos()
    pixels = read_photos(3)["coffee"]
    windows = np.lib.stride_tricks.sliding_window_view(pixels[:, :, 0], (32, 32))
    name = next(name for name in source.names if name.startswith("coffee/017/full"))
    assert (windows == source.image(name)[0]).all(axis=(2, 3)).any()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_pixel_is_shared_between_splits_and_a_gap_lies_between_them(seed):
    # Each pixel holds its own row and column, so a patch shows which pixels it was made of.
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


def test_cells_have_their_side_and_cover_an_image_but_for_the_gaps():
    seen = np.zeros((300, 451), int)
    for top, bottom, left, right in grid((300, 451), 64):
        assert 64 <= min(bottom - top, right - left) <= max(bottom - top, right - left) < 80
        seen[top:bottom, left:right] += 1
    assert seen.max() == 1
    assert ((seen.max(1) == 0).sum(), (seen.max(0) == 0).sum()) == (3 * GAP, 5 * GAP)


def test_an_image_that_is_smaller_than_a_cell_is_one():
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


def test_a_size_that_no_cell_holds():
    with pytest.raises(UserError, match=r"^size=200 .* set size to 128 or less"):
        photos(size=200)


# ---- fingerprints


def mark(path, **settings):
    return fingerprint(read({"source": "folder", "path": str(path), **settings}), path)


def touch(path):
    os.utime(path, (1, 1))


def test_fingerprint_of_a_folder_ignores_times_and_sees_a_new_or_grown_file(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"x")
    first = mark(tmp_path)
    touch(tmp_path / "a.png")
    (tmp_path / "notes.txt").touch()
    assert mark(tmp_path) == first
    (tmp_path / "c.png").write_bytes(b"x")
    second = mark(tmp_path)
    (tmp_path / "c.png").write_bytes(b"xx")
    assert len({first, second, mark(tmp_path)}) == 3


def test_the_fingerprint_and_nothing_else_depends_on_the_content_of_a_list_of_groups(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    lists = tmp_path / "one.txt", tmp_path / "two.txt"
    for each in lists:
        each.write_text("a.png 1\n")
    one, two = (mark(tmp_path, groups=str(each)) for each in lists)
    lists[1].write_text("a.png 2\n")
    other = mark(tmp_path, groups=str(lists[1]))
    assert one == two
    assert len({one, other, mark(tmp_path), mark(tmp_path, groups="folder")}) == 4
    settings = {"source": "folder", "path": str(tmp_path)}
    assert read(settings | {"groups": str(lists[0])}).content == read(settings).content


def test_fingerprint_of_a_zip_ignores_time_and_name_and_sees_other_content(tmp_path):
    def pack(name, content):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("a.png", content)
        return tmp_path / name

    first = mark(pack("one.zip", b"12"))
    touch(tmp_path / "one.zip")
    assert mark(tmp_path / "one.zip") == first
    assert mark((tmp_path / "one.zip").rename(tmp_path / "two.zip")) == first
    assert mark(pack("three.zip", b"13")) != first  # same sizes and names: the CRC tells


def test_fingerprint_of_photos_reads_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr("submanifold.data.sources.photos.read_photos", None)
    assert fingerprint(read({}), tmp_path) == fingerprint(read({}), tmp_path)


def test_fingerprint_sees_the_partition_file_only_when_it_decides(tmp_path):
    make_celeba(tmp_path)
    random = mark(tmp_path, source="celeba")
    official = mark(tmp_path, source="celeba", split="official")
    (tmp_path / "list_eval_partition.txt").write_text("000000.jpg 0\n")
    assert mark(tmp_path, source="celeba") == random
    assert mark(tmp_path, source="celeba", split="official") != official


def test_a_zip_is_indexed_once_until_it_changes(tmp_path):
    path, read = tmp_path / "a.zip", []

    def index(given):
        read.append(given)
        return given.read_bytes()

    path.write_bytes(b"one")
    assert [cached_by_stamp(index, path) for _ in range(3)] == [b"one"] * 3
    assert len(read) == 1
    path.write_bytes(b"other")
    assert cached_by_stamp(index, path) == b"other"
    path.write_bytes(b"OTHER")
    os.utime(path, ns=(0, 0))
    assert cached_by_stamp(index, path) == b"OTHER"
    folder = [
        cached_by_stamp(lambda given: read.append(given) or len(read), tmp_path) for _ in "ab"
    ]
    assert folder[0] < folder[1]  # what lies in a folder may have changed unseen


# ---- a model's own pictures


def test_pictures_are_read_as_the_model_was_trained(tmp_path):
    make_celeba(tmp_path, count=3)
    settings = read({"source": "celeba", "path": str(tmp_path), "size": 6, "channels": 1})
    assert settings.facts == {
        "size": 6,
        "channels": 1,
        "crop": "celeba",
        "margin": 0,
        "value_range": [-0.5, 0.5],
        "bits": 8,
    }
    source = open_source(settings, tmp_path)
    with zipfile.ZipFile(tmp_path / "img_align_celeba.zip") as archive:
        archive.extractall(tmp_path)
    files = [tmp_path / name for name in source.names]
    pictures = load_pictures(files, **settings.facts)
    assert (pictures.shape, pictures.dtype) == ((3, 1, 6, 6), np.uint8)
    assert (pictures == np.stack([source.image(name) for name in source.names])).all()
    assert load_pictures([], **settings.facts).shape == (0, 1, 6, 6)


@pytest.mark.parametrize(
    ("settings", "crop"),
    [
        ({}, "square"),
        ({"source": "folder", "path": "x"}, "square"),
        ({"source": "folder", "path": "x", "crop": "celeba"}, "celeba"),
        ({"source": "celeba", "crop": "square"}, "square"),
    ],
)
def test_the_crop_of_new_pictures(settings, crop):
    assert read(settings).facts["crop"] == crop


def test_a_file_that_is_no_picture_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(plain())
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"^path=.*b\.png cannot be read as a picture: not an im"):
        load_pictures([tmp_path / "a.png", str(tmp_path / "b.png")], **read({}).facts)
    with pytest.raises(UserError, match=r"^path=nowhere\.png cannot be read"):
        load_pictures(["nowhere.png"], **read({}).facts)
