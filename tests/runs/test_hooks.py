import signal
import threading

import numpy as np
import pandas as pd
import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline

from submanifold.common import distributed
from submanifold.common.errors import UserError
from submanifold.runs.datasets import ArrayDataset
from submanifold.runs.hooks import FileHooks, _exit
from submanifold.runs.runner import RankRunner


def test_run_in_a_thread_does_not_set_signal_handlers(project):
    errors = []

    def run():
        try:
            project.run("data")
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert errors == []
    assert project.mlflow_runs()[-1].info.status == "FINISHED"


def test_sigterm_ends_a_run_with_an_exit_code(project):
    before = signal.getsignal(signal.SIGTERM)
    with project.session() as session:
        session.run(pipeline_names=["data"])
        assert signal.getsignal(signal.SIGTERM) is _exit
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(SystemExit) as caught:
        _exit(15, None)
    assert caught.value.code == 143


WRITTEN = {
    "u_train.npy": np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32),
    "baselines.json": {"gaussian": {"bits_per_dim": 3.25}},
    "scores.csv": pd.DataFrame({"score": [1.5, 2.5]}),
}
TYPES = {"json": "json.JSONDataset", "csv": "pandas.CSVDataset"}


class Files:
    """A catalog whose datasets are saved and loaded with the hooks, as in a node."""

    def __init__(self, folder):
        self.folder, self.hooks = folder, FileHooks()
        array = ArrayDataset(filepath=str(folder / "u_train.npy"))
        config = {name: {"type": TYPES[name.rpartition(".")[2]], "filepath": str(folder / name)}
                  for name in WRITTEN if not name.endswith("npy")}  # fmt: skip
        self.catalog = DataCatalog.from_config(config)
        self.catalog["u_train.npy"] = array
        self.hooks.after_catalog_created(self.catalog)

    def save(self, name):
        self.hooks.before_dataset_saved(name)
        self.catalog.save(name, WRITTEN[name])
        self.hooks.after_dataset_saved(name)

    def load(self, name):
        self.hooks.before_dataset_loaded(name)
        return self.catalog.load(name)

    def start_run(self):
        node = Node(lambda: None, None, list(WRITTEN), name="any")
        self.hooks.before_pipeline_run(Pipeline([node]))


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_changed_file_is_not_loaded_and_is_written_again(files, name):
    files.save(name)
    files.load(name)
    files.start_run()
    assert files.catalog.exists(name)
    path = files.folder / name
    content = bytearray(path.read_bytes())
    content[-4 if path.suffix == ".csv" else -2 if path.suffix == ".npy" else -7] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: expected the content that was written"):
        files.load(name)
    files.start_run()
    assert not files.catalog.exists(name)
    files.save(name)
    files.load(name)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_of_a_killed_process_is_written_again(files, name, monkeypatch):
    files.hooks.before_dataset_saved(name)
    (files.folder / name).write_bytes(b"[1]\n")
    files.start_run()
    assert (files.folder / name).exists(), "this process may still write it"
    monkeypatch.setattr("submanifold.runs.hooks.is_alive", lambda process: False)
    files.start_run()
    assert not (files.folder / name).exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_first_rank_writes(tmp_path, monkeypatch, rank):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr(distributed, "barrier", lambda: None)
    computed, nodes = [], []
    for name, needs, tags in (
        ("train", "params:threads", "distributed"), ("report", "train", None)
    ):  # fmt: skip

        def compute(needed, name=name):
            computed.append(name)
            return [name]

        nodes.append(Node(compute, needs, name, name=name, tags=tags))
    config = {name: {"type": TYPES["json"], "filepath": str(tmp_path / name)}
              for name in ("train", "report")}  # fmt: skip
    catalog = DataCatalog.from_config(config)
    catalog["params:threads"] = MemoryDataset(None)
    RankRunner().run(Pipeline(nodes), catalog)
    assert computed == ([["train", "report"], ["train"]][rank])
    assert {path.name for path in tmp_path.iterdir()} == {*([computed, []][rank])}
