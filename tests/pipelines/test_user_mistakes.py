"""A user's mistake ends a run with one message before it trains."""

import os
import re

import pytest
from click import ClickException

pytestmark = pytest.mark.pipeline


@pytest.mark.parametrize(
    ("pipeline", "params", "message"),
    [
        ("hierarchical", {"stage_1": {"dims": 3}}, "stage_1.dims is not a setting"),
        ("hierarchical", {"device": "tpu7"}, "device: expected auto, cpu, cuda"),
        ("hierarchical", {"charts": 2}, "charts"),
        (
            "hierarchical",
            {"method": "SoftFlow", "density": {"input_noise_min": 0.5}},
            "input_noise_min: expected less than",
        ),
        (
            "hierarchical",
            {"method": "NIF", "stage_1": {"dim": 24, "noise": 0.1}, "stage_2": {"dim": 24}},
            "stage_1.noise",
        ),
        ("ood", {"ood": "circle"}, "ood: expected images, got the points circle"),
        ("data", {"dataset": "table"}, "data.path: expected the path of a table"),
        ("data", {"dataset": "wine", "stage_1": {"dim": 14}}, "dim"),
        ("data", {"dataset": "wine", "data": {"size": 32}}, "data.size is not a setting"),
        ("data", {"dataset": "wine", "ood": "mnist"}, "ood: expected the path of a table"),
        ("data", {"dataset": "folder", "data": {"path": "new.csv"}}, "a table needs dataset=table"),
        ("data", {"data": {"condition": "label"}}, "condition: expected none with source=photos"),
        (
            "data",
            {"dataset": "mnist", "data": {"condition": "label"}, "charts": 2},
            "charts: expected 1 with data.condition, got 2",
        ),
        (
            "data",
            {"dataset": "mnist", "data": {"condition": "label"}, "ood": "fashion_mnist"},
            "ood: expected null with data.condition",
        ),
    ],
)
def test_invalid_parameter_ends_a_run_before_it_starts(project, pipeline, params, message):
    with pytest.raises(ClickException, match=re.escape(message)):
        project.run(pipeline, **params)
    # the columns of tables are recorded in 01_raw
    assert {*os.listdir(project.path / "data")} - {"01_raw"} == {"mlflow.db"}


def test_command_line_prints_only_the_message(project):
    params = "dataset=folder,data.path=/no/such/pictures,data.size=8"
    code, output = project.kedro("run", "--env=test", f"--params={params}")
    assert code == 1
    assert "/no/such/pictures" in output.splitlines()[-1]
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env=test", "--params=method=H-XX"], "got H-XX. Change it with --params=method=<name>"),
        (["--env=tset"], "got tset. Change it with --env=<name>"),
        (["--env=test", "--pipeline=hierarchicl"], "The pipelines are data, hierarchical, "),
    ],
)
def test_unknown_name_is_reported(project, arguments, message):
    code, output = project.invoke("run", *arguments)
    assert code == 1
    assert message in output.splitlines()[-1]
