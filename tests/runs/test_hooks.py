import copy
import errno
import re
import shutil
import threading
import traceback

import mlflow
import pytest
import requests
from click.testing import CliRunner
from mlflow.exceptions import MlflowException

from submanifold.cli import cli
from submanifold.common.errors import UserError
from submanifold.runs.hooks import RunHooks
from submanifold.runs.tracking import required


def test_a_run_in_a_thread_ends_its_mlflow_run(project):
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


def test_mlflow_gets_no_credentials(project):
    secret = "a-pass-phrase"
    file = project.path / "conf" / "local" / "credentials.yml"
    file.write_text(f"service: {{password: {secret}}}\n")
    project.run("data", data={"seed": 30})
    file.unlink()
    logged = [path for path in (project.path / "data").rglob("*") if path.is_file()]
    assert "parameters.json" in {path.name for path in logged}
    assert [path for path in logged if secret.encode() in path.read_bytes()] == []


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


URIS = {
    "http://mlflow:s3cret@127.0.0.1:9": "one with credentials (OSError)",
    "http://127.0.0.1:9/?token=s3cret": "one with credentials (OSError)",
    "mysql://mlflow:a/s3cret@127.0.0.1:9/runs": "one with credentials (OSError)",
    "mlflow:s3cret@127.0.0.1": "one with credentials (OSError)",
    "sqlite:////no/mlflow.db": "sqlite:////no/mlflow.db (cannot use sqlite:////no/mlflow.db)",
    "http://127.0.0.1:9": "http://127.0.0.1:9 (cannot use http://127.0.0.1:9)",
    "/no/mlruns": "/no/mlruns (cannot use /no/mlruns)",
}


@pytest.mark.parametrize("uri", URIS)
def test_messages_have_the_tracking_uri_and_the_reason_or_credentials(uri):
    loader = {"mlflow": {"server": {"mlflow_tracking_uri": uri}}}
    with pytest.raises(UserError) as caught, required(loader):
        raise OSError(f"cannot use {uri}\nmore")
    trace = "".join(traceback.format_exception(caught.value))  # also of its cause
    assert f"mlflow.yml: expected a tracking URI that can be used, got {URIS[uri]}. " in trace
    assert "s3cret" not in trace


def test_a_failure_of_mlflow_in_or_after_a_run_is_one_message_without_credentials(
    project, monkeypatch
):
    uri, before = next(iter(URIS)), mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    error = requests.ConnectionError(f"no route to {uri}")
    with pytest.raises(UserError, match=r"^ConnectionError$"):
        RunHooks().on_pipeline_error(error, {}, None, None)
    mlflow.set_tracking_uri(before)

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
