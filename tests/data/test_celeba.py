"""CelebA: its files, its official partition and its download."""

import hashlib
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torchvision
from source_files import plain, write_celeba

from submanifold.common.errors import UserError
from submanifold.data.settings import ImageSettings
from submanifold.data.sources import fingerprint, open_source

PARTITION = "list_eval_partition.txt"


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
            self.send_response(200)
            self.send_header("Content-Length", str(len(archive)))
            self.end_headers()
            self.wfile.write(archive[: len(archive) // (2 if self.path == "/half.zip" else 1)])

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


def test_the_identity_is_the_same_before_and_after_the_download(server, tmp_path):
    chosen = settings(server)
    before = fingerprint(chosen, tmp_path)
    assert server.requests == []
    open_source(chosen, tmp_path).close()
    assert fingerprint(chosen, tmp_path) == before
    assert fingerprint(settings(server, checksum="md5:" + "0" * 32), tmp_path) != before
    write_celeba(tmp_path / "celeba")  # by the user
    assert fingerprint(chosen, tmp_path) != before


@pytest.mark.parametrize(
    ("name", "checksum", "reason"),
    [
        ("missing.zip", None, "404"),
        ("half.zip", None, ""),
        ("complete.zip", "md5:" + "0" * 32, "hash"),
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


def test_without_url_torchvision_downloads_zip_and_partition(tmp_path, monkeypatch, archive):
    requests = []
    chosen = ImageSettings(source="celeba", split="official")

    def fail(*_):
        raise RuntimeError("too many users have viewed this file")

    def download(file_id, root, filename, md5):
        requests.append((file_id, md5, filename))
        lines = "".join(f"{i:06d}.jpg {i % 3}\n" for i in range(10))
        root.mkdir(exist_ok=True)
        (root / filename).write_bytes(archive if filename.endswith(".zip") else lines.encode())

    utils = torchvision.datasets.utils
    monkeypatch.setattr(utils, "download_file_from_google_drive", fail)
    with pytest.raises(UserError, match=r"too many users.*set path"):
        open_source(chosen, tmp_path)
    assert names_in(tmp_path) == []
    monkeypatch.setattr(utils, "download_file_from_google_drive", download)
    source = open_source(chosen, tmp_path)
    assert {name for _, _, name in requests} == {PARTITION, "img_align_celeba.zip"}
    assert set(requests) < set(torchvision.datasets.CelebA.file_list)
    assert source.split_rule == "official"
