import copy
import errno
import os
import re
import shutil
import signal
import threading
import traceback

import mlflow
import pytest
import requests
from click.testing import CliRunner
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from submanifold.cli import cli
from submanifold.common import distributed
from submanifold.common.errors import UserError
from submanifold.common.files import is_locked
from submanifold.inference.records import FOLDER
from submanifold.runs.hooks import RunHooks, _exit
from submanifold.runs.runner import RankRunner, run_pipeline
from submanifold.runs.tracking import (
    LOCK,
    Observer,
    connect,
    end_killed_runs,
    log_callback,
    observer,
    required,
)


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


def test_sigterm_ends_a_run_with_an_exit_code():
    with pytest.raises(SystemExit) as caught:
        _exit(15, None)
    assert caught.value.code == 143


@pytest.mark.parametrize("context", [None, '{"mlflow.user": "orchestrator"}'])
def test_a_run_leaves_no_tag_and_no_handler_to_the_next_of_its_process(
    project, context, monkeypatch
):
    if context:
        monkeypatch.setenv("MLFLOW_RUN_CONTEXT", context)
    handler, seeds = signal.getsignal(signal.SIGTERM), (1, 2) if context else (3, 4)
    with project.session():
        for seed, tags in zip(seeds, ({"submanifold.trial": "7"}, {}), strict=True):
            token = observer.set(Observer(tags))
            run_pipeline(project.path, "data", {"data": {"seed": seed}}, "test")
            observer.reset(token)
            assert signal.getsignal(signal.SIGTERM) is handler
            assert os.environ.get("MLFLOW_RUN_CONTEXT") == context
    first, second = (run.data.tags for run in project.mlflow_runs()[-2:])
    assert first["submanifold.trial"] == "7"
    assert "submanifold.trial" not in second
    assert (first["mlflow.user"] == "orchestrator") == bool(context)


def test_a_copied_project_does_not_write_into_the_original(project, tmp_path):
    project.run("data", data={"seed": 20})
    copied = copy.copy(project)
    copied.path = tmp_path / "copied"
    shutil.copytree(project.path, copied.path)
    expected, got = (f"{folder}/data/mlartifacts" for folder in (copied.path, project.path))
    message = f"{copied.path}/data/mlflow.db: expected artifacts in {expected}, got {got}. The pro"
    with pytest.raises(UserError, match=re.escape(message)):
        copied.run("data", data={"seed": 21})
    (tmp_path / "link").symlink_to(project.path)
    copied.path = tmp_path / "link"
    assert copied.run("data", data={"seed": 21}).mlflow


def test_a_tag_of_another_user_removes_no_file(project):
    client, folder = project.mlflow_client, project.path / FOLDER
    project.run("data", data={"seed": 9})
    (experiment,) = {run.info.experiment_id for run in project.mlflow_runs()}
    names = ["../../victim.json", f"{project.path}/victim.lock", ".victim.lock", "victim.json"]
    for name in names:
        (folder / name).touch()
    runs = [client.create_run(experiment, tags={LOCK: name}).info.run_id for name in [*names, ""]]
    with project.session() as session:
        connect(session.load_context())
        end_killed_runs(project.path)
    for name in names:
        (folder / name).unlink()
    assert {client.get_run(run).info.status for run in runs} == {"RUNNING"}
    for run in runs:
        client.delete_run(run)


def test_a_run_in_mlflow_has_its_lock_from_its_creation_and_ends_with_sigterm(project, monkeypatch):
    """Otherwise one that is killed at its start is RUNNING for ever."""
    create, created = MlflowClient.create_run, []

    def create_and_look(*arguments, **options):
        run = create(*arguments, **options)
        is_held = is_locked(project.path / FOLDER / run.data.tags.get(LOCK, ""))
        created.append((is_held, signal.getsignal(signal.SIGTERM)))
        return run

    monkeypatch.setattr(MlflowClient, "create_run", create_and_look)
    run = project.run("data")
    assert created == [(True, _exit)]
    assert not list((project.path / FOLDER).glob(".*.lock")), "the run has ended"
    assert run.mlflow.data.tags["dataset"] == "photos"
    assert run.mlflow.data.tags["mlflow.user"]


SECRETS = {
    "postgresql://mlflow:s3cret@127.0.0.1:9/runs": "postgresql://127.0.0.1:9",
    "mysql+pymysql://root:s3cret@127.0.0.1/runs": "mysql+pymysql://127.0.0.1",
    "http://mlflow:s3cret@127.0.0.1:9": "http://127.0.0.1:9",
    "http://s3cret@127.0.0.1:9": "http://127.0.0.1:9",
    "http://mlflow:s3c%72et@127.0.0.1:9/": "http://127.0.0.1:9",
    "http://127.0.0.1:9/?token=s3cret": "http://127.0.0.1:9",
    "http://127.0.0.1:9?token=a@s3cret": "***",
    "http://127.0.0.1:9/#s3cret": "http://127.0.0.1:9",
    "http://mlflow:a@s3cret@127.0.0.1:9": "http://127.0.0.1:9",
    "http://mlflow:a/s3cret@127.0.0.1:9": "***",
    "http://mlflow:a#s3cret@127.0.0.1:9": "***",
    "postgresql://mlflow:a/s3cret@127.0.0.1:9/runs": "***",
    "ftp://mlflow:s3cret@127.0.0.1/runs": "ftp://127.0.0.1",
    "mlflow:s3cret@127.0.0.1": "***",
    "sqlite:////no/such/folder/mlflow.db?password=s3cret": "sqlite://",
}


@pytest.mark.parametrize("uri", SECRETS)
def test_messages_have_no_credentials_of_the_tracking_uri(uri, monkeypatch, caplog):
    for reason in (f"Invalid url: {uri}", "invalid literal for int(): 's3CRET'"):
        messages = failures(uri, OSError(reason), monkeypatch, caplog)
        assert f"got {SECRETS[uri]} (" in messages
        assert messages.count("(OSError)") == 2
        assert "s3c" not in messages.lower()


@pytest.mark.parametrize("uri", ["sqlite:////no/mlflow.db", "http://127.0.0.1:9", "/no/mlruns"])
def test_messages_have_the_tracking_uri_and_the_reason_without_credentials(
    uri, monkeypatch, caplog
):
    reason = f"cannot use {uri}"
    messages = failures(uri, OSError(f"{reason}\nmore"), monkeypatch, caplog)
    assert f"got {uri} ({reason})." in messages
    assert f"step 1 ({reason})" in messages


def failures(uri, error, monkeypatch, caplog):
    """Return the texts of a failure of MLflow at the start of a run, and in a training."""

    def fail(*_):
        raise error

    caplog.clear()
    monkeypatch.setattr("mlflow.log_metrics", fail)
    monkeypatch.setattr("mlflow.active_run", lambda: True)
    monkeypatch.setattr("mlflow.get_tracking_uri", lambda: uri)
    log_callback(0, 1)("density", 1, {"train.loss": 1.0})
    monkeypatch.undo()
    loader = {"mlflow": {"server": {"mlflow_tracking_uri": uri}}}
    with pytest.raises(UserError) as caught, required(loader):
        fail()
    trace = traceback.format_exception(caught.value, limit=0)  # also of its cause
    return caplog.text + "".join(trace)


def test_a_failure_of_mlflow_in_or_after_a_run_is_one_message_without_credentials(
    project, monkeypatch
):
    uri = next(iter(SECRETS))
    monkeypatch.setattr("mlflow.get_tracking_uri", lambda: uri)
    hooks = RunHooks()
    hooks._is_mlflow_enabled = False
    with pytest.raises(UserError, match=r"^ConnectionError$"):
        hooks.on_pipeline_error(requests.ConnectionError(f"no route to {uri}"), {}, None, None)
    monkeypatch.undo()

    def fail(*_):
        raise MlflowException("no server")

    monkeypatch.setattr(RunHooks, "_log_results", fail)
    with pytest.raises(UserError, match=r"^mlflow\.yml: .*\(no server\)"):
        project.run("data")
    mlflow.end_run()


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "no such file", "weights.npy"),
        TimeoutError("30 s"),
        OSError("not an image"),
    ],
)
def test_an_error_that_may_be_a_defect_keeps_its_traceback(error):
    hooks = RunHooks()
    hooks._is_mlflow_enabled = False
    hooks.on_pipeline_error(error, {}, None, None)
    full = OSError(errno.ENOSPC, "the disk is full", "x.npy")
    with pytest.raises(UserError, match=r"the disk is full: 'x.npy'"):
        hooks.on_pipeline_error(full, {}, None, None)

    @cli.command("broken")
    def broken():
        raise error

    try:
        assert CliRunner().invoke(cli, ["broken"]).exception is error
    finally:
        del cli.commands["broken"]


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_first_rank_writes(tmp_path, monkeypatch, rank):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr(distributed, "barrier", lambda: None)
    computed, nodes = [], []
    for name, needs, tags in (
        ("train", "params:threads", "distributed"),
        ("report", "train", None),
    ):

        def compute(needed, name=name):
            computed.append(name)
            return [name]

        nodes.append(Node(compute, needs, name, name=name, tags=tags))
    config = {
        name: {"type": "json.JSONDataset", "filepath": str(tmp_path / name)}
        for name in ("train", "report")
    }
    catalog = DataCatalog.from_config(config)
    catalog["params:threads"] = MemoryDataset(None)
    RankRunner().run(Pipeline(nodes), catalog)
    assert computed == ([["train", "report"], ["train"]][rank])
    assert {path.name for path in tmp_path.iterdir()} == {*([computed, []][rank])}
