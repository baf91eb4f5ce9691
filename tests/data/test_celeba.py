"""CelebA: its files, its official partition and its download."""

import zipfile

import pytest
import torchvision
from source_files import plain, write_celeba

from submanifold.common.errors import UserError
from submanifold.data.settings import ImageSettings

PARTITION = "list_eval_partition.txt"


def open_celeba(path=None, raw=None, **settings):
    settings = {"source": "celeba", "path": str(path) if path else None, **settings}
    return ImageSettings(**settings).open(raw or path)


def test_celeba_is_found_as_zip_or_folder_at_a_path_or_in_the_raw_folder(tmp_path):
    archive = write_celeba(tmp_path / "raw" / "celeba") / "img_align_celeba.zip"
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(tmp_path / "out")
    for path in (archive, archive.parent, tmp_path / "out", tmp_path / "out/img_align_celeba"):
        assert [n[-10:] for n in open_celeba(path).names] == [f"{i:06d}.jpg" for i in range(10)]
    assert len(open_celeba(raw=tmp_path / "raw").names) == 10


@pytest.mark.parametrize("place", ["next to it", "Eval"])
def test_the_official_partition_is_found(tmp_path, place):
    codes = "0001200010"
    file = write_celeba(tmp_path / "Img", codes=codes) / PARTITION
    if place == "Eval":
        (tmp_path / "Eval").mkdir()
        file.rename(tmp_path / "Eval" / file.name)
    source = open_celeba(tmp_path / "Img" / "img_align_celeba.zip", split="official")
    code_of = {"train": "0", "valid": "1", "test": "2"}
    assert "".join(code_of[source.splits[name]] for name in source.names) == codes
    assert source.split_rule == "official"


# ---- download


def names_in(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def test_torchvision_downloads_zip_and_partition(tmp_path, monkeypatch):
    folder = write_celeba(tmp_path / "celeba", content=plain(kind="JPEG"))
    archive = (folder / "img_align_celeba.zip").read_bytes()
    requests, tmp_path = [], tmp_path / "raw"
    chosen = ImageSettings(source="celeba", split="official")
    before = chosen.fingerprint(tmp_path)

    def fail(*_):
        raise RuntimeError("too many users have viewed this file")

    def download(file_id, root, filename, md5):
        requests.append((file_id, md5, filename))
        lines = "".join(f"{i:06d}.jpg {i % 3}\n" for i in range(10))
        root.mkdir(exist_ok=True)
        (root / filename).write_bytes(archive if filename.endswith(".zip") else lines.encode())

    utils = torchvision.datasets.utils
    monkeypatch.setattr(utils, "download_file_from_google_drive", fail)
    with pytest.raises(UserError, match=r"too many users.*set data\.path"):
        chosen.open(tmp_path)
    assert names_in(tmp_path) == []
    monkeypatch.setattr(utils, "download_file_from_google_drive", download)
    source = chosen.open(tmp_path)
    assert {name for _, _, name in requests} == {PARTITION, "img_align_celeba.zip"}
    assert set(requests) < set(torchvision.datasets.CelebA.file_list)
    assert source.split_rule == "official"
    assert chosen.fingerprint(tmp_path) == before
    write_celeba(tmp_path / "celeba")  # by the user
    assert chosen.fingerprint(tmp_path) != before


def test_a_partition_of_other_lines_is_rejected(tmp_path):
    write_celeba(tmp_path, codes="0012")
    (tmp_path / PARTITION).write_text("000000.jpg 7\n")
    with pytest.raises(UserError, match=f"{PARTITION}: expected a file name and 0, 1 or 2"):
        open_celeba(tmp_path, split="official")
