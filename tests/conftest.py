"""Projects to run Kedro in: a copy of conf/ and pyproject.toml in a temporary folder."""

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import mlflow
import pytest
import torch
from click.testing import CliRunner
from mlflow.entities import Run as MlflowRun
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from submanifold import cli

REPOSITORY = Path(__file__).parents[1]
LOGGING = str(REPOSITORY / "tests" / "pipelines" / "logging.yml")

os.environ |= {"OMP_NUM_THREADS": "1", "DO_NOT_TRACK": "1"}
os.environ["KEDRO_LOGGING_CONFIG"] = LOGGING  # read when Kedro is first imported
for name in ("KEDRO_ENV", "MLFLOW_TRACKING_URI", "SUBMANIFOLD_JOB"):
    os.environ.pop(name, None)
torch.set_num_threads(1)


@dataclass
class Run:
    """What one `kedro run` left behind."""

    mlflow: MlflowRun
    project: "Project"
    params: dict = field(default_factory=dict)

    @cached_property
    def catalog(self):
        return self.project.catalog(**self.params)

    @property
    def steps(self):
        """Steps that each training of this very run has made."""
        ending = ".steps_trained"
        figures = self.mlflow.data.metrics.items()
        return {k.removesuffix(ending): int(v) for k, v in figures if k.endswith(ending)}

    def load(self, name):
        return self.catalog.load(name)

    def path(self, name):
        dataset = self.catalog[name]
        return Path(dataset._filepath)


class Project:
    """A Kedro project in a folder of its own."""

    def __init__(self, path):
        self.path = path
        for name in ("conf", "pyproject.toml", ".telemetry"):
            copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
            copy(REPOSITORY / name, path / name)
        shutil.rmtree(path / "conf" / "local", ignore_errors=True)
        (path / "conf" / "local").mkdir()
        (path / "src").mkdir()

    @contextlib.contextmanager
    def session(self, env="test", **params):
        """A session as `kedro run` makes it; what it changes in this process is put back."""
        environment, path, folder = dict(os.environ), list(sys.path), Path.cwd()
        handler = signal.getsignal(signal.SIGTERM)
        os.chdir(self.path)
        try:
            from kedro.framework.session import KedroSession
            from kedro.framework.startup import bootstrap_project

            bootstrap_project(self.path)
            params = {"device": "cpu", **params}
            with KedroSession.create(self.path, env=env, runtime_params=params) as session:
                yield session
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)
            os.chdir(folder)
            sys.path[:] = path
            os.environ.clear()
            os.environ.update(environment)

    def run(self, pipeline="hierarchical", until=None, only_missing_outputs=False, **params):
        """Run a pipeline in this process, up to the dataset `until`."""
        names = [pipeline] if pipeline else None
        with self.session(**params) as session:
            session.run(
                pipeline_names=names,
                to_outputs=[until] if until else None,
                only_missing_outputs=only_missing_outputs,
            )
        assert mlflow.active_run() is None
        return Run(self.mlflow_runs()[-1], self, params)

    def catalog(self, **params):
        with self.session(**params) as session:
            return session.load_context().catalog

    def start(self, *arguments):
        """Type `kedro <arguments>` in another process."""
        command = [sys.executable, "-m", "kedro", *arguments]
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        environment = {**os.environ, "COLUMNS": "500"}
        del environment["KEDRO_LOGGING_CONFIG"]
        environment.pop("MLFLOW_TRACKING_URI", None)  # MLflow sets it in this process

        def heed_interrupts():
            # a shell's background job, such as a CI script may be, is started deaf to SIGINT
            signal.signal(signal.SIGINT, signal.SIG_DFL)

        return subprocess.Popen(
            command, cwd=self.path, env=environment, preexec_fn=heed_interrupts, **output
        )

    def typed(self, *arguments):
        """What `kedro <arguments>` does, in this process: exit code and output."""
        with self.session():
            result = CliRunner().invoke(cli.cli, arguments)
        return result.exit_code, result.output

    def kedro(self, *arguments):
        """Type `kedro <arguments>`, and wait: exit code and output."""
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    @property
    def mlflow_client(self):
        return mlflow.MlflowClient(tracking_uri=f"sqlite:///{self.path}/mlflow.db")

    def mlflow_runs(self):
        """All runs so far, the oldest first."""
        client = self.mlflow_client
        experiment = client.get_experiment_by_name("submanifold")
        order = ["attributes.start_time ASC"]
        return list(client.search_runs([experiment.experiment_id], order_by=order))


@pytest.fixture(autouse=True)
def loggers_are_as_at_first(monkeypatch):
    """Whatever configuration of logging an earlier test has brought about in this process."""
    logging.disable(logging.NOTSET)
    for name, logger in logging.root.manager.loggerDict.items():
        if name.partition(".")[0] == "submanifold" and isinstance(logger, logging.Logger):
            monkeypatch.setattr(logger, "disabled", False)
            monkeypatch.setattr(logger, "propagate", True)
            logger.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def no_mlflow_run_is_left():
    yield
    assert mlflow.active_run() is None


def mount(*arguments):
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"only root may mount a disk: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", folder)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def read_only():
    """Make folders such that even root may only read them."""
    made = []

    def make(folder):
        mount("--bind", folder, folder)
        made.append(folder)
        mount("-o", "remount,ro,bind", folder)

    yield make
    for folder in made:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="session")
def new_project(tmp_path_factory):
    """Make a project in a new folder, with an MLflow database that is set up but empty."""
    empty = tmp_path_factory.mktemp("mlflow")
    SqlAlchemyStore(f"sqlite:///{empty}/mlflow.db", str(empty / "unused"))

    def make():
        path = tmp_path_factory.mktemp("project")
        shutil.copy(empty / "mlflow.db", path)
        return Project(path)

    return make


@pytest.fixture(scope="module")
def project(new_project):
    """A project that the tests of one module share."""
    return new_project()
