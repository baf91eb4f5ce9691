"""A source's identity changes with any byte of it, and is the same for a copy."""

import dataclasses
import json
import os
import shutil
import time
import zipfile

import lmdb
import pytest

from submanifold.common.errors import UserError
from submanifold.data.settings import ImageSettings
from submanifold.data.sources import fingerprint, fingerprints, open_source, stores
from submanifold.data.sources import scan as scanning


@pytest.fixture
def mark(tmp_path):
    """Fingerprint of a path, with a memory of its own in tmp_path/raw."""

    def mark(path, raw="raw", **settings):
        chosen = {"source": "folder", "path": str(path), **settings}
        return fingerprint(ImageSettings(**chosen), tmp_path / raw)

    return mark


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for i in range(10):
        (tmp_path / "in" / "deep" / f"{i}.png").write_bytes(bytes([i]) * 100)
    return tmp_path / "in"


def overwrite(path, at=50):
    """Another byte, in place: the size and the time of the file stay what they were."""
    before = path.stat()
    with open(path, "r+b") as file:
        file.seek(at)
        old = file.read(1)
        file.seek(at)
        file.write(bytes([old[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def write_lmdb(path, value=b"one"):
    with lmdb.open(str(path)) as env, env.begin(write=True) as writer:
        writer.put(b"a", value)


# ---- what changes it, and what does not


def test_pictures_overwritten_in_place_are_other_data(mark, folder):
    first = mark(folder)
    overwrite(folder / "deep" / "7.png")
    assert mark(folder) != first


def test_another_folder_with_the_same_names_and_sizes_is_other_data(mark, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "other")
    assert mark(tmp_path / "other") == mark(folder)
    overwrite(tmp_path / "other" / "deep" / "0.png")
    assert mark(tmp_path / "other") != mark(folder)


def test_a_file_with_another_name_is_other_data(mark, folder):
    first = mark(folder)
    (folder / "deep" / "0.png").rename(folder / "deep" / "a.png")
    assert mark(folder) != first


def test_a_copy_with_other_times_is_the_same_data(mark, folder, tmp_path):
    for copy in ("one", "two"):
        shutil.copytree(folder, tmp_path / copy, copy_function=shutil.copyfile)
        os.utime(tmp_path / copy / "deep" / "3.png", (1, 1))
    marks = {mark(folder), mark(tmp_path / "one"), mark(tmp_path / "two", raw="elsewhere")}
    assert len(marks) == 1


def test_another_lmdb_of_the_same_size_is_other_data(mark, tmp_path):
    write_lmdb(tmp_path / "a", b"one")
    write_lmdb(tmp_path / "b", b"two")
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    sizes = {(tmp_path / name / "data.mdb").stat().st_size for name in ("a", "b", "copy")}
    assert len(sizes) == 1
    assert mark(tmp_path / "a") == mark(tmp_path / "copy") != mark(tmp_path / "b")
    first = mark(tmp_path / "a")
    assert first.startswith("lmdb:")
    os.utime(tmp_path / "a" / "data.mdb", (1, 1))
    assert mark(tmp_path / "a") == first
    write_lmdb(tmp_path / "a", b"two")
    assert mark(tmp_path / "a") != first


def test_a_zip_overwritten_in_place_is_other_data(mark, tmp_path):
    def pack(content):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("a.png", content)
        os.utime(tmp_path / "a.zip", (1, 1))
        return mark(tmp_path / "a.zip")

    assert pack(b"12") != pack(b"13")


# ---- what cannot be read


def test_sources_that_are_not_there_differ(mark, tmp_path):
    assert mark(tmp_path / "a") == mark(tmp_path / "a") != mark(tmp_path / "b")
    assert str(tmp_path / "a") in mark(tmp_path / "a")


def test_sources_that_cannot_be_read_have_no_fingerprint(mark, tmp_path):
    (tmp_path / "bad.zip").write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"^path=.*bad\.zip is not a readable zip"):
        mark(tmp_path / "bad.zip")
    (tmp_path / "lmdb").mkdir()
    (tmp_path / "lmdb" / "data.mdb").write_bytes(b"no database")
    with pytest.raises(UserError, match=r"^path=.* is not a readable LMDB"):
        mark(tmp_path / "lmdb")


def test_a_folder_that_cannot_be_listed_has_no_fingerprint(mark, folder, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).rstrip("/").endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"^path=.*in cannot be read .*Permission denied.*deep"):
        mark(folder)


def test_a_dangling_link_among_good_files_is_skipped(mark, folder, tmp_path):
    first = mark(folder)
    (folder / "link.png").symlink_to(tmp_path / "nothing.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").symlink_to(folder / "deep")
    assert mark(folder) == first
    source = open_source(ImageSettings(source="folder", path=str(folder)), tmp_path)
    assert source.names == [f"deep/{i}.png" for i in range(10)]
    assert [item["name"] for item in source.skipped] == ["folder.png", "link.png", "pipe.png"]
    assert source.skipped[1]["reason"] == "No such file or directory"
    (tmp_path / "nothing.png").write_bytes(b"something")
    assert mark(folder) != first


def test_two_folders_with_a_dangling_link_each_are_not_taken_for_one_another(
    mark, folder, tmp_path
):
    shutil.copytree(folder, tmp_path / "other")
    overwrite(tmp_path / "other" / "deep" / "0.png")
    for path in (folder, tmp_path / "other"):
        (path / "link.png").symlink_to(tmp_path / "nothing.png")
    assert mark(folder) != mark(tmp_path / "other")


def names(folder, tmp_path):
    source = open_source(ImageSettings(source="folder", path=str(folder)), tmp_path)
    return source.names, {item["name"] for item in source.skipped}


def test_a_linked_folder_is_read_once(mark, folder, tmp_path):
    inside = [f"deep/{i}.png" for i in range(10)]
    first = mark(folder)
    shutil.copytree(folder / "deep", tmp_path / "elsewhere" / "pictures")
    for link in ("b", "a"):  # two links to one folder: the first by name is followed
        (folder / link).symlink_to(tmp_path / "elsewhere")
    assert names(folder, tmp_path) == (sorted(inside + [f"a/pictures/{i}.png" for i in range(10)]),
                                       {"b"})  # fmt: skip
    assert mark(folder) != first


@pytest.mark.parametrize("target", ["in", "in/deep", ".", "in/deep/self"])
def test_a_cycle_of_links_is_not_entered(folder, tmp_path, target):
    link = folder / "deep" / "self"
    link.symlink_to(tmp_path / target)
    found, skipped = names(folder, tmp_path)
    assert found == [f"deep/{i}.png" for i in range(10)]
    assert skipped == (set() if target.endswith("self") else {"deep/self"})


def test_a_cycle_through_a_linked_folder_is_not_entered(folder, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "1.png").write_bytes(b"one")
    (tmp_path / "other" / "back").symlink_to(folder)
    (folder / "on").symlink_to(tmp_path / "other")
    found, skipped = names(folder, tmp_path)
    assert "on/1.png" in found
    assert len(found) == 11
    assert skipped == {"on/back"}


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_files_of_other_formats_are_counted(folder, tmp_path, kind):
    for name in ("a.HEIC", "deep/b.heic", "c.svg", "README", ".hidden.svg"):
        (folder / name).write_bytes(b"x")
    path = folder
    if kind == "zip":
        path = tmp_path / "in.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in folder.rglob("*"):
                archive.write(file, file.relative_to(folder))
    source = open_source(ImageSettings(source="folder", path=str(path)), tmp_path)
    assert source.other_files == {".heic": 2, ".svg": 1, "no suffix": 1}
    assert len(source.names) == 10
    source.close()


# ---- what is remembered


@pytest.fixture
def reads(monkeypatch):
    """The files whose content was read."""
    read, digest_file = [], stores._digest_file

    def note(path, *arguments):
        read.append(path.name)
        return digest_file(path, *arguments)

    monkeypatch.setattr(stores, "_digest_file", note)
    return read


def test_files_are_read_again_only_when_one_has_changed(mark, folder, reads, monkeypatch):
    monkeypatch.setattr(fingerprints, "SETTLED", -(10**9))
    first = mark(folder)
    assert len(reads) == 10
    assert mark(folder) == first
    assert len(reads) == 10
    os.utime(folder / "deep" / "0.png", (1, 1))
    assert mark(folder) == mark(folder) == first
    assert len(reads) == 20


def test_files_written_just_now_are_not_yet_believed(mark, folder, reads):
    """Two writes within one tick of the filesystem's clock leave the same times."""
    assert mark(folder) == mark(folder)
    assert len(reads) == 20


def test_files_are_believed_once_their_times_are_old(mark, folder, reads, monkeypatch):
    mark(folder)
    monkeypatch.setattr(fingerprints, "SETTLED", -(10**9))  # time goes by
    assert mark(folder) == mark(folder) == mark(folder)
    assert len(reads) == 20


def test_a_source_that_was_moved_away_keeps_its_last_fingerprint(mark, folder, tmp_path, caplog):
    first = mark(folder)
    folder.rename(tmp_path / "elsewhere")
    with caplog.at_level("INFO"):
        assert mark(folder) == first
    assert "is not there now" in caplog.text
    assert mark(folder, raw="another memory") != first
    shutil.copytree(tmp_path / "elsewhere", folder)
    overwrite(folder / "deep" / "0.png")
    assert mark(folder) != first


def test_the_split_of_a_celeba_that_was_moved_away_is_remembered(mark, tmp_path):
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in" / "img_align_celeba.zip", "w") as archive:
        archive.writestr("a.jpg", b"1")
    (tmp_path / "in" / "list_eval_partition.txt").write_text("a.jpg 0\n")

    def both():
        return [mark(tmp_path / "in", source="celeba", split=s) for s in ("random", "official")]

    before = both()
    (tmp_path / "in").rename(tmp_path / "away")
    assert both() == before
    assert before[0] != before[1]


def test_a_memory_that_cannot_be_written_only_costs_time(mark, folder, tmp_path):
    (tmp_path / "raw").write_text("a file")
    assert mark(folder) == mark(folder, raw="other")


def test_a_record_of_an_earlier_version_is_taken_over(mark, folder, tmp_path, sampled):
    first = mark(folder)
    (record,) = (tmp_path / "raw" / ".fingerprints").iterdir()
    known = json.loads(record.read_text())
    known["content"], known["seen"] = f"{known['content']}+changed", known.pop("files")
    record.write_text(json.dumps(known))
    assert mark(folder) == f"{first}+changed" == mark(folder)


# ---- what takes long to look at


def test_a_scan_that_took_seconds_is_used_again_for_as_long(folder, monkeypatch):
    now, second = time.time_ns(), 10**9
    old = dataclasses.replace(scanning.scan(folder), began=now - 9 * second)
    for ended, reused in ((now - second, True), (now - 5 * second, False), (now, True)):
        monkeypatch.setattr(scanning, "_last_scan", {folder: (old, ended)})
        assert (scanning.scan(folder) is old) == reused
        assert scanning.scan(folder.parent) is not old
    quick = dataclasses.replace(old, began=now - second // 10)
    monkeypatch.setattr(scanning, "_last_scan", {folder: (quick, now)})
    assert scanning.scan(folder) is not quick


@pytest.mark.parametrize("many", [1, 20_000])
def test_a_scan_is_sorted_and_has_a_stamp_for_each_file(folder, monkeypatch, many):
    monkeypatch.setattr(scanning, "FILES_ALONE", many)
    monkeypatch.setattr(scanning, "FOLDERS_PER_TASK", 1)
    (folder / "deep.png").write_bytes(b"1")
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "c.JPG").write_bytes(b"12")
    files = scanning.scan(folder)
    assert files.names == sorted(files.names)
    assert len(files.names) == 12
    found = [scanning.stamp((folder / name).stat()) for name in files.names]
    assert files.stamps.tolist() == found


# ---- what is very large


@pytest.fixture
def sampled(monkeypatch):
    monkeypatch.setattr(stores, "HASHED_FILES", 5)
    monkeypatch.setattr(stores, "BLOCKS", 3)
    monkeypatch.setattr(stores, "BLOCK_BYTES", 4)


def test_a_very_large_store_is_sampled(mark, folder, tmp_path, sampled, reads):
    first = mark(folder)
    assert first.startswith("folder:sampled:")
    assert reads == ["0.png", "4.png", "9.png"]
    shutil.copytree(folder, tmp_path / "copy")
    assert mark(tmp_path / "copy") == first
    overwrite(tmp_path / "copy" / "deep" / "4.png", at=99)
    assert mark(tmp_path / "copy") != first
    (folder / "deep" / "5.png").write_bytes(b"longer" * 100)
    assert mark(folder) != first


def test_a_very_large_store_that_was_written_to_is_other_data(mark, folder, sampled):
    marks = [mark(folder)]
    for _ in range(2):
        overwrite(folder / "deep" / "2.png")  # which no sample sees
        marks += [mark(folder)]
        assert mark(folder) == marks[-1]
    assert len(set(marks)) == 3


def test_a_very_large_store_may_be_of_empty_files(mark, folder, sampled):
    for file in folder.glob("deep/*"):
        file.write_bytes(b"")
    assert mark(folder).startswith("folder:sampled:")


def test_samples_lie_in_the_files_they_are_said_to(tmp_path, monkeypatch, sampled):
    content = b"".join(bytes([i]) * (i % 3) for i in range(50))
    for i in range(50):
        (tmp_path / f"{i:02d}.png").write_bytes(bytes([i]) * (i % 3))
    read, digest_file = [], stores._digest_file

    def note(path, start, size):
        read.append(path.read_bytes()[start : start + size][:1])
        return digest_file(path, start, size)

    monkeypatch.setattr(stores, "_digest_file", note)
    stores._digest_files(tmp_path, stores.files_of(tmp_path))
    assert read == [
        content[start : start + 1] for start in (0, (len(content) - 4) // 2, len(content) - 4)
    ]
