"""Images in folders, zips and LMDBs."""

import contextlib
import hashlib
import os
import tracemalloc
import zipfile

import numpy as np
import pytest
from source_files import plain, write_folder, write_lmdb, write_zip

from submanifold.common.errors import UserError
from submanifold.data.settings import ImageSettings
from submanifold.data.sources import fingerprint, open_source
from submanifold.data.sources.stores import open_store


def test_a_folder_contains_images_of_all_suffixes(tmp_path):
    images = ["a.JPG", "b/c.jpeg", "b/d.png", "e.bmp", "f.webp", "g.gif", "h.TIF", "i.tiff"]
    others = ["notes.txt", ".hidden.png", ".git/x.png", "__MACOSX/a.jpg", "b/Thumbs.db"]
    write_folder(tmp_path, {name: name.encode() for name in images + others})
    store = open_store(tmp_path)
    assert store.names() == sorted(images)
    assert store.read("b/c.jpeg") == b"b/c.jpeg"


def test_members_of_a_zip_that_point_outside_are_never_read(tmp_path):
    unsafe = ["../up.png", "in/../../up.png", "/root.png", "C:/drive.png", "C:drive.png",
              "..\\back.png"]  # fmt: skip
    names = ["in/a.png", "__MACOSX/in/a.png", "in/.b.png", "in/read.me", *unsafe]
    store = open_store(write_zip(tmp_path / "images.zip", {name: name for name in names}))
    assert store.names() == ["in/a.png"]
    assert store.read("in/a.png") == b"in/a.png"
    assert store.skipped == [{"name": n, "reason": "unsafe path"} for n in sorted(unsafe)]


def test_a_member_of_a_zip_takes_no_more_memory_than_its_declared_size(tmp_path):
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


def test_files_larger_than_256_mib_are_not_read(tmp_path):
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(2**28 + 1)
    zipped = write_zip(tmp_path / "a.zip", {"a.png": bytes(2**28 + 1)})
    for path in (tmp_path, zipped):
        with pytest.raises(ValueError, match="268435457 bytes exceed the limit of 268435456"):
            open_store(path).read("a.png")


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("source", ["folder", "celeba", "lsun_bedroom"])
def test_a_path_that_is_neither_a_file_nor_a_folder_is_rejected(tmp_path, kind, source):
    path = tmp_path / "special.zip"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    for function in (open_source, fingerprint):
        with pytest.raises(UserError, match=r"^path=.*special\.zip: .* pipe, socket or device"):
            function(ImageSettings(source=source, path=str(path)), tmp_path)


def test_an_lmdb_of_lsun_is_read_and_stays_unchanged(tmp_path):
    """Keys are hashes, values are webp."""
    images = {hashlib.sha1(bytes([value])).hexdigest(): plain((value, 0, 0), (20, 12), "WEBP")
              for value in range(40)}  # fmt: skip
    path = write_lmdb(tmp_path / "db", {name.encode(): image for name, image in images.items()})
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.iterdir()}
    settings = ImageSettings(source="lsun_bedroom", path=str(path), size=8)
    for _ in range(2):
        source = open_source(settings, tmp_path)
        assert source.names == sorted(images)
        reds = sorted(int(source.image(name)[0].mean().round()) for name in source.names)
        assert np.abs(np.array(reds) - np.arange(40)).max() <= 3
        source.close()
    assert before == {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.iterdir()}


def future_zip(path):
    """A zip of a later version, for which zipfile raises NotImplementedError."""
    write_zip(path, {"a.png": b""})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 99
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("nowhere", lambda path: None, "does not exist"),
        ("a.zip", lambda path: path.write_bytes(b"PK no"), "not a readable zip"),
        ("a.zip", future_zip, "not a readable zip"),
        ("db", lambda path: write_folder(path, {"data.mdb": b"no"}), "not a readable LMDB"),
        ("in", lambda path: write_folder(path, {"read.me": b""}), "expected images"),
        ("a.zip", lambda path: write_zip(path, {"db/data.mdb": bytes(99)}), "the unpacked folder"),
        ("in", lambda path: write_folder(path / "db", {"data.mdb": b"no"}), "contains an LMDB's"),
    ],
)
def test_a_path_without_readable_images_is_rejected(tmp_path, name, write, message):
    path = tmp_path / name
    write(path)
    with pytest.raises(UserError, match=f"^path=.*{message}"):
        open_source(ImageSettings(source="folder", path=str(path)), tmp_path)
