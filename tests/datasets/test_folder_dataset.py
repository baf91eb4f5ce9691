import pytest
from kedro.io import DatasetError

from submanifold.datasets import FolderDataset


def test_a_folder_is_made_when_a_node_asks_for_it(tmp_path):
    dataset = FolderDataset(filepath=str(tmp_path / "a" / "b"), metadata={"any": 1})
    assert dataset.exists()
    assert not (tmp_path / "a").exists()
    folder = dataset.load()
    assert folder == tmp_path / "a" / "b"
    assert folder.is_dir()
    (folder / "kept").touch()
    assert (dataset.load() / "kept").exists()


def test_a_folder_is_no_output(tmp_path):
    with pytest.raises(DatasetError, match="cannot be an output"):
        FolderDataset(filepath=str(tmp_path)).save(tmp_path)
