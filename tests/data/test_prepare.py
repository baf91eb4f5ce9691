"""Preparation of images: splits, groups, broken files, interruptions and checks."""

import json
import os
import signal
import subprocess
import threading
import tracemalloc
import warnings
import zipfile
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from source_files import numbered, write_celeba, write_folder

from submanifold.common.errors import UserError
from submanifold.data import prepare as module
from submanifold.data.arrays import are_intact
from submanifold.data.prepare import check, prepare, read_groups
from submanifold.data.settings import Counts, ImageSettings
from submanifold.data.sources import SPLITS
from submanifold.data.splits import groups_of, share_out
from submanifold.pipelines.data.nodes import prepare_images


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
    return prepare(settings(tmp_path, **changes), tmp_path / out, tmp_path / "raw")


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_IMAGES", 7)


@pytest.fixture
def decoded(monkeypatch):
    """The names that were read."""
    names, open_source = [], module.open_source

    def count(*arguments):
        source = open_source(*arguments)
        read = source.read
        source.read = lambda name: names.append(name) or read(name)
        return source

    monkeypatch.setattr(module, "open_source", count)
    return names


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
    left = {file.name for file in (tmp_path / "out").iterdir()}
    assert left == {"train.npy", "valid.npy", "test.npy", "manifest.json"}


@pytest.mark.parametrize(("count", "copies", "few"), [(250, 1, None), (60, 1, 48), (2, 75, 2)])
def test_few_different_training_images_cause_a_warning(tmp_path, caplog, count, copies, few):
    write_folder(tmp_path / "in", {f"{i}.png": numbered(i % count) for i in range(count * copies)})
    for _ in ("first", "second"):
        caplog.clear()
        outputs = prepare_images(settings(tmp_path), tmp_path / "out", tmp_path / "raw")
        warning = f"different training images, got {few} among the first "
        assert (warning in caplog.text) == (few is not None)
        assert (warning in (outputs["manifest"]["split_note"] or "")) == (few is not None)


# ---- splits


@pytest.mark.parametrize(
    ("total", "counts", "expected"),
    [
        (3, {}, (1, 1, 1)),
        (100, {}, (80, 10, 10)),
        (100, {"train": 5, "valid": 6, "test": 7}, (5, 6, 7)),
        (100, {"train": 50, "valid": 20}, (50, 20, 30)),
        (100, {"train": 50, "test": 10}, (50, 10, 10)),
        (202_599, {"train": 200_782}, (200_782, 908, 909)),
        (10, {"valid": 8}, (1, 8, 1)),
    ],
)
def test_sizes_of_a_random_split(total, counts, expected):
    shares = {share.split: share.count for share in share_out(total, Counts(**counts))}
    assert tuple(shares[part] for part in SPLITS) == expected


def test_given_counts_are_exact_despite_broken_files(tmp_path, small_chunks, decoded):
    make_folder(tmp_path / "in", 60, broken=[0])
    *arrays, _ = run(tmp_path, counts={"train": 20, "valid": 3, "test": 4})
    assert [len(array) for array in arrays] == [20, 3, 4]
    assert len(decoded) <= 28  # no other image is read
    counts = {"train": 40, "valid": 10, "test": 9}
    assert run(tmp_path, counts=counts)[3]["counts"] == counts


CODES = "0012" * 10


def test_counts_of_an_official_split_select_a_random_subset(tmp_path):
    write_celeba(tmp_path / "in", codes=CODES)
    given = {"source": "celeba", "split": "official"}
    *arrays, manifest = run(tmp_path, **given)
    for code, array in zip("012", arrays, strict=True):
        assert sorted(numbers(array)) == [i for i, c in enumerate(CODES) if c == code]
    assert (manifest["split"], manifest["crop"]) == ("official", "celeba")
    few, other = (
        run(tmp_path, f"few{seed}", seed=seed, counts={"train": 5}, **given) for seed in (0, 1)
    )
    assert [len(array) for array in few[:3]] == [5, 10, 10]
    assert set(numbers(few[0])) < set(numbers(arrays[0]))
    assert set(numbers(few[0])) != set(numbers(other[0]))


# ---- groups


def make_people(folder, people, each, broken=()):
    """Write a folder of images for each person; image i of person p stores 100 p + i."""
    numbers = [100 * person + i for person in range(people) for i in range(each)]
    contents = {n: b"no image" if n in broken else numbered(n) for n in numbers}
    write_folder(folder, {f"person {n // 100:02d}/{n:04d}.png": contents[n] for n in numbers})
    return "".join(f"{n:04d}.png  {n // 100:02d}\n" for n in numbers)


@pytest.mark.parametrize("by", ["folder", "file"])
def test_a_group_is_in_one_split(tmp_path, small_chunks, by):
    lines = make_people(tmp_path / "in", 30, 5, broken=[0, 3, 712, 1404])
    (tmp_path / "list.txt").write_text(lines)
    groups = "folder" if by == "folder" else str(tmp_path / "list.txt")
    *arrays, manifest = run(tmp_path, groups=groups)
    found = read_groups(tmp_path / "out")
    for part, array in zip(SPLITS, arrays, strict=True):
        assert found[part] == [number // 100 for number in numbers(array)]
        assert groups_of(found, part).tolist() == found[part]
    assert all_numbers(arrays) == sorted(
        {100 * p + i for p in range(30) for i in range(5)} - {0, 3, 712, 1404}
    )
    persons = [set(found[part]) for part in SPLITS]
    assert sum(map(len, persons)) == len(set.union(*persons)) == 30
    assert manifest["groups"] == {"train": 24, "valid": 3, "test": 3}
    assert manifest["split"] == "groups"
    other = run(tmp_path, seed=1, out="other", groups=groups)
    assert set(numbers(other[2])) != set(numbers(arrays[2]))


def test_counts_are_images_of_whole_groups(tmp_path):
    make_people(tmp_path / "in", 12, 6)
    *arrays, manifest = run(tmp_path, groups="folder", counts={"train": 20, "valid": 7, "test": 6})
    assert [len(array) for array in arrays] == [20, 7, 6]
    persons = [{number // 100 for number in numbers(array)} for array in arrays]
    assert sum(map(len, persons)) == len(set.union(*persons))
    assert manifest["groups"] == dict(zip(SPLITS, map(len, persons), strict=True))


def test_an_official_split_must_not_divide_groups(tmp_path):
    write_celeba(tmp_path / "in", codes=CODES)
    given = {"source": "celeba", "split": "official"}
    path = tmp_path / "identity.txt"
    path.write_text("".join(f"{i:06d}.jpg {code}{i % 3}\n" for i, code in enumerate(CODES)))
    manifest = run(tmp_path, groups=str(path), **given)[3]
    assert (manifest["split"], manifest["groups"]) == ("official", dict.fromkeys(SPLITS, 3))
    path.write_text("".join(f"{i:06d}.jpg {i % 3}\n" for i in range(len(CODES))))
    with pytest.raises(UserError, match=r"one part of the official split, got 3 in several"):
        run(tmp_path, groups=str(path), **given)


# ---- broken files


@pytest.mark.parametrize(("name", "shown"), [
    (b"caf\xe9.png", r"caf\udce9.png"), (b"a\nb\x1b[31m.png", r"a\nb\x1b[31m.png"),
])  # fmt: skip
def test_names_of_broken_files_are_escaped(tmp_path, name, shown):
    make_folder(tmp_path / "in", 30)
    (tmp_path / "in" / os.fsdecode(name)).write_bytes(b"no image")
    *_, manifest = run(tmp_path)
    assert manifest["skipped"] == [{"name": shown, "reason": "ValueError: not an image"}]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest


# ---- again


@pytest.mark.parametrize("change", ["nothing", "file", "size", "seed", "array", "groups"])
def test_changed_data_or_settings_are_prepared_again(tmp_path, decoded, change):
    make_people(tmp_path / "in", 10, 3)
    changes = {"groups": "folder"}
    first = run(tmp_path, **changes)
    decoded.clear()
    match change:
        case "file":
            (tmp_path / "in" / "person 00" / "new.png").write_bytes(numbered(99))
        case "array":
            (tmp_path / "out" / "valid.npy").unlink()
        case "groups":
            (tmp_path / "out" / "groups.json").unlink()
        case "size" | "seed":
            changes[change] = 5
    *arrays, manifest = run(tmp_path, **changes)
    images = 30 + (change == "file")
    assert sum(map(len, arrays)) == images
    assert len(decoded) == (0 if change == "nothing" else images)
    assert (manifest["hash"] == first[3]["hash"]) == (change in ("nothing", "array", "groups"))
    assert set(read_groups(tmp_path / "out")) == set(SPLITS)


def test_prepared_data_may_be_read_only(tmp_path, read_only, caplog):
    make_folder(tmp_path / "in", 30)
    first = run(tmp_path)
    read_only(tmp_path / "out")
    with caplog.at_level("WARNING"):
        assert run(tmp_path)[3] == first[3]
    assert caplog.text == ""
    with pytest.raises(UserError, match=r"cannot be written: .*out is read-only"):
        run(tmp_path, seed=1)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["decode", "write", "save", "finish", "manifest"])
@pytest.mark.parametrize("after", [0, 2])
def test_a_killed_run_is_resumed_with_the_same_result(
    tmp_path, small_chunks, decoded, monkeypatch, moment, after
):
    make_folder(tmp_path / "in", 100, broken=[3, 50])
    expected = run(tmp_path, out="uninterrupted")
    decoded.clear()

    owner, name = {
        "decode": (module, "_decode"),
        "write": (module.GrowingArray, "write"),
        "save": (module.State, "save"),
        "finish": (module.GrowingArray, "finish"),
        "manifest": (module, "hash_arrays"),
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
    assert all((a == b).all() for a, b in zip(expected[:3], resumed[:3], strict=True))
    same = ("hash", "counts", "skipped", "skipped_count", "fingerprint")
    assert all(resumed[3][name] == expected[3][name] for name in same)
    # At most the chunk at the time of the kill is decoded twice.
    assert len(decoded) <= 100 + 7
    if moment in ("finish", "manifest"):
        assert len(decoded) == before == 100


def test_unfinished_work_on_other_data_is_discarded(tmp_path, small_chunks, monkeypatch):
    make_folder(tmp_path / "in", 40)

    def kill(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(module.GrowingArray, "finish", kill)
        with pytest.raises(Killed):
            run(tmp_path)
    (tmp_path / "in" / "00000.png").unlink()
    *arrays, manifest = run(tmp_path)
    assert all_numbers(arrays) == list(range(1, 40))
    assert manifest["hash"] == run(tmp_path, out="fresh")[3]["hash"]


# ---- memory


def test_memory_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_IMAGES", 64)
    image = numbered(7)
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for i in range(1500):
            archive.writestr(f"{i}.png", image)
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
        ([b"no image"] * 40, {}, r"got 32 files that cannot be decoded, such as \d+\.png"),
        ([numbered(0)] * 40, {}, "expected different images, got 32 equal ones"),
        ([numbered(i) for i in range(3)], {}, r"counts\.train: expected 2 images or more"),
        ([numbered(i) for i in range(2)], {}, "counts: expected at most 2 images in three splits"),
        ([numbered(1)] * 20, {"counts": Counts(train=19)}, r"got counts\.train=19"),
        ([], {"source": "photos", "path": None, "size": 500}, "size: expected at most 128"),
        ([], {}, "expected images"),
        ([], {"path": "/nowhere"}, "path=/nowhere: expected a folder"),
        ([numbered(1)] * 9, {"groups": "folder"}, "groups: expected at least 3 groups, .* got 1"),
        ([numbered(1)] * 9, {"groups": "no.txt"}, "groups=no.txt: expected folder or the path"),
    ],
)
def test_images_that_cannot_be_used_are_rejected_before_the_run(tmp_path, images, given, message):
    (tmp_path / "in").mkdir()
    write_folder(tmp_path / "in", {f"{i}.png": content for i, content in enumerate(images)})
    with pytest.raises(UserError, match=message):
        check(settings(tmp_path, **given), tmp_path / "out", tmp_path / "raw")
    assert not (tmp_path / "out").exists()


def test_the_check_accepts_some_broken_images_and_skips_downloads(tmp_path, decoded):
    make_folder(tmp_path / "in", 40, broken=range(4))
    for changes in ({}, {"source": "mnist", "path": None}, {"source": "celeba", "path": None}):
        check(settings(tmp_path, **changes), tmp_path / "out", tmp_path / "raw")
    assert not (tmp_path / "raw").exists()
    assert not (tmp_path / "out").exists()
    run(tmp_path)
    decoded.clear()
    check(settings(tmp_path), tmp_path / "out", tmp_path / "raw")
    assert decoded == []


@pytest.mark.parametrize(
    ("codes", "counts", "message"),
    [
        ("0012" * 3, {"test": 11}, r"^counts\.test: expected at most 3, .*, got 11"),
        ("0001" * 3, {}, "^split: expected test images in the official split, got none"),
    ],
)
def test_an_official_split_that_is_too_small_is_rejected(tmp_path, codes, counts, message):
    write_celeba(tmp_path / "in", codes=codes)
    with pytest.raises(UserError, match=message):
        run(tmp_path, source="celeba", split="official", counts=counts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("00000.png 0\n00001.png\n", r"expected the name .* got '00001.png' on line 2"),
        ("00000.png 0\n", r"expected a line for each image, got none for 11, such as 00001"),
    ],
)
def test_an_invalid_list_of_groups_is_rejected(tmp_path, content, message):
    make_folder(tmp_path / "in", 12)
    (tmp_path / "list.txt").write_text(content)
    with pytest.raises(UserError, match=r"^groups=.*list.txt: " + message):
        run(tmp_path, groups=str(tmp_path / "list.txt"))


@pytest.mark.parametrize(
    ("broken", "counts", "message", "reads"),
    [
        ([5], {"train": 160, "valid": 20, "test": 20}, r"readable images \(1 are broken", 200),
        (range(0, 55, 5), {}, "at most 10 broken images among 200, got 11 ", 200),
        (range(200), {}, "at most 10 broken images among 200, got 14 so far", 14),
    ],
)
def test_too_many_broken_files_stop_the_run(
    tmp_path, small_chunks, decoded, broken, counts, message, reads
):
    make_folder(tmp_path / "in", 200, broken)
    with pytest.raises(UserError, match=message):
        run(tmp_path, counts=counts)
    assert len(decoded) <= reads
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_few_broken_and_special_files_are_skipped_and_listed(tmp_path, small_chunks, monkeypatch):
    monkeypatch.setattr(module, "MAX_LISTED", 4)
    make_folder(tmp_path / "in", 100, broken=[3, 50])
    write_folder(tmp_path / "in", {"a.heic": b"x", "b.heic": b"x"})
    os.mkfifo(tmp_path / "in" / "pipe.png")
    (tmp_path / "in" / "link.png").symlink_to("/dev/zero")
    *arrays, manifest = run(tmp_path)
    assert all_numbers(arrays) == [i for i in range(100) if i not in (3, 50)]
    assert manifest["counts"] == {"train": 78, "valid": 10, "test": 10}
    names = {item["name"] for item in manifest["skipped"]}
    assert names > {"*.heic", "link.png", "pipe.png"}
    assert (len(names), manifest["skipped_count"]) == (4, 6)


# ---- damage, full disks and other processes


def flip_a_bit(path, keep_times=False):
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    if keep_times:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("name", ["train.npy", "test.npy", "manifest.json"])
@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        partial(flip_a_bit, keep_times=True),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
    ],
    ids=["flip", "flip, same times", "truncate"],
)
def test_damaged_arrays_are_prepared_again(tmp_path, caplog, name, damage):
    make_folder(tmp_path / "in", 30)
    first = run(tmp_path)
    array = (tmp_path / "out" / "train.npy").read_bytes()
    damage(tmp_path / "out" / name)
    with caplog.at_level("INFO"):
        again = run(tmp_path)
    assert "preparing them again" in caplog.text
    assert again[3]["hash"] == first[3]["hash"]
    assert (tmp_path / "out" / "train.npy").read_bytes() == array
    assert are_intact(tmp_path / "out")


def test_without_the_source_only_intact_arrays_are_used(tmp_path):
    make_folder(tmp_path / "in", 30)
    first = run(tmp_path)
    (tmp_path / "in").rename(tmp_path / "elsewhere")
    assert run(tmp_path)[3] == first[3]
    flip_a_bit(tmp_path / "out" / "test.npy")
    with pytest.raises(UserError, match="does not exist"):
        run(tmp_path)


def test_a_run_on_a_full_disk_can_be_resumed(tmp_path, small_disk, small_chunks, decoded):
    make_folder(tmp_path / "in", 60)
    expected = run(tmp_path, size=128)
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
    assert resumed[3]["hash"] == expected[3]["hash"]
    assert len(decoded) == 60 + 7  # the chunk that did not fit


def test_concurrent_runs_prepare_once(tmp_path, small_chunks, decoded):
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
    assert (len(hashes), len(set(hashes))) == (3, 1)


# ---- processes


@pytest.mark.parametrize("processes", [1, 3])
def test_the_result_does_not_depend_on_the_number_of_processes(tmp_path, monkeypatch, processes):
    make_folder(tmp_path / "in", 60, broken=[7])
    alone = run(tmp_path, out="alone")[3]
    monkeypatch.setattr(module, "cores", lambda: processes)
    monkeypatch.setattr(module, "PARALLEL_IMAGES", 1)
    monkeypatch.setattr(module, "TASK_IMAGES", 7)
    parallel = run(tmp_path)[3]
    same = ("hash", "counts", "skipped")
    assert [parallel[name] for name in same] == [alone[name] for name in same]


def kill_process(content):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_reported(tmp_path, monkeypatch):
    make_folder(tmp_path / "in", 60)
    source = module.open_source(settings(tmp_path), tmp_path)
    source.decode = kill_process
    monkeypatch.setattr(module, "open_source", lambda *_: source)
    monkeypatch.setattr(module, "PARALLEL_IMAGES", 1)
    with pytest.raises(UserError, match=r"One of the \d+ processes that decode images was killed"):
        run(tmp_path)


def test_the_check_warns_of_grey_images_in_three_channels(tmp_path, caplog):
    for number in range(30):
        image = np.random.default_rng(number).integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    for channels in 3, 1:
        form = {"source": "folder", "path": str(tmp_path), "size": 8, "channels": channels}
        caplog.clear()
        check(ImageSettings(**form), tmp_path / "none", tmp_path)
        assert ("data.channels=1" in caplog.text) == (channels == 3)
