import pytest
from kedro.io import DatasetError

from submanifold.runs.datasets import PathDataset


def test_it_loads_as_a_path_in_a_folder_that_is_there(tmp_path):
    dataset = PathDataset(filepath=str(tmp_path / "a" / "b" / "file.json"))
    assert dataset.exists()
    path = dataset.load()
    assert path == tmp_path / "a" / "b" / "file.json"
    assert path.parent.is_dir()
    assert not path.exists()


def test_it_is_an_input_only(tmp_path):
    with pytest.raises(DatasetError, match="cannot be an output"):
        PathDataset(filepath=str(tmp_path)).save(tmp_path)
