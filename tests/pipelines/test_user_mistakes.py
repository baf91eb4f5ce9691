"""A user's mistake ends a run with one message before it trains."""

import os
import re

import pytest
from click import ClickException


@pytest.mark.parametrize(("pipeline", "params", "message"), [
    ("hierarchical", {"stage_1": {"dims": 3}}, "stage_1.dims is not a setting"),
    ("hierarchical", {"device": "tpu7"}, "device: expected auto, cpu, cuda"),
    ("ood", {"ood": "circle"}, "ood: expected images, got the points circle"),
    ("dimension", {"dataset": "circle"}, "--pipeline=dimension: expected images or a table"),
])  # fmt: skip
def test_invalid_parameter_ends_a_run_before_it_starts(project, pipeline, params, message):
    with pytest.raises(ClickException, match=re.escape(message)):
        project.run(pipeline, **params)
    assert os.listdir(project.path / "data") == ["mlflow.db"]


def test_command_line_prints_only_the_message(project):
    params = "dataset=folder,data.path=/no/such/pictures,data.size=8"
    code, output = project.kedro("run", "--env=test", f"--params={params}")
    assert code == 1
    assert "/no/such/pictures" in output.splitlines()[-1]
    assert "Traceback" not in output


@pytest.mark.parametrize(("arguments", "message"), [
    (["--env=test", "--params=method=H-XX"], "got H-XX. Change it with --params=method=<name>"),
    (["--env=tset"], "got tset. Change it with --env=<name>"),
    (["--env=test", "--pipeline=hierarchicl"], "Failed to find the pipeline named 'hierarchicl'"),
    (["--runner=ParallelRunner"], "--runner: expected RankRunner, the default, got Par"),
])  # fmt: skip
def test_unknown_name_is_reported(project, arguments, message):
    code, output = project.invoke("run", *arguments)
    assert code == 1
    assert message in output.splitlines()[-1]
