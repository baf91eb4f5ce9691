"""Preparation of images: splits, groups, broken files, damage and checks."""

import json
import os
import subprocess
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from source_files import numbered, plain, write_celeba, write_folder, write_zip

from sidecars import read_sidecar
from submanifold.common.errors import UserError
from submanifold.data.arrays import load_events
from submanifold.data.fields import Counts
from submanifold.data.prepare import check, prepare
from submanifold.data.settings import ImageSettings
from submanifold.data.splits import SPLITS, check_groups, split_sizes


def numbers(array):
    return (array[:, 0, 0, 0].astype(int) * 256 + array[:, 1, 0, 0]).tolist()


def all_numbers(arrays):
    return sorted(number for array in arrays for number in numbers(array))


def make_folder(folder, count, broken=()):
    contents = {f"{i:05d}.png": b"no image" if i in broken else numbered(i) for i in range(count)}
    folder.mkdir(parents=True, exist_ok=True)
    return write_folder(folder, contents)


def settings(tmp_path, **changes):
    given = {"source": "folder", "path": str(tmp_path / "in"), "size": 4, **changes}
    return ImageSettings(**given)


def run(tmp_path, out="out", **changes):
    *splits, manifest = prepare(settings(tmp_path, **changes), tmp_path / out, tmp_path / "raw")
    return *(events.x for events in splits), manifest


def written(tmp_path):
    """When the arrays were written."""
    return (tmp_path / "out" / "train.npy").stat().st_mtime_ns


# ---- the result


def test_arrays_and_manifest(tmp_path):
    make_folder(tmp_path / "in", 50)
    *arrays, manifest = run(tmp_path, seed=7)
    assert [array.shape for array in arrays] == [(40, 3, 4, 4), (5, 3, 4, 4), (5, 3, 4, 4)]
    assert all_numbers(arrays) == list(range(50))  # each image exactly once
    for part, array in zip(SPLITS, arrays, strict=True):
        assert isinstance(array, np.memmap)
        assert array.dtype == np.uint8
        assert (np.load(tmp_path / "out" / f"{part}.npy") == array).all()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # torch warns of a read-only map
            torch.from_numpy(array)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest
    counts = {"train": 40, "valid": 5, "test": 5}
    expected = {"source": "folder", "counts": counts, "crop": "square", "size": 4, "seed": 7}
    assert {name: manifest[name] for name in expected} == expected
    left = {file.name for file in (tmp_path / "out").iterdir() if file.name[0] != "."}
    assert left == {"train.npy", "valid.npy", "test.npy", "manifest.json"}


# ---- splits


@pytest.mark.parametrize(
    ("total", "counts", "expected"),
    [
        (3, {}, (1, 1, 1)),
        (100, {"train": 50, "valid": 20}, (50, 20, 30)),
        (100, {"train": 50, "test": 10}, (50, 10, 10)),
        (202_599, {"train": 200_782}, (200_782, 908, 909)),
    ],
)
def test_sizes_of_a_random_split(total, counts, expected):
    sizes = split_sizes(total, Counts(**counts))
    assert tuple(sizes[split] for split in SPLITS) == expected


CODES = "0012" * 10


# ---- groups


def make_people(folder, people, each, broken=()):
    """Write a folder of images for each person; image i of person p stores 100 p + i."""
    numbers = [100 * person + i for person in range(people) for i in range(each)]
    contents = {n: b"no image" if n in broken else numbered(n) for n in numbers}
    write_folder(folder, {f"person {n // 100:02d}/{n:04d}.png": contents[n] for n in numbers})
    return "".join(f"{n:04d}.png  {n // 100:02d}\n" for n in numbers)


@pytest.mark.parametrize("by", ["folder", "file"])
def test_a_group_is_in_one_split(tmp_path, by):
    lines = make_people(tmp_path / "in", 30, 5, broken=[0, 3, 712, 1404])
    (tmp_path / "list.txt").write_text(lines)
    groups = "folder" if by == "folder" else str(tmp_path / "list.txt")
    *arrays, manifest = run(tmp_path, groups=groups)
    found = read_sidecar(tmp_path / "out", "groups")
    for part, array in zip(SPLITS, arrays, strict=True):
        assert found[part] == [number // 100 for number in numbers(array)]
        assert load_events(tmp_path / "out" / f"{part}.npy").groups.tolist() == found[part]
    assert all_numbers(arrays) == sorted(
        {100 * p + i for p in range(30) for i in range(5)} - {0, 3, 712, 1404}
    )
    persons = [set(found[part]) for part in SPLITS]
    assert sum(map(len, persons)) == len(set.union(*persons)) == 30
    assert manifest["groups"] == {"train": 24, "valid": 3, "test": 3}
    assert manifest["split"] == "groups"
    other = run(tmp_path, seed=1, out="other", groups=groups)
    assert set(numbers(other[2])) != set(numbers(arrays[2]))


def test_an_official_split_must_not_divide_groups(tmp_path):
    write_celeba(tmp_path / "in", codes=CODES)
    given = {"source": "celeba", "split": "official"}
    path = tmp_path / "identity.txt"
    path.write_text("".join(f"{i:06d}.jpg {code}{i % 3}\n" for i, code in enumerate(CODES)))
    manifest = run(tmp_path, groups=str(path), **given)[3]
    assert (manifest["split"], manifest["groups"]) == ("official", dict.fromkeys(SPLITS, 3))
    path.write_text("".join(f"{i:06d}.jpg {i % 3}\n" for i in range(len(CODES))))
    with pytest.raises(UserError, match=r"one part of the given split, got 3 in several"):
        run(tmp_path, groups=str(path), **given)


@pytest.mark.parametrize("change", ["nothing", "file", "seed"])
def test_changed_data_or_settings_are_prepared_again(tmp_path, change):
    make_people(tmp_path / "in", 10, 3)
    changes = {"groups": "folder"}
    first = run(tmp_path, **changes)
    before = written(tmp_path)
    match change:
        case "file":
            (tmp_path / "in" / "person 00" / "new.png").write_bytes(numbered(99))
        case "seed":
            changes["seed"] = 5
    *arrays, manifest = run(tmp_path, **changes)
    images = 30 + (change == "file")
    assert sum(map(len, arrays)) == images
    assert (written(tmp_path) == before) == (change == "nothing")
    assert (manifest["hash"] == first[3]["hash"]) == (change == "nothing")
    assert set(read_sidecar(tmp_path / "out", "groups")) == set(SPLITS)


@pytest.mark.parametrize("function", ["prepare.write_chunks", "arrays.write_json"])
def test_a_killed_run_is_repeated_with_the_same_result(tmp_path, monkeypatch, function):
    make_folder(tmp_path / "in", 100, broken=[3, 50])
    expected = run(tmp_path, out="uninterrupted")
    run(tmp_path, seed=1)

    def kill(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"submanifold.data.{function}", kill)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert run(tmp_path)[3]["hash"] == expected[3]["hash"]


# ---- memory


def test_memory_is_bounded(tmp_path):
    write_zip(tmp_path / "in.zip", {f"{i}.png": numbered(i) for i in range(1500)})
    tracemalloc.start()
    *arrays, _ = run(tmp_path, path=str(tmp_path / "in.zip"), size=64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    total = sum(array.nbytes for array in arrays)
    assert total == 1500 * 3 * 64 * 64
    assert peak < total / 3


# ---- rejected data


@pytest.mark.parametrize(
    ("images", "given", "message"),
    [
        ([numbered(0)] * 40, {}, "different training images, got 1 among 32"),
        ([numbered(i) for i in range(3)], {}, r"counts\.train: expected 100 or more different"),
        ([], {}, "expected images .* got none"),
        ([], {"source": "photos", "path": None, "size": 500}, "size: expected at most 128"),
        ([numbered(1)] * 9, {"groups": "folder"}, "groups: expected at least 3 groups, .* got 1"),
    ],
)
def test_images_that_cannot_be_used_are_rejected(tmp_path, images, given, message):
    (tmp_path / "in").mkdir()
    write_folder(tmp_path / "in", {f"{i}.png": content for i, content in enumerate(images)})
    with pytest.raises(UserError, match=message):
        run(tmp_path, **given)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_mistakes_are_found_before_the_run_without_downloads(tmp_path):
    make_folder(tmp_path / "in", 40, broken=range(4))
    for changes in ({}, {"source": "mnist", "path": None}, {"source": "celeba", "path": None}):
        check(settings(tmp_path, **changes), tmp_path / "out", tmp_path / "raw")
    with pytest.raises(UserError, match="counts: expected at most 40 images"):
        check(settings(tmp_path, counts={"test": 40}), tmp_path / "out", tmp_path / "raw")
    assert not (tmp_path / "raw").exists()
    assert not (tmp_path / "out").exists()


def test_few_and_grey_images_are_noted(tmp_path):
    contents = {f"{i}.png": plain((i, i, i)) for i in range(40)}
    write_folder(tmp_path / "in", contents)
    note = run(tmp_path)[3]["split_note"]
    assert "got 32 among 32: a model memorizes so few" in note
    assert "the images are grey" in note
    assert "grey" not in run(tmp_path, channels=1)[3]["split_note"]


def test_held_out_images_that_equal_training_images_are_noted(tmp_path):
    """As of tables; other images are copies of one another within a split."""
    contents = {f"{number}.png": numbered(number % 150) for number in range(200)}
    write_folder(tmp_path / "in", contents)
    train, valid, test, manifest = run(tmp_path)
    known, duplicates = {*numbers(train)}, manifest["duplicates"]
    for split, images in (("valid", valid), ("test", test)):
        assert duplicates[split] == sum(number in known for number in numbers(images))
        assert 0 < duplicates[split] < len(images)
        text = f"{duplicates[split]} {split} images equal a training image"
        assert text in manifest["split_note"]
    make_folder(tmp_path / "different", 200)
    *_, manifest = run(tmp_path, "other", path=str(tmp_path / "different"))
    assert manifest["duplicates"] == {"valid": 0, "test": 0}
    assert manifest["split_note"] is None


def test_an_official_split_that_is_too_small_is_rejected(tmp_path):
    write_celeba(tmp_path / "in", codes="0012" * 3)
    with pytest.raises(UserError, match=r"^counts\.test: expected at most 3, .*, got 11"):
        run(tmp_path, source="celeba", split="official", counts={"test": 11})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("00000.png 0\n00001.png\n", "expected folder, or a text file"),
        ("00000.png 0\n", r"expected a line for each image, got none for 11, such as 00001"),
    ],
)
def test_an_invalid_list_of_groups_is_rejected(tmp_path, content, message):
    make_folder(tmp_path / "in", 12)
    (tmp_path / "list.txt").write_text(content)
    with pytest.raises(UserError, match=r"^groups=.*list.txt: " + message):
        run(tmp_path, groups=str(tmp_path / "list.txt"))


@pytest.mark.parametrize(
    ("broken", "counts", "message"),
    [
        ([5], {"train": 160, "valid": 20, "test": 20}, r"readable images \(1 are broken"),
        (range(0, 55, 5), {}, "at most 10 broken images among 200, got 11 so far, such as "),
    ],
)
def test_too_many_broken_files_stop_the_run(tmp_path, broken, counts, message):
    make_folder(tmp_path / "in", 200, broken)
    with pytest.raises(UserError, match=message):
        run(tmp_path, counts=counts)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_few_broken_and_special_files_are_skipped_and_listed(tmp_path, caplog):
    make_folder(tmp_path / "in", 100, broken=[3, 50])
    write_folder(tmp_path / "in", {"a.heic": b"x", "b.heic": b"x"})
    os.mkfifo(tmp_path / "in" / "pipe.png")
    (tmp_path / "in" / "link.png").symlink_to("/dev/zero")
    *arrays, manifest = run(tmp_path)
    assert all_numbers(arrays) == [i for i in range(100) if i not in (3, 50)]
    assert manifest["counts"] == {"train": 78, "valid": 10, "test": 10}
    names = {item["name"] for item in manifest["skipped"]}
    assert names > {"*.heic", "link.png", "pipe.png"}
    assert (len(names), manifest["skipped_count"]) == (5, 6)
    assert "skipped 6 files (2 *.heic, link.png, pipe.png, " in caplog.text


# ---- missing files, full disks and other processes


@pytest.mark.parametrize("name", ["manifest.json", "valid.npy"])
def test_arrays_of_which_a_file_is_missing_are_prepared_again(tmp_path, name):
    make_folder(tmp_path / "in", 30)
    first, before = run(tmp_path), written(tmp_path)
    run(tmp_path)
    assert written(tmp_path) == before
    (tmp_path / "out" / name).unlink()
    assert run(tmp_path)[3]["hash"] == first[3]["hash"]
    assert written(tmp_path) > before


@pytest.mark.fault
def test_a_full_disk_is_an_error_and_the_command_can_be_repeated(tmp_path, small_disk):
    make_folder(tmp_path / "in", 60)
    expected = run(tmp_path, size=128)
    (small_disk / "full").write_bytes(bytes(2**20))
    with pytest.raises(OSError, match=r"No space left on device: .*train\.npy"):
        run(tmp_path, out=small_disk, size=128)
    (small_disk / "full").unlink()
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    assert run(tmp_path, out=small_disk, size=128)[3]["hash"] == expected[3]["hash"]


def test_concurrent_runs_have_the_same_result(tmp_path):
    make_folder(tmp_path / "in", 60)
    with ThreadPoolExecutor(3) as pool:
        hashes = [*pool.map(lambda _: run(tmp_path)[3]["hash"], range(3))]
    assert (len(hashes), len(set(hashes))) == (3, 1)


@pytest.mark.parametrize("splits", [("train", "test"), ("train", "valid"), SPLITS])
def test_a_group_in_two_splits_is_refused(splits):
    check_groups([("a", "train"), ("a", "train"), ("b", "test")])
    with pytest.raises(UserError, match="got 1 in several, such as a"):
        check_groups([*(("a", split) for split in splits), ("b", "test")])
