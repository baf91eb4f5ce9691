"""CelebA: its files, its official partition and its download."""

import hashlib
import threading
import zipfile
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torchvision
from source_files import plain, write_celeba

from submanifold.common.errors import UserError
from submanifold.data.prepare import prepare
from submanifold.data.settings import ImageSettings
from submanifold.data.sources import fingerprint, open_source

PARTITION = "list_eval_partition.txt"
PAGE = b"<html>sign in first</html>"


def open_celeba(path=None, raw=None, **settings):
    settings = {"source": "celeba", "path": str(path) if path else None, **settings}
    return open_source(ImageSettings(**settings), raw or path)


def test_celeba_is_found_as_zip_or_folder_at_a_path_or_in_the_raw_folder(tmp_path):
    archive = write_celeba(tmp_path / "raw" / "celeba") / "img_align_celeba.zip"
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(tmp_path / "out")
    for path in (archive, archive.parent, tmp_path / "out", tmp_path / "out/img_align_celeba"):
        assert [n[-10:] for n in open_celeba(path).names] == [f"{i:06d}.jpg" for i in range(10)]
    assert len(open_celeba(raw=tmp_path / "raw").names) == 10


@pytest.mark.parametrize("place", ["next to it", "inside", "Eval"])
def test_the_official_partition_is_found(tmp_path, place):
    codes = "0001200010"
    file = write_celeba(tmp_path / "Img", codes=codes) / PARTITION
    if place == "inside":
        with zipfile.ZipFile(tmp_path / "Img" / "img_align_celeba.zip", "a") as archive:
            archive.write(file, file.name)
        file.unlink()
    elif place == "Eval":
        (tmp_path / "Eval").mkdir()
        file.rename(tmp_path / "Eval" / file.name)
    source = open_celeba(tmp_path / "Img" / "img_align_celeba.zip", split="official")
    code_of = {"train": "0", "valid": "1", "test": "2"}
    assert "".join(code_of[source.splits[name]] for name in source.names) == codes
    assert source.split_rule == "official"


def test_images_that_are_not_in_the_partition_are_skipped(tmp_path):
    write_celeba(tmp_path, count=4)
    (tmp_path / PARTITION).write_text("000000.jpg 0\n000001.jpg 1\n\n000002.jpg 2\n")
    source = open_celeba(tmp_path, split="official")
    assert len(source.names) == 3
    reason = "not in the official partition"
    assert source.skipped == [{"name": "img_align_celeba/000003.jpg", "reason": reason}]


def test_without_a_partition_the_split_is_random(tmp_path, caplog):
    write_celeba(tmp_path)
    source = open_celeba(tmp_path, split="official")
    assert (source.split_rule, source.splits) == ("random", None)
    assert f"expected {PARTITION}" in source.note
    assert source.note in caplog.text


def test_an_invalid_partition_is_rejected(tmp_path):
    write_celeba(tmp_path, codes="01x")
    with pytest.raises(
        UserError, match=rf"^{PARTITION}: expected .* got 000002.jpg x.*split=random"
    ):
        open_celeba(tmp_path, split="official")


# ---- download


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = write_celeba(tmp_path_factory.mktemp("celeba"), content=plain(kind="JPEG"))
    return (folder / "img_align_celeba.zip").read_bytes()


@pytest.fixture
def server(archive):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.requests.append(self.path)
            if self.path == "/missing.zip":
                self.send_error(404)
                return
            content = PAGE if self.path == "/page.zip" else archive
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            half = self.path == "/half.zip"
            self.wfile.write(content[: len(content) // 2] if half else content)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests = []
        server.md5 = f"md5:{hashlib.md5(archive).hexdigest()}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def settings(server, name="complete.zip", checksum=None, **others):
    url = f"http://127.0.0.1:{server.server_port}/{name}"
    return ImageSettings(source="celeba", url=url, hash=checksum or server.md5, size=8, **others)


def names_in(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def test_a_complete_download_is_not_repeated(server, tmp_path, archive):
    for out in ("first", "second"):
        *arrays, manifest = prepare(settings(server), tmp_path / out, tmp_path / "raw")
        assert [len(array) for array in arrays] == [8, 1, 1]
    assert server.requests == ["/complete.zip"]
    assert names_in(tmp_path / "raw") == ["celeba/downloaded.json", "celeba/img_align_celeba.zip"]
    assert (tmp_path / "raw/celeba/img_align_celeba.zip").read_bytes() == archive
    assert manifest["fingerprint"].startswith("download:")


def test_the_fingerprint_is_the_same_before_and_after_the_download(server, tmp_path, archive):
    chosen = settings(server, split="official")
    random = settings(server, split="random")
    before = fingerprint(chosen, tmp_path)
    assert server.requests == []
    open_source(chosen, tmp_path).close()
    assert fingerprint(chosen, tmp_path) == before == f"download:{server.md5}"
    (tmp_path / "celeba" / PARTITION).write_text("000000.jpg 0\n")
    assert fingerprint(chosen, tmp_path) != before == fingerprint(random, tmp_path)
    path = tmp_path / "celeba" / "img_align_celeba.zip"
    path.write_bytes(archive.replace(b"000009.jpg", b"00000X.jpg"))  # of the same size
    assert path.stat().st_size == len(archive)
    assert fingerprint(chosen, tmp_path).startswith("zip:")


@pytest.mark.parametrize(
    ("name", "checksum", "reason"),
    [
        ("missing.zip", None, "404"),
        ("half.zip", None, ""),
        ("complete.zip", "md5:" + "0" * 32, "hash"),
        ("page.zip", f"md5:{hashlib.md5(PAGE).hexdigest()}", "not a zip"),
    ],
)
def test_a_failed_download_leaves_no_file_and_can_be_repeated(
    server, tmp_path, name, checksum, reason
):
    with pytest.raises(UserError) as caught:
        open_source(settings(server, name, checksum), tmp_path)
    assert [word for word in (reason, name, "set path") if word not in str(caught.value)] == []
    assert names_in(tmp_path) == []
    assert len(open_source(settings(server), tmp_path).names) == 10


def test_files_of_a_killed_download_are_removed(server, tmp_path):
    partial = tmp_path / "celeba" / ".download" / "tmp123"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"half")
    open_source(settings(server), tmp_path).close()
    assert "celeba/.download/tmp123" not in names_in(tmp_path)


def test_without_url_torchvision_downloads_zip_and_partition(tmp_path, monkeypatch, archive):
    requests = []
    chosen = ImageSettings(source="celeba", split="official")

    def fail(*_):
        raise RuntimeError("too many users have viewed this file")

    def download(file_id, root, filename, md5):
        requests.append((file_id, md5, filename))
        lines = "".join(f"{i:06d}.jpg {i % 3}\n" for i in range(10))
        (root / filename).write_bytes(archive if filename.endswith(".zip") else lines.encode())

    utils = torchvision.datasets.utils
    monkeypatch.setattr(utils, "download_file_from_google_drive", fail)
    with pytest.raises(UserError, match=r"too many users.*set path"):
        open_source(chosen, tmp_path)
    assert names_in(tmp_path) == []
    monkeypatch.setattr(utils, "download_file_from_google_drive", download)
    source = open_source(chosen, tmp_path)
    assert [name for _, _, name in requests] == [PARTITION, "img_align_celeba.zip"]
    assert set(requests) < set(torchvision.datasets.CelebA.file_list)
    assert source.split_rule == "official"


def test_concurrent_downloads_are_made_once(server, tmp_path):
    found = []

    def work():
        with closing(open_source(settings(server), tmp_path)) as source:
            found.append(len(source.names))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [10, 10, 10]
    assert server.requests == ["/complete.zip"]
