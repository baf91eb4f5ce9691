"""A user's mistake ends a run with one message before it trains."""

import os
import re

import numpy as np
import pytest
from click import ClickException
from PIL import Image


@pytest.mark.parametrize(("pipeline", "params", "message"), [
    ("hierarchical", {"stage_1": {"dims": 3}}, "stage_1.dims is not a setting"),
    ("hierarchical", {"device": "tpu7"}, "device: expected auto, cpu, cuda"),
    ("hierarchical", {"sweep": "seed"}, "sweep=seed would have no effect"),
    ("hierarchical", {"ood": "mnist"}, "ood=mnist would have no effect"),
    ("hierarchical", {"dataset": "circle", "register_as": "x"}, "register_as: expected null"),
    ("ood", {}, "needs --params=ood="),
    ("ood", {"ood": "circle"}, "ood: expected images, got the points circle"),
    ("ood", {"ood": "photos"}, "ood: expected another dataset"),
    ("dimension", {"dataset": "circle"}, "--pipeline=dimension needs images or a table"),
    ("restore", {"dataset": "circle"}, "--pipeline=restore needs images, got dataset=circle"),
    ("restore", {"method": "EE-M", "charts": 2}, "needs a model without charts, got charts=2"),
])  # fmt: skip
def test_invalid_parameter_ends_a_run_before_it_starts(project, pipeline, params, message):
    with pytest.raises(ClickException, match=re.escape(message)):
        project.run(pipeline, **params)
    assert os.listdir(project.path / "data") == ["mlflow.db"]


def test_too_many_broken_images_end_a_run(project, tmp_path):
    for number in range(71):
        path = tmp_path / f"{number}.png"
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(path)
        if number >= 60:
            path.write_bytes(b"no image")
    with pytest.raises(ClickException, match="expected at most 10 broken images among 71, got 11"):
        project.run(dataset="folder", data={"path": str(tmp_path), "size": 8})


def test_command_line_prints_only_the_message(project):
    params = "dataset=folder,data.path=/no/such/pictures,data.size=8"
    code, output = project.kedro("run", "--env=test", f"--params={params}")
    assert code == 1
    assert "/no/such/pictures" in output.splitlines()[-1]
    assert "Traceback" not in output


@pytest.mark.parametrize(("arguments", "message"), [
    (["--env=test", "--params=method=H-XX"], "got H-XX. Change it with --params=method=<name>"),
    (["--env=tset"], "got tset. Change it with --env=<name>"),
    (["--env=test", "--pipeline=hierarchicl"], "pipeline=hierarchicl is not known. Known: data, "),
    (["--runner=ParallelRunner"], "--runner: expected SequentialRunner or ThreadRunner, got Par"),
    (["--env=test", "--nodes=phase_9.train"], "does not contain nodes named ['phase_9.train']"),
])  # fmt: skip
def test_unknown_name_is_reported(project, arguments, message):
    code, output = project.invoke("run", *arguments)
    assert code == 1
    assert message in output.splitlines()[-1]
