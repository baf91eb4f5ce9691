import hashlib
import io
import logging
import threading
import zipfile
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torchvision
from PIL import Image

from submanifold.common.errors import UserError
from submanifold.common.progress import ProgressBar
from submanifold.common.settings import read_settings
from submanifold.data.prepare import prepare
from submanifold.data.settings import ImageSettings
from submanifold.data.sources import fingerprint, open_source


def read(settings):
    return read_settings(ImageSettings, settings, "data")


def archive():
    buffer, image = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "JPEG")
    with zipfile.ZipFile(buffer, "w") as file:
        for i in range(10):
            file.writestr(f"img_align_celeba/{i:06d}.jpg", image.getvalue())
    return buffer.getvalue()


ZIP = archive()
PAGE = b"<html>sign in first</html>"
MD5, MD5_OF_PAGE = (f"md5:{hashlib.md5(each).hexdigest()}" for each in (ZIP, PAGE))


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path == "/missing.zip":
            self.send_error(404)
            return
        content = PAGE if self.path == "/page.zip" else ZIP
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        half = self.path == "/half.zip"
        self.wfile.write(content[: len(content) // 2] if half else content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def settings(server, name, checksum=MD5, **others):
    url = f"http://127.0.0.1:{server.server_port}/{name}"
    return {"source": "celeba", "url": url, "hash": checksum, "size": 8, **others}


def names_in(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def test_a_download_without_a_hash_is_refused(server):
    with pytest.raises(UserError, match=r"data\.url=http\S+ needs hash.*set hash to sha256:"):
        read(settings(server, "whole.zip", None))


def test_a_whole_download_is_used_and_not_repeated(server, tmp_path):
    chosen = settings(server, "whole.zip")
    for out in ("first", "second"):
        *arrays, manifest = prepare(read(chosen), tmp_path / out, tmp_path / "raw")
        assert [len(array) for array in arrays] == [8, 1, 1]
    assert server.asked == ["/whole.zip"]
    assert names_in(tmp_path / "raw") == ["celeba/downloaded.json", "celeba/img_align_celeba.zip"]
    assert (tmp_path / "raw/celeba/img_align_celeba.zip").read_bytes() == ZIP
    assert manifest["fingerprint"].startswith("download:")


def test_the_fingerprint_is_the_same_before_and_after_the_download(server, tmp_path):
    chosen = read(settings(server, "whole.zip", MD5, split="official"))
    before = fingerprint(chosen, tmp_path)
    assert server.asked == []
    open_source(chosen, tmp_path).close()
    assert fingerprint(chosen, tmp_path) == before == f"download:{MD5}"
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text("000000.jpg 0\n")
    assert fingerprint(chosen, tmp_path) != before
    with zipfile.ZipFile(tmp_path / "celeba" / "img_align_celeba.zip", "w") as other:
        other.writestr("a.jpg", b"put here by hand")
    assert fingerprint(chosen, tmp_path).startswith("zip:")


@pytest.mark.parametrize(
    ("name", "checksum", "reason"),
    [
        ("missing.zip", MD5, "404"),
        ("half.zip", MD5, "IncompleteRead"),
        ("whole.zip", "md5:" + "0" * 32, "hash"),
        ("page.zip", MD5_OF_PAGE, "not a zip"),
    ],
    ids=["missing", "half", "another hash", "no zip"],
)
def test_a_failed_download_says_how_to_go_on_and_leaves_no_half_file(
    server, tmp_path, name, checksum, reason
):
    chosen = read(settings(server, name, checksum))
    with pytest.raises(UserError) as caught:
        open_source(chosen, tmp_path)
    words = [reason, name, "by hand", "set path", "mmlab.ie.cuhk.edu.hk", "img_align_celeba.zip"]
    assert [word for word in words if word not in str(caught.value)] == []
    assert names_in(tmp_path) == []
    good = read(settings(server, "whole.zip", MD5))
    assert len(open_source(good, tmp_path).names) == 10


def test_a_server_that_is_not_there(tmp_path):
    chosen = read({"source": "celeba", "url": "http://127.0.0.1:9/x.zip", "hash": MD5})
    with pytest.raises(UserError, match=r"could not download CelebA .* set path"):
        open_source(chosen, tmp_path)


def test_what_a_killed_download_left_is_cleared(server, tmp_path):
    left = tmp_path / "celeba" / ".download" / "tmp123"
    left.parent.mkdir(parents=True)
    left.write_bytes(ZIP[:100])
    open_source(read(settings(server, "whole.zip", MD5)), tmp_path).close()
    assert "celeba/.download/tmp123" not in names_in(tmp_path)


def test_without_url_torchvision_is_asked_for_zip_and_partition(tmp_path, monkeypatch):
    asked = []

    def drive(file_id, root, filename, md5):
        asked.append((file_id, md5, filename))
        lines = "".join(f"{i:06d}.jpg {i % 3}\n" for i in range(10))
        (root / filename).write_bytes(ZIP if filename.endswith(".zip") else lines.encode())

    monkeypatch.setattr(torchvision.datasets.utils, "download_file_from_google_drive", drive)
    chosen = read({"source": "celeba", "split": "official"})
    source = open_source(chosen, tmp_path)
    assert [name for _, _, name in asked] == ["list_eval_partition.txt", "img_align_celeba.zip"]
    assert set(asked) < set(torchvision.datasets.CelebA.file_list)
    assert source.split_rule == "official"


def test_torchvision_failing_is_a_message(tmp_path, monkeypatch):
    def drive(*_):
        raise RuntimeError("too many users have viewed this file")

    monkeypatch.setattr(torchvision.datasets.utils, "download_file_from_google_drive", drive)
    with pytest.raises(UserError, match=r"torchvision knows: too many users.*set path"):
        open_source(read({"source": "celeba"}), tmp_path)
    assert names_in(tmp_path) == []


def test_another_zip_of_the_same_size_is_not_the_download(server, tmp_path):
    chosen = read(settings(server, "whole.zip", MD5))
    open_source(chosen, tmp_path).close()
    before = fingerprint(chosen, tmp_path)
    path = tmp_path / "celeba" / "img_align_celeba.zip"
    other = ZIP.replace(b"000009.jpg", b"00000X.jpg")
    assert len(other) == len(ZIP)
    path.write_bytes(other)
    assert fingerprint(chosen, tmp_path) != before


def test_two_at_once_download_once(server, tmp_path):
    chosen, found = read(settings(server, "whole.zip", MD5)), []

    def work():
        with closing(open_source(chosen, tmp_path)) as source:
            found.append(len(source.names))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [10, 10, 10]
    assert server.asked == ["/whole.zip"]


def test_without_a_terminal_progress_is_log_lines(caplog):
    with (
        caplog.at_level(logging.INFO),
        ProgressBar("reading", "images", total=10, every=0.0) as meter,
    ):
        meter.update(4)
    assert "reading: 4/10 images, " in caplog.text
    assert "images/s" in caplog.text
    assert " s left" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO), ProgressBar("reading", "images", total=10) as meter:
        meter.update(4)
    assert caplog.text == ""
