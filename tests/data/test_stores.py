"""Images in folders, zips and LMDBs."""

import hashlib
import os
import zipfile

import numpy as np
import pytest
from source_files import plain, write_folder, write_lmdb, write_zip

from submanifold.common.errors import UserError
from submanifold.data.images import decode
from submanifold.data.settings import ImageSettings
from submanifold.data.sources.stores import open_store


def test_a_folder_contains_images_of_all_suffixes(tmp_path):
    images = ["a.JPG", "b/c.jpeg", "b/d.png", "e.bmp", "f.webp", "g.gif", "h.TIF", "i.tiff"]
    others = ["notes.txt", ".hidden.png", ".git/x.png", "__MACOSX/a.jpg", "b/Thumbs.db"]
    write_folder(tmp_path, {name: name.encode() for name in images + others})
    store = open_store(tmp_path)
    assert store.names == sorted(images)
    assert store.other_files == {".txt": 1, ".db": 1}
    assert store.image("b/c.jpeg") == b"b/c.jpeg"


def test_figures_of_the_runs_of_a_folder_are_no_pictures_of_it(tmp_path):
    pictures = ["a.png", "data/01_raw/b.png", "data/runs.png", "runs/c.png"]
    outputs = ["data/08_reporting/x/strips.png", "data/mlartifacts/1/strips.png"]
    write_folder(tmp_path, {name: name.encode() for name in pictures + outputs})
    assert open_store(tmp_path).names == sorted(pictures)
    assert open_store(tmp_path / "data" / "08_reporting").names == ["x/strips.png"]


def names(folder):
    store = open_store(folder)
    return store.names, sorted(store.skipped)


def test_broken_links_and_special_files_are_skipped(tmp_path):
    folder = write_folder(tmp_path / "in", {"deep/a.png": b"x"})
    (folder / "link.png").symlink_to(tmp_path / "nothing.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").symlink_to(folder / "deep")
    assert names(folder) == (["deep/a.png"], ["folder.png", "link.png", "pipe.png"])


@pytest.mark.parametrize(("target", "expected"), [("in", "deep/self"), ("other", "deep/self/back")])
def test_a_cycle_of_links_ends(tmp_path, target, expected):
    folder = write_folder(tmp_path / "in", {"deep/a.png": b"x"})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "back").symlink_to(folder)
    (folder / "deep" / "self").symlink_to(tmp_path / target)
    assert names(folder) == (["deep/a.png"], [expected])


def test_an_lmdb_of_lsun_is_read_and_nothing_is_written(tmp_path, monkeypatch):
    """Keys are hashes, values are webp."""
    images = {
        hashlib.sha1(bytes([value])).hexdigest(): plain((value, 0, 0), (20, 12), "WEBP")
        for value in range(40)
    }
    path = write_lmdb(tmp_path / "db", {name.encode(): image for name, image in images.items()})
    monkeypatch.chdir(tmp_path)
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.iterdir()}
    settings = ImageSettings(source="lsun_bedroom", path=str(path), size=8)
    for _ in range(2):
        source = settings.open(tmp_path)
        assert source.names == sorted(images)
        images_read = (decode(source.image(name), 8, 3) for name in source.names)
        reds = sorted(int(image[0].mean().round()) for image in images_read)
        assert np.abs(np.array(reds) - np.arange(40)).max() <= 3
        source.close()
    assert before == {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.iterdir()}
    assert [file.name for file in tmp_path.iterdir()] == ["db"]


def test_a_huge_file_in_a_small_zip_is_skipped(tmp_path):
    """It is not decompressed: its size is in the directory of the zip."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("a.png", b"x")
        with archive.open("b.png", "w", force_zip64=True) as file:
            for _ in range(257):
                file.write(bytes(2**20))
    assert path.stat().st_size < 2**21
    assert names(path) == (["a.png"], ["b.png"])


def future_zip(path):
    """A zip of a later version, for which zipfile raises NotImplementedError."""
    write_zip(path, {"a.png": b""})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 99
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("nowhere", lambda path: None, "no such file or folder"),
        ("a.zip", future_zip, "cannot be read"),
        ("db", lambda path: write_folder(path, {"data.mdb": b"no"}), "cannot be read"),
        ("in", lambda path: write_folder(path / "db", {"data.mdb": b"no"}), "contains an LMDB's"),
    ],
)
def test_a_path_without_readable_images_is_rejected(tmp_path, name, write, message):
    path = tmp_path / name
    write(path)
    with pytest.raises(UserError, match=f"^path=.*{message}"):
        ImageSettings(source="folder", path=str(path)).open(tmp_path)
