"""Fixtures: Kedro projects in temporary folders, and disks that are full or read-only."""

import contextlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import mlflow
import pytest
import torch
from click.testing import CliRunner
from mlflow.entities import Run as MlflowRun
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from safetensors import SafetensorError, safe_open

from submanifold import cli
from submanifold.common import threads

REPOSITORY = Path(__file__).parents[1]
LOGGING = str(REPOSITORY / "tests" / "pipelines" / "logging.yml")

os.environ |= {"OMP_NUM_THREADS": "1", "DO_NOT_TRACK": "1"}
os.environ["KEDRO_LOGGING_CONFIG"] = LOGGING  # read when Kedro is first imported
for name in ("KEDRO_ENV", "MLFLOW_TRACKING_URI"):
    os.environ.pop(name, None)
torch.set_num_threads(1)


@dataclass
class Run:
    """A finished `kedro run`: its MLflow run and its outputs."""

    mlflow: MlflowRun | None  # none if everything existed
    project: "Project"
    params: dict = field(default_factory=dict)

    @cached_property
    def catalog(self):
        return self.project.catalog(**self.params)

    @property
    def steps(self):
        """Steps of the phases that this run trained."""
        logged = self.artifacts
        phases = [name.removesuffix(".history") for name in self.catalog if ".history" in name]
        return {
            name: self.load(f"{name}.history")["steps_trained"] for name in phases if name in logged
        }

    @property
    def artifacts(self):
        """Names of the MLflow artifacts."""
        return {a.path for a in self.project.mlflow_client.list_artifacts(self.mlflow.info.run_id)}

    def curve(self, metric):
        """Values of an MLflow metric by step."""
        history = self.project.mlflow_client.get_metric_history(self.mlflow.info.run_id, metric)
        return {point.step: point.value for point in history}

    def load(self, name):
        return self.catalog.load(name)

    def text(self, page="report"):
        """Text of a page without its tags."""
        html = re.sub(r"<style>.*?</style>", "", self.load(page), flags=re.DOTALL)
        return " ".join(re.sub(r"<[^>]*>", " ", html).split())

    def path(self, name):
        return Path(self.catalog[name]._filepath)


class Project:
    """A Kedro project: a copy of conf/ and pyproject.toml in a folder."""

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
        """Create a session as `kedro run` does; restore the state of this process at the end."""
        environment, path, folder = dict(os.environ), list(sys.path), Path.cwd()
        os.chdir(self.path)
        try:
            from kedro.framework import project
            from kedro.framework.session import KedroSession
            from kedro.framework.startup import bootstrap_project

            if project.PACKAGE_NAME is None:
                bootstrap_project(self.path)
            else:  # without reading the settings again, which takes a tenth of the time
                project.pipelines.configure("submanifold.pipeline_registry")
            params = {"device": "cpu", **params}
            with KedroSession.create(self.path, env=env, runtime_params=params) as session:
                yield session
        finally:
            os.chdir(folder)
            sys.path[:] = path
            os.environ.clear()
            os.environ.update(environment)

    def run(self, pipeline="hierarchical", until=None, only_missing_outputs=False, **params):
        """Run a pipeline in this process, up to the dataset `until`."""
        from submanifold.runs.runner import RankRunner  # imports Kedro, which then logs as above

        names, before = [pipeline] if pipeline else None, len(self.mlflow_runs())
        with self.session(**params) as session:
            session.run(
                pipeline_names=names,
                to_outputs=[until] if until else None,
                only_missing_outputs=only_missing_outputs,
                runner=RankRunner(),
            )
        assert mlflow.active_run() is None
        assert threads._setting is None
        runs = self.mlflow_runs()[before:]
        return Run(runs[0] if runs else None, self, params)

    def catalog(self, **params):
        with self.session(**params) as session:
            return session.load_context().catalog

    def start(self, *arguments, module="kedro"):
        """Start `kedro <arguments>` in another process, or a command of another module."""
        environment = {**command_environment(), "COLUMNS": "500"}
        del environment["KEDRO_LOGGING_CONFIG"]

        def allow_interrupts():  # background jobs of a shell ignore SIGINT
            signal.signal(signal.SIGINT, signal.SIG_DFL)

        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=self.path,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=allow_interrupts,
        )

    def invoke(self, *arguments):
        """Run `kedro <arguments>` in this process; return the exit code and the output."""
        with self.session():
            result = CliRunner().invoke(cli.cli, arguments)
        return result.exit_code, result.output

    def kedro(self, *arguments):
        """Run `kedro <arguments>` in another process; return the exit code and the output."""
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    def last_step(self, phase="*"):
        """Step of the last checkpoint of a phase, or of the one before while it is replaced."""
        steps = [0]
        for name in ("last", "earlier"):
            for path in self.path.glob(f"data/06_models/*-{phase}-*/{name}.safetensors"):
                with (
                    contextlib.suppress(OSError, RuntimeError, SafetensorError),
                    safe_open(path, "pt") as file,
                ):
                    steps.append(json.loads(file.metadata()["state"])["step"])
        return max(steps)

    @property
    def mlflow_client(self):
        return mlflow.MlflowClient(tracking_uri=f"sqlite:///{self.path}/data/mlflow.db")

    def mlflow_runs(self):
        """All runs, the oldest first."""
        client, order = self.mlflow_client, ["attributes.start_time ASC"]
        experiment = client.get_experiment_by_name("submanifold")
        ids = [experiment.experiment_id] if experiment else []
        return list(client.search_runs(ids, order_by=order)) if ids else []


def wait_for(condition, *processes):
    """Wait until a condition is true while processes run."""
    deadline = time.monotonic() + 120
    while not condition():
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < deadline
        time.sleep(0.02)


def command_environment():
    """Variables for another process, without the tracking URI that MLflow sets in this one."""
    return {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}


@pytest.fixture(autouse=True)
def reset_loggers(monkeypatch):
    """Undo the configuration of logging by earlier tests."""
    logging.disable(logging.NOTSET)
    for name, logger in logging.root.manager.loggerDict.items():
        if name.partition(".")[0] == "submanifold" and isinstance(logger, logging.Logger):
            monkeypatch.setattr(logger, "disabled", False)
            monkeypatch.setattr(logger, "propagate", True)
            logger.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def check_no_active_mlflow_run():
    """Check that each test ends its MLflow runs."""
    yield
    assert mlflow.active_run() is None


def mount(*arguments):
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting a disk needs root: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", folder)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def read_only():
    """Return a function that makes a folder read-only, even for root."""
    made = []

    def make(folder):
        mount("--bind", folder, folder)
        made.append(folder)
        mount("-o", "remount,ro,bind", folder)

    yield make
    for folder in made:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def container():
    """Return a function that runs code as process number 1, as in a container, for one test."""
    started = []

    def start(code, *arguments):
        command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c"]
        code = f"import os, sys, time\nassert os.getpid() == 1\n{code}"
        process = subprocess.Popen(
            [*command, code, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    if subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True).returncode:
        pytest.skip("a namespace for processes needs root")
    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def new_project(tmp_path_factory):
    """Return a function that creates a project with an empty MLflow database."""
    empty = tmp_path_factory.mktemp("mlflow")
    SqlAlchemyStore(f"sqlite:///{empty}/mlflow.db", str(empty / "unused"))

    def make():
        path = tmp_path_factory.mktemp("project")
        (path / "data").mkdir()
        shutil.copy(empty / "mlflow.db", path / "data")
        return Project(path)

    return make


@pytest.fixture(scope="module")
def project(new_project):
    """A project shared by the tests of a module."""
    return new_project()


@pytest.fixture(autouse=True)
def one_thread(request):
    """In trainings small matrices are faster so, and sums come in the order of a child process."""
    if request.path.parent.name != "training":
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
