import errno
import hashlib
import io
import json
import os
import socket
import struct
import subprocess
import threading
import tracemalloc
import warnings
import zipfile
import zlib
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from submanifold.common.errors import UserError
from submanifold.data import arrays as hashes
from submanifold.data import prepare as preprocess
from submanifold.data.arrays import are_intact
from submanifold.data.groups import groups_of
from submanifold.data.prepare import allowed_broken, check, prepare, read_groups
from submanifold.data.settings import Counts, ImageSettings
from submanifold.data.sources import Source
from submanifold.data.splits import share_out
from submanifold.pipelines.data.nodes import prepare_images

PARTS = ("train", "valid", "test")


def encode(value, kind="PNG"):
    """A uniform image that carries a number below 65536 in two of its channels."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value // 256, value % 256, 0)).save(buffer, kind)
    return buffer.getvalue()


def numbers(array):
    return (array[:, 0, 0, 0].astype(int) * 256 + array[:, 1, 0, 0]).tolist()


def everything(arrays):
    return sorted(number for array in arrays for number in numbers(array))


def make_folder(folder, count, broken=()):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        content = b"no image" if i in broken else encode(i)
        (folder / f"{i:05d}.png").write_bytes(content)
    return folder


def run(tmp_path, seed=0, out="out", path=None, **settings):
    settings = {
        "source": "folder",
        "path": str(path or tmp_path / "in"),
        "size": 4,
        "seed": seed,
        **settings,
    }
    return prepare(ImageSettings(**settings), tmp_path / out, tmp_path / "raw")


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(preprocess, "CHUNK_IMAGES", 7)


@pytest.fixture
def decoded(monkeypatch):
    """The names that were decoded, in order of arrival."""
    names = []
    image = Source.image

    def count(source, name):
        names.append(name)
        return image(source, name)

    monkeypatch.setattr(Source, "image", count)
    return names


# ---- the result


def test_arrays_and_manifest(tmp_path):
    make_folder(tmp_path / "in", 50)
    *arrays, manifest = run(tmp_path)
    assert [array.shape for array in arrays] == [(40, 3, 4, 4), (5, 3, 4, 4), (5, 3, 4, 4)]
    assert everything(arrays) == list(range(50))  # each image exactly once
    for part, array in zip(PARTS, arrays, strict=True):
        assert isinstance(array, np.memmap)
        assert array.dtype == np.uint8
        assert (np.load(tmp_path / "out" / f"{part}.npy") == array).all()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # torch warns of a read-only map
            torch.from_numpy(array)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest
    expected = {
        "source": "folder",
        "path": str(tmp_path / "in"),
        "counts": {"train": 40, "valid": 5, "test": 5},
        "crop": "square",
        "size": 4,
        "channels": 3,
        "split": "random",
        "split_note": "expected 100 or more different training images, got 40 among the first 40: "
        "a model memorizes so few, and its metrics say little",
        "groups": None,
        "seed": 0,
        "skipped": [],
        "skipped_count": 0,
    }
    assert {name: manifest[name] for name in expected} == expected
    assert manifest["hash"].startswith("sha256:")
    assert manifest["fingerprint"].startswith("folder:")
    assert manifest["seconds"] >= 0
    left = {file.name for file in (tmp_path / "out").iterdir()}
    assert left == {"train.npy", "valid.npy", "test.npy", "manifest.json"}


def checked(tmp_path, **settings):
    settings = {"source": "folder", "path": str(tmp_path / "in"), "size": 4, **settings}
    check(ImageSettings(**settings), tmp_path / "out", tmp_path / "raw")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("images", "settings", "said"),
    [
        ([b"no image"] * 40, {}, r"none of the first 32 can be read, such as \d+\.png \(ValueErr"),
        ([encode(0)] * 40, {}, "the first 32 are equal pixel by pixel"),
        ([encode(1), encode(2), encode(3)], {}, r"counts\.train: expected 2 images or more, got 1"),
        ([encode(1), encode(2)], {}, "2 images are too few for three splits"),
        ([encode(1)] * 20, {"counts": Counts(train=19)}, "too few for three splits"),
        ([], {"source": "photos", "path": None, "size": 500}, "size=500 is too large for source="),
        ([], {}, "no images found in it"),
        ([], {"path": "/nowhere"}, "path=/nowhere does not exist"),
    ],
    ids=["unreadable", "equal", "three", "two", "counts", "size", "empty", "nowhere"],
)
def test_data_that_cannot_work_are_refused_before_they_are_prepared(
    tmp_path, images, settings, said
):
    (tmp_path / "in").mkdir()
    for number, content in enumerate(images):
        (tmp_path / "in" / f"{number}.png").write_bytes(content)
    with pytest.raises(UserError, match=said):
        checked(tmp_path, **settings)


def test_outliers_may_be_few_or_equal(tmp_path):
    make_folder(tmp_path / "in", 3)
    settings = ImageSettings(source="folder", path=str(tmp_path / "in"), size=4)
    check(settings, tmp_path / "out", tmp_path / "raw", trained_on=False)


def test_data_that_work_pass_the_check_and_downloads_wait(tmp_path):
    make_folder(tmp_path / "in", 40, broken=range(4))
    checked(tmp_path)
    checked(tmp_path, source="mnist", path=None)
    checked(tmp_path, source="celeba", path=None)
    assert not (tmp_path / "raw").exists()


def test_the_check_looks_at_no_data_that_are_prepared(tmp_path, decoded):
    make_folder(tmp_path / "in", 20)
    run(tmp_path)
    count = len(decoded)
    settings = ImageSettings(source="folder", path=str(tmp_path / "in"), size=4)
    check(settings, tmp_path / "out", tmp_path / "raw")
    assert len(decoded) == count


@pytest.mark.parametrize(("count", "copies", "few"), [(250, 1, None), (60, 1, 48), (2, 150, 2)])
def test_few_different_training_images_are_warned_of(tmp_path, caplog, count, copies, few):
    (tmp_path / "in").mkdir()
    for i in range(count * copies):
        (tmp_path / "in" / f"{i:05d}.png").write_bytes(encode(i % count))
    settings = ImageSettings(source="folder", path=str(tmp_path / "in"), size=4)
    for _ in ("prepared", "found"):
        caplog.clear()
        manifest = prepare_images(settings, tmp_path / "out", tmp_path / "raw")["manifest"]
        said = f"different training images, got {few} among the first "
        assert (said in caplog.text) == (few is not None)
        assert (said in (manifest["split_note"] or "")) == (few is not None)


def test_skipped_files_are_counted_on_the_console(tmp_path, caplog):
    make_folder(tmp_path / "in", 40, broken=[3])
    for name in ("a.heic", "b.heic", "c.svg"):
        (tmp_path / "in" / name).write_bytes(b"x")
    manifest = run(tmp_path)[3]
    assert manifest["skipped_count"] == 4
    names = [each["name"] for each in manifest["skipped"]]
    assert names == ["*.heic", "*.svg", "00003.png"]
    assert "skipped 4 files, such as *.heic (2 files that are not .jpg" in caplog.text


def test_same_seed_same_hash_other_seed_other_split(tmp_path, small_chunks):
    make_folder(tmp_path / "in", 50)
    first, again, other = (run(tmp_path, seed, out) for seed, out in [(1, "a"), (1, "b"), (2, "c")])
    assert first[3]["hash"] == again[3]["hash"] != other[3]["hash"]
    assert set(numbers(first[2])) != set(numbers(other[2]))


def test_the_hash_sees_where_a_split_ends(tmp_path):
    make_folder(tmp_path / "in", 10)
    hashes = {run(tmp_path, out=str(n), counts={"valid": n})[3]["hash"] for n in (1, 2, 3)}
    assert len(hashes) == 3


def test_photos_need_nothing(tmp_path):
    train, valid, test, manifest = prepare(ImageSettings(), tmp_path / "out", tmp_path / "raw")
    assert 7600 < len(train) + len(valid) + len(test) < 8400
    assert train.shape[1:] == (3, 32, 32)
    assert (manifest["split"], manifest["fingerprint"]) == ("cells", "photos:2")


def test_a_zip_with_an_unsafe_path_is_named_in_the_manifest(tmp_path):
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for i in range(10):
            archive.writestr(f"{i}.png", encode(i))
        archive.writestr("../evil.png", encode(11))
    *arrays, manifest = run(tmp_path, path=tmp_path / "in.zip")
    assert everything(arrays) == list(range(10))
    assert manifest["skipped"] == [{"name": "../evil.png", "reason": "unsafe path"}]
    assert not list(tmp_path.rglob("evil.png"))


def test_what_is_no_file_is_named_in_the_manifest(tmp_path):
    make_folder(tmp_path / "in", 20)
    os.mkfifo(tmp_path / "in" / "pipe.png")
    (tmp_path / "in" / "link.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "in" / "socket.png"))
        *arrays, manifest = run(tmp_path)
    assert everything(arrays) == list(range(20))
    names = [f"{name}.png" for name in ("link", "pipe", "socket")]
    assert manifest["skipped"] == [{"name": name, "reason": "not a file"} for name in names]


def test_bombs_among_pictures_are_skipped_and_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "in.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(20):
            archive.writestr(f"{i:02d}.png", encode(i))
        archive.writestr("bomb.png", bytes(2**28 + 1))
        archive.writestr("huge.png", header_of_a_huge_png())
    *arrays, manifest = run(tmp_path, path=tmp_path / "in.zip")
    assert everything(arrays) == list(range(20))
    reasons = {item["name"]: item["reason"] for item in manifest["skipped"]}
    assert reasons["bomb.png"] == "ValueError: unpacks to 268435457 bytes, more than 268435456"
    assert "10000000000 pixels" in reasons["huge.png"]


def header_of_a_huge_png():
    """A grey image of 100,000 x 100,000 pixels, as far as its header says."""
    content = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + content + struct.pack(">I", zlib.crc32(content))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + bytes(4)


# ---- who goes where


@pytest.mark.parametrize(
    ("total", "counts", "expected"),
    [
        (3, {}, (1, 1, 1)),
        (100, {}, (80, 10, 10)),
        (100, {"train": 5, "valid": 6, "test": 7}, (5, 6, 7)),
        (100, {"train": 50, "valid": 20}, (50, 20, 30)),
        (100, {"valid": 20}, (70, 20, 10)),
        (100, {"train": 50, "test": 10}, (50, 10, 10)),
        (202_599, {"train": 200_782, "valid": 800}, (200_782, 800, 1_017)),
        (202_599, {"train": 200_782}, (200_782, 908, 909)),
        (10, {"valid": 8}, (1, 8, 1)),
    ],
)
def test_shares_of_a_random_split(total, counts, expected):
    shares = {share.split: share.count for share in share_out(total, Counts(**counts))}
    assert tuple(shares[part] for part in PARTS) == expected


@pytest.mark.parametrize(
    ("total", "counts", "words"),
    [(2, {}, "2 images are too few"), (9, {"train": 8}, "9 images .* counts.train=8")],
)
def test_too_few_images_for_three_splits(tmp_path, total, counts, words):
    make_folder(tmp_path / "in", total)
    with pytest.raises(UserError, match=words):
        run(tmp_path, counts=counts)


def test_given_counts_are_taken_exactly(tmp_path, small_chunks, decoded):
    make_folder(tmp_path / "in", 60)
    *arrays, _ = run(tmp_path, counts={"train": 20, "valid": 3, "test": 4})
    assert [len(array) for array in arrays] == [20, 3, 4]
    assert len(decoded) == 27  # and nothing else is read


def test_a_given_count_is_reached_past_a_broken_file(tmp_path, small_chunks):
    make_folder(tmp_path / "in", 220, broken=[0])
    counts = {"train": 180, "valid": 20, "test": 19}
    *arrays, manifest = run(tmp_path, counts=counts)
    assert manifest["counts"] == counts
    assert [len(array) for array in arrays] == [180, 20, 19]


def test_a_given_count_that_broken_files_put_out_of_reach(tmp_path):
    make_folder(tmp_path / "in", 100, broken=[5])
    with pytest.raises(UserError, match=r"readable images are left .* \(1 were broken\)"):
        run(tmp_path, counts={"train": 80, "valid": 10, "test": 10})


def make_celeba(folder, codes):
    folder.mkdir()
    with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as archive:
        for i in range(len(codes)):
            archive.writestr(f"img_align_celeba/{i:06d}.jpg", encode(i, "BMP"))
    lines = [f"{i:06d}.jpg {code}\n" for i, code in enumerate(codes)]
    (folder / "list_eval_partition.txt").write_text("".join(lines))


CODES = "0012" * 10


def test_official_partition_with_counts_takes_a_seeded_subset_of_each_part(tmp_path):
    make_celeba(tmp_path / "in", CODES)
    settings = {"source": "celeba", "split": "official"}
    *arrays, manifest = run(tmp_path, **settings)
    for code, array in zip("012", arrays, strict=True):
        assert sorted(numbers(array)) == [i for i, c in enumerate(CODES) if c == code]
    assert (manifest["split"], manifest["crop"]) == ("official", "celeba")
    few, other = (
        run(tmp_path, seed, f"few{seed}", counts={"train": 5}, **settings) for seed in (0, 1)
    )
    assert [len(array) for array in few[:3]] == [5, 10, 10]
    assert set(numbers(few[0])) < set(numbers(arrays[0]))
    assert set(numbers(few[0])) != set(numbers(other[0]))


def test_official_count_beyond_what_exists(tmp_path):
    make_celeba(tmp_path / "in", CODES)
    with pytest.raises(UserError, match=r"^counts\.test=11, but the official split has 10"):
        run(tmp_path, source="celeba", split="official", counts={"test": 11})


def test_official_partition_that_leaves_a_part_empty(tmp_path):
    make_celeba(tmp_path / "in", "0001")
    with pytest.raises(UserError, match=r"leaves no test images; set split=random"):
        run(tmp_path, source="celeba", split="official")


def test_the_fallback_to_a_random_split_is_in_the_manifest(tmp_path):
    make_celeba(tmp_path / "in", "0012" * 3)
    (tmp_path / "in" / "list_eval_partition.txt").unlink()
    manifest = run(tmp_path, source="celeba", split="official")[3]
    assert manifest["split"] == "random"
    assert "split=official, but list_eval_partition.txt lies neither" in manifest["split_note"]


# ---- groups


def make_people(folder, people, each, broken=()):
    """Folders of persons, of whose pictures each carries its number: 100 for a person."""
    for person in range(people):
        make_folder(folder / f"person {person:02d}", 0)
        for i in range(each):
            number = 100 * person + i
            content = b"no image" if number in broken else encode(number)
            (folder / f"person {person:02d}" / f"{number:04d}.png").write_bytes(content)
    return folder


def write_list(path, people, each):
    names = [100 * person + i for person in range(people) for i in range(each)]
    path.write_text("".join(f"{number:04d}.png  {number // 100:02d}\n" for number in names))
    return str(path)


@pytest.mark.parametrize("by", ["folder", "file"])
def test_a_group_is_in_one_split_and_each_image_has_the_number_of_its_group(
    tmp_path, small_chunks, by
):
    make_people(tmp_path / "in", 30, 5, broken=[0, 3, 712, 1404])
    groups = "folder" if by == "folder" else write_list(tmp_path / "list.txt", 30, 5)
    *arrays, manifest = run(tmp_path, groups=groups)
    found = read_groups(tmp_path / "out")
    for part, array in zip(PARTS, arrays, strict=True):
        assert found[part] == [number // 100 for number in numbers(array)]
        assert groups_of(found, part).tolist() == found[part]
    assert everything(arrays) == sorted(
        {100 * p + i for p in range(30) for i in range(5)} - {0, 3, 712, 1404}
    )
    persons = [set(found[part]) for part in PARTS]
    assert sum(map(len, persons)) == len(set.union(*persons)) == 30
    assert manifest["groups"] == {"train": 24, "valid": 3, "test": 3}
    assert manifest["split"] == "groups"
    other = run(tmp_path, seed=1, out="other", groups=groups)
    assert set(numbers(other[2])) != set(numbers(arrays[2]))


def test_counts_are_taken_of_the_groups_of_a_split(tmp_path):
    make_people(tmp_path / "in", 12, 6)
    *arrays, manifest = run(tmp_path, groups="folder", counts={"train": 20, "valid": 7, "test": 6})
    assert [len(array) for array in arrays] == [20, 7, 6]
    persons = [{number // 100 for number in numbers(array)} for array in arrays]
    assert sum(map(len, persons)) == len(set.union(*persons))
    assert manifest["groups"] == dict(zip(PARTS, map(len, persons), strict=True))


def test_groups_of_very_different_sizes_leave_one_for_each_split(tmp_path):
    make_people(tmp_path / "in", 2, 1)
    make_folder(tmp_path / "in" / "person 02", 50)
    *arrays, manifest = run(tmp_path, groups="folder")
    assert sorted(map(len, arrays)) == [1, 1, 50]
    assert manifest["groups"] == dict.fromkeys(PARTS, 1)


def test_images_without_groups_are_split_as_ever_and_have_none(tmp_path):
    make_people(tmp_path / "in", 12, 6)
    manifest = run(tmp_path)[3]
    assert manifest["groups"] is None
    assert read_groups(tmp_path / "out") == {}
    assert groups_of({}, "test") is None


def test_an_official_partition_keeps_groups_together(tmp_path):
    make_celeba(tmp_path / "in", CODES)
    settings = {"source": "celeba", "split": "official"}
    path = tmp_path / "identity.txt"
    path.write_text("".join(f"{i:06d}.jpg {code}{i % 3}\n" for i, code in enumerate(CODES)))
    manifest = run(tmp_path, groups=str(path), **settings)[3]
    assert (manifest["split"], manifest["groups"]) == ("official", dict.fromkeys(PARTS, 3))
    path.write_text("".join(f"{i:06d}.jpg {i % 3}\n" for i in range(len(CODES))))
    with pytest.raises(UserError, match=r"one part of the official split, got 3 in several"):
        run(tmp_path, groups=str(path), **settings)


def test_arrays_whose_groups_are_gone_are_made_again(tmp_path):
    make_people(tmp_path / "in", 12, 6)
    run(tmp_path, groups="folder")
    found = read_groups(tmp_path / "out")
    (tmp_path / "out" / "groups.json").unlink()
    run(tmp_path, groups="folder")
    assert read_groups(tmp_path / "out") == found != {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"list.txt: expected folder or the path of a text file, got a path that cannot be"),
        ("0000.png 0\n0001.png\n", r"list.txt: expected .* got '0001.png' on line 2"),
        ("0000.png 0\n", r"list.txt: expected a line for each image, got none for 11, such as pe"),
    ],
)
def test_a_list_of_groups_that_cannot_be_used(tmp_path, content, message):
    make_people(tmp_path / "in", 4, 3)
    if content is not None:
        (tmp_path / "list.txt").write_text(content)
    with pytest.raises(UserError, match=r"^groups=.*" + message):
        run(tmp_path, groups=str(tmp_path / "list.txt"))


def test_fewer_groups_than_splits_cannot_be_used(tmp_path):
    make_folder(tmp_path / "in", 30)
    with pytest.raises(UserError, match=r"^groups: expected 3 groups or more, .* got 1\."):
        run(tmp_path, groups="folder")


# ---- broken files


def test_one_percent_broken_is_skipped_counted_and_named(tmp_path, small_chunks):
    make_folder(tmp_path / "in", 200, broken=[3, 150])
    *arrays, manifest = run(tmp_path)
    assert everything(arrays) == [i for i in range(200) if i not in (3, 150)]
    assert manifest["counts"] == {"train": 158, "valid": 20, "test": 20}
    assert manifest["skipped_count"] == 2
    assert sorted(item["name"] for item in manifest["skipped"]) == ["00003.png", "00150.png"]
    assert manifest["skipped"][0]["reason"] == "ValueError: not an image"


@pytest.mark.parametrize(("name", "shown"), [
    (b"caf\xe9.png", r"caf\udce9.png"), (b"a\nb\x1b[31m.png", r"a\nb\x1b[31m.png"),
])  # fmt: skip
def test_names_of_broken_files_are_escaped(tmp_path, name, shown):
    make_folder(tmp_path / "in", 30)
    (tmp_path / "in" / os.fsdecode(name)).write_bytes(b"no image")
    *_, manifest = run(tmp_path)
    assert manifest["skipped"] == [{"name": shown, "reason": "ValueError: not an image"}]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest
    for number in range(20):
        (tmp_path / "in" / f"{number}{os.fsdecode(name)}").write_bytes(b"no image")
    with pytest.raises(UserError) as caught:
        run(tmp_path)
    assert f"{shown} (ValueError" in str(caught.value)


@pytest.mark.parametrize(
    ("total", "allowed"),
    [
        (3, 1),
        (4, 2),
        (19, 9),
        (20, 10),
        (61, 10),
        (1000, 10),
        (1099, 10),
        (1100, 11),
        (10**6, 10**4),
    ],
)
def test_how_many_broken_files_are_skipped(total, allowed):
    assert allowed_broken(total) == allowed


def test_one_broken_picture_of_few_is_skipped(tmp_path):
    make_folder(tmp_path / "in", 61, broken=[3])
    *arrays, manifest = run(tmp_path)
    assert everything(arrays) == [i for i in range(61) if i != 3]
    assert [item["name"] for item in manifest["skipped"]] == ["00003.png"]


def test_more_broken_files_than_are_skipped_stop_the_run(tmp_path):
    make_folder(tmp_path / "in", 200, broken=range(0, 55, 5))
    said = r"11 of 200 images cannot .* \(ValueError.*up to 10 would be skipped \(1%, or 10 where"
    with pytest.raises(UserError, match=said):
        run(tmp_path)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_the_run_stops_as_soon_as_it_is_certain(tmp_path, small_chunks, decoded):
    make_folder(tmp_path / "in", 200, broken=range(200))
    with pytest.raises(UserError, match="14 of 200 images cannot be read so far"):
        run(tmp_path)
    assert len(decoded) == 14


def test_the_manifest_lists_some_of_very_many_but_counts_all(tmp_path, monkeypatch):
    monkeypatch.setattr(preprocess, "LISTED", 2)
    make_folder(tmp_path / "in", 300, broken=[3, 77, 150])
    manifest = run(tmp_path)[3]
    assert (len(manifest["skipped"]), manifest["skipped_count"]) == (2, 3)


# ---- again


def test_a_second_call_decodes_nothing(tmp_path, decoded):
    make_folder(tmp_path / "in", 30)
    first = run(tmp_path)
    assert len(decoded) == 30
    second = run(tmp_path)
    assert len(decoded) == 30
    assert second[3] == first[3]
    assert all((a == b).all() for a, b in zip(first[:3], second[:3], strict=True))


def test_a_second_call_needs_no_source(tmp_path):
    make_folder(tmp_path / "in", 30)
    first = run(tmp_path)
    (tmp_path / "in").rename(tmp_path / "elsewhere")
    assert run(tmp_path)[3] == first[3]


@pytest.mark.parametrize("change", ["file", "size", "seed", "array"])
def test_what_no_longer_fits_is_made_anew(tmp_path, decoded, change):
    make_folder(tmp_path / "in", 30)
    run(tmp_path)
    decoded.clear()
    if change == "file":
        (tmp_path / "in" / "new.png").write_bytes(encode(99))
    if change == "array":
        (tmp_path / "out" / "valid.npy").unlink()
    *arrays, _ = run(
        tmp_path, seed=int(change == "seed"), **({"size": 5} if change == "size" else {})
    )
    assert len(decoded) == sum(map(len, arrays)) == 30 + (change == "file")
    assert arrays[0].shape[-1] == (5 if change == "size" else 4)


@pytest.mark.parametrize("name", ["train.npy", "manifest.json"])
def test_arrays_that_are_not_whole_are_made_anew_and_the_log_says_so(tmp_path, caplog, name):
    make_folder(tmp_path / "in", 30)
    first = run(tmp_path)
    path = tmp_path / "out" / name
    path.write_bytes(path.read_bytes()[:-1])
    with caplog.at_level("INFO"):
        again = run(tmp_path)
    assert "made anew" in caplog.text
    assert again[3]["hash"] == first[3]["hash"]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == again[3]
    assert are_intact(tmp_path / "out")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("times", ["kept", "new"])
def test_a_turned_bit_is_found_and_the_arrays_are_made_anew(tmp_path, caplog, part, times):
    make_folder(tmp_path / "in", 30)
    first = run(tmp_path)
    path = tmp_path / "out" / f"{part}.npy"
    whole = path.read_bytes()
    turn_a_bit(path, times)
    with caplog.at_level("INFO"):
        again = run(tmp_path)
    assert f"the arrays in {tmp_path / 'out'} are not as they were made" in caplog.text
    assert path.read_bytes() == whole
    assert again[3]["hash"] == first[3]["hash"]


def turn_a_bit(path, times="new"):
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    if times == "kept":
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_arrays_with_a_turned_bit_are_not_used_without_their_source(tmp_path):
    make_folder(tmp_path / "in", 30)
    run(tmp_path)
    (tmp_path / "in").rename(tmp_path / "elsewhere")
    turn_a_bit(tmp_path / "out" / "test.npy")
    with pytest.raises(UserError, match="does not exist"):
        run(tmp_path)


def test_arrays_are_read_once_to_check_them(tmp_path, monkeypatch):
    make_folder(tmp_path / "in", 30)
    run(tmp_path)
    assert are_intact(tmp_path / "out")
    hashes._hash.cache_clear()
    monkeypatch.setattr(hashes.np, "load", count := Mock(side_effect=np.load))
    run(tmp_path)
    checked = count.call_count
    assert are_intact(tmp_path / "out")
    assert checked == 3 + 2 * 3  # the check's, and as before those of the maps
    assert count.call_count == checked


@pytest.mark.parametrize("error", [OSError(errno.EIO, "bad block"), ValueError("no array")])
def test_arrays_that_cannot_be_read_are_not_as_made(tmp_path, monkeypatch, error):
    make_folder(tmp_path / "in", 30)
    run(tmp_path)
    monkeypatch.setattr(hashes, "hash_arrays", Mock(side_effect=error))
    assert not are_intact(tmp_path / "out")


def test_the_hash_is_what_it_was_in_earlier_versions(tmp_path):
    make_folder(tmp_path / "in", 30)
    *arrays, manifest = run(tmp_path)
    digest = hashlib.sha256()
    for part, array in zip(PARTS, arrays, strict=True):
        digest.update(f"{part} {array.shape}".encode() + array.tobytes())
    assert manifest["hash"] == f"sha256:{digest.hexdigest()}"


def test_prepared_data_may_lie_where_they_may_only_be_read(tmp_path, read_only, caplog):
    make_folder(tmp_path / "in", 30)
    first = run(tmp_path)
    read_only(tmp_path / "out")
    with caplog.at_level("WARNING"):
        assert run(tmp_path)[3] == first[3]
    assert caplog.text == ""
    with pytest.raises(UserError, match=r"cannot be written: .*out is read-only"):
        run(tmp_path, seed=1)


def test_pictures_overwritten_in_place_are_prepared_anew(tmp_path):
    make_folder(tmp_path / "in", 30)
    run(tmp_path)
    path = tmp_path / "in" / "00007.png"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    assert len(encode(99)) == path.stat().st_size
    path.write_bytes(encode(99))
    os.utime(path, ns=times)
    assert 99 in everything(run(tmp_path)[:3])


def test_two_at_once_prepare_one_after_the_other(tmp_path, small_chunks, decoded):
    make_folder(tmp_path / "in", 60)
    hashes = []

    def work():
        hashes.append(run(tmp_path)[3]["hash"])

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(decoded) == 60
    assert len(hashes) == 3
    assert len(set(hashes)) == 1


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["decode", "write", "save", "finish", "manifest"])
@pytest.mark.parametrize("after", [0, 2])
def test_a_killed_run_goes_on_with_the_same_result(
    tmp_path, small_chunks, decoded, monkeypatch, moment, after
):
    make_folder(tmp_path / "in", 200, broken=[3, 150])
    whole = run(tmp_path, out="whole")
    decoded.clear()

    owner, name = {
        "decode": (preprocess, "_count_broken"),
        "write": (preprocess.GrowingArray, "write"),
        "save": (preprocess.State, "save"),
        "finish": (preprocess.GrowingArray, "finish"),
        "manifest": (preprocess, "hash_arrays"),
    }[moment]
    real, calls = getattr(owner, name), []

    def kill(*arguments, **options):
        calls.append(1)
        if len(calls) > after or moment == "manifest":
            raise Killed
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, kill)
        with pytest.raises(Killed):
            run(tmp_path)
    assert not (tmp_path / "out" / "manifest.json").exists()
    before = len(decoded)
    resumed = run(tmp_path)
    assert all((a == b).all() for a, b in zip(whole[:3], resumed[:3], strict=True))
    same = ("hash", "counts", "skipped", "skipped_count", "fingerprint")
    assert all(resumed[3][name] == whole[3][name] for name in same)
    # At most the chunk at the time of the kill is decoded twice.
    assert len(decoded) <= 200 + 7
    if moment in ("finish", "manifest"):
        assert len(decoded) == before == 200


def test_half_finished_work_of_other_data_is_thrown_away(tmp_path, small_chunks, monkeypatch):
    make_folder(tmp_path / "in", 40)

    def kill(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(preprocess.GrowingArray, "finish", kill)
        with pytest.raises(Killed):
            run(tmp_path)
    (tmp_path / "in" / "00000.png").unlink()
    *arrays, manifest = run(tmp_path)
    assert everything(arrays) == list(range(1, 40))
    assert manifest["hash"] == run(tmp_path, out="fresh")[3]["hash"]


def test_a_full_disk_is_told_and_the_next_run_goes_on(tmp_path, small_disk, small_chunks, decoded):
    make_folder(tmp_path / "in", 60)
    whole = run(tmp_path, size=128)
    (small_disk / "full").write_bytes(bytes(2**20))
    decoded.clear()
    with pytest.raises(UserError, match=r"train\.npy cannot be written: .* is full"):
        run(tmp_path, out=small_disk, size=128)
    before = len(decoded)
    assert 7 < before < 60
    assert not (small_disk / "manifest.json").exists()
    (small_disk / "full").unlink()
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    resumed = run(tmp_path, out=small_disk, size=128)
    assert resumed[3]["hash"] == whole[3]["hash"]
    assert len(decoded) == 60 + 7  # the chunk for which there was no room


# ---- memory


def test_memory_does_not_grow_with_the_images(tmp_path, monkeypatch):
    monkeypatch.setattr(preprocess, "CHUNK_IMAGES", 64)
    image = encode(7)
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for i in range(3000):
            archive.writestr(f"{i}.png", image)
    tracemalloc.start()
    *arrays, _ = run(tmp_path, path=tmp_path / "in.zip", size=64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    total = sum(array.nbytes for array in arrays)
    assert total == 3000 * 3 * 64 * 64
    assert peak < total / 3
