"""Mistakes end a run with one message before it trains."""

import re

import numpy as np
import pytest
from click import ClickException
from PIL import Image


@pytest.mark.parametrize(("params", "message"), [
    ({"stage_1": {"dims": 3}}, "stage_1.dims is not a setting"),
    ({"method": "PR-D"}, "--pipeline=hierarchical does not train method=PR-D"),
    ({"device": "tpu7"}, "device: expected auto, cpu, cuda"),
    ({"sweep": "seed"}, "sweep=seed would have no effect"),
    ({"ood": "mnist"}, "ood=mnist would have no effect"),
])  # fmt: skip
def test_invalid_parameter_ends_a_run_before_it_starts(project, params, message):
    with pytest.raises(ClickException, match=re.escape(message)):
        project.run(**params)
    assert not (project.path / "data").exists()


def write_images(folder, good, broken):
    for number in range(good + broken):
        path = folder / f"{number}.png"
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(path)
        if number >= good:
            path.write_bytes(b"no image")


def run_folder(project, path):
    return project.run(dataset="folder", data={"path": str(path), "size": 8})


def test_too_many_broken_images_end_a_run(project, tmp_path):
    write_images(tmp_path, good=60, broken=11)
    with pytest.raises(ClickException, match="expected at most 10 broken images among 71, got 11"):
        run_folder(project, tmp_path)


def test_command_line_prints_only_the_message(project):
    params = "dataset=folder,data.path=/no/such/pictures,data.size=8"
    code, output = project.kedro("run", "--env=test", f"--params={params}")
    assert code == 1
    assert "/no/such/pictures" in output.splitlines()[-1]
    assert "Traceback" not in output
    assert "None" not in output


@pytest.mark.parametrize(("arguments", "message"), [
    (["--env=test", "--params=method=H-XX"], "method: expected one of density-first"),
    (["--env=tset"], "--env: expected one of base, local, paper, test"),
    (["--env=test", "--pipeline=hierarchicl"], "pipeline=hierarchicl is not known. Known: data, "),
    (["--env=test", "--nodes=phase_9.train"], "does not contain nodes named ['phase_9.train']"),
])  # fmt: skip
def test_unknown_name_is_reported(project, arguments, message):
    code, output = project.typed("run", *arguments)
    assert code == 1
    assert message in output.splitlines()[-1]
