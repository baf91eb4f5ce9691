"""Fingerprints: they change with any byte of the content, and are the same for a copy."""

import os
import shutil

import pytest
from source_files import write_folder

from submanifold.common.errors import UserError
from submanifold.data.settings import ImageSettings
from submanifold.data.sources import fingerprint, open_source, stores


@pytest.fixture
def mark(tmp_path):
    """Fingerprint of a path, with records in tmp_path/raw."""

    def mark(path, raw="raw", **settings):
        chosen = {"source": "folder", "path": str(path), **settings}
        return fingerprint(ImageSettings(**chosen), tmp_path / raw)

    return mark


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "in", {f"deep/{i}.png": bytes([i]) * 100 for i in range(10)})


def overwrite(path, at=50):
    """Change a byte and keep the size and the modification time."""
    before = path.stat()
    with open(path, "r+b") as file:
        file.seek(at)
        old = file.read(1)
        file.seek(at)
        file.write(bytes([old[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        overwrite,
        lambda path: path.write_bytes(b"longer" * 100),
        lambda path: path.rename(path.with_name("a.png")),
        lambda path: path.with_name("new.png").write_bytes(b"new"),
        lambda path: path.unlink(),
    ],
    ids=["overwrite", "replace", "rename", "add", "remove"],
)
def test_a_changed_file_changes_the_fingerprint(mark, folder, change):
    first = mark(folder)
    (folder / "notes.txt").touch()
    assert mark(folder) == first
    change(folder / "deep" / "7.png")
    assert mark(folder) != first


def test_a_copy_has_the_same_fingerprint(mark, folder, tmp_path):
    for copy in ("one", "two"):
        shutil.copytree(folder, tmp_path / copy, copy_function=shutil.copyfile)
        os.utime(tmp_path / copy / "deep" / "3.png", (1, 1))
    marks = {mark(folder), mark(tmp_path / "one"), mark(tmp_path / "two", raw="elsewhere")}
    assert len(marks) == 1
    overwrite(tmp_path / "two" / "deep" / "0.png")
    assert mark(tmp_path / "two") not in marks


def test_the_list_of_groups_is_part_of_the_fingerprint(mark, folder, tmp_path):
    lists = tmp_path / "one.txt", tmp_path / "two.txt"
    for each in lists:
        each.write_text("a.png 1\n")
    one, two = (mark(folder, groups=str(each)) for each in lists)
    lists[1].write_text("a.png 2\n")
    other = mark(folder, groups=str(lists[1]))
    assert one == two
    assert len({one, other, mark(folder), mark(folder, groups="folder")}) == 4


def test_a_folder_that_cannot_be_listed_is_an_error(mark, folder, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).rstrip("/").endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"^path=.*in: .* cannot be read .*Permission denied.*deep"):
        mark(folder)


def test_broken_links_and_special_files_are_skipped(mark, folder, tmp_path):
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


@pytest.mark.parametrize(
    ("target", "expected"),
    [("in", "deep/self"), ("in/deep", "deep/self"), ("other", "deep/self/back")],
)
def test_a_cycle_of_links_ends(folder, tmp_path, target, expected):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "back").symlink_to(folder)
    (folder / "deep" / "self").symlink_to(tmp_path / target)
    found, skipped = names(folder, tmp_path)
    assert found == [f"deep/{i}.png" for i in range(10)]
    assert skipped == {expected}


@pytest.fixture
def reads(monkeypatch):
    """The files whose content was read."""
    read, digest_file = [], stores._digest_file

    def note(path, *arguments):
        read.append(path.name)
        return digest_file(path, *arguments)

    monkeypatch.setattr(stores, "_digest_file", note)
    return read


def test_unchanged_files_are_read_again_only_if_just_written(mark, folder, reads, monkeypatch):
    """Two writes within one tick of the filesystem's clock leave the same times."""
    first = mark(folder)
    assert mark(folder) == first
    assert len(reads) == 20
    monkeypatch.setattr(stores, "SETTLED", -(10**9))  # time passes
    assert mark(folder) == mark(folder) == mark(folder) == first
    assert len(reads) == 30
    os.utime(folder / "deep" / "0.png", (1, 1))
    assert mark(folder) == mark(folder) == first
    assert len(reads) == 40


def test_a_missing_source_keeps_its_last_fingerprint(mark, folder, tmp_path, caplog):
    first = mark(folder)
    folder.rename(tmp_path / "elsewhere")
    with caplog.at_level("INFO"):
        assert mark(folder) == first
    assert "using its last fingerprint" in caplog.text
    assert mark(folder, raw="other records") != first
    shutil.copytree(tmp_path / "elsewhere", folder)
    overwrite(folder / "deep" / "0.png")
    assert mark(folder) != first


def test_records_need_not_be_writable(mark, folder, tmp_path):
    (tmp_path / "raw").write_text("a file")
    assert mark(folder) == mark(folder, raw="other")


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


def test_a_write_to_a_very_large_store_changes_the_fingerprint(mark, folder, sampled):
    marks = [mark(folder)]
    for _ in range(2):
        overwrite(folder / "deep" / "2.png")  # which no sample sees
        marks += [mark(folder)]
        assert mark(folder) == marks[-1]
    assert len(set(marks)) == 3
