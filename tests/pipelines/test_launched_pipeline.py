"""The whole pipeline with phases that two processes train."""

import pytest
from click import ClickException

TWO = {"launch": {"processes": 2}}


@pytest.mark.slow
def test_two_processes_make_the_run_of_one(new_project):
    one, two = new_project(), new_project()
    alone, shared = one.run(method="nested"), two.run(method="nested", **TWO)
    assert shared.steps == alone.steps
    mine, theirs = shared.load("metrics"), alone.load("metrics")
    for name, within in (("bits_per_dim", 1e-3), ("mse", 2e-2)):
        assert mine[name]["value"] == pytest.approx(theirs[name]["value"], rel=within)
    # which artifacts there are does not depend on who has made them
    assert two.run(method="nested").steps == dict.fromkeys(alone.steps, 0)
    curves = [
        project.mlflow_client.get_metric_history(run.mlflow.info.run_id, "phase_1.train.loss")
        for project, run in ((one, alone), (two, shared))
    ]
    assert [point.step for point in curves[1]] == [point.step for point in curves[0]]


@pytest.mark.parametrize(("params", "said"), [
    ({"launch": {"processes": 0}}, "launch.processes=0 cannot be used"),
    ({"launch": {"process": 2}}, "launch.process is not a setting; known: processes"),
    ({"launch": {"parts": 0}}, "launch.grad_accumulation_steps=0 cannot be used"),
    ({"launch": {"machines": 2}}, "launch.machines=2 cannot be used without launch.address"),
    ({"launch": {"address": "here:29400"}}, "launch.address would have no effect"),
    ({"launch": {"machines": 2, "address": "here"}}, "launch.address=here cannot be used"),
    ({"launch": 2}, "launch=2 cannot be used"),
    ({"launch": {"processes": 3}}, "batch_size=16 cannot be shared by launch.processes=3"),
    ({"launch": {"processes": 2, "parts": 3}},
     "by launch.processes=2 x launch.grad_accumulation_steps=3"),
])  # fmt: skip
def test_a_launch_that_cannot_work_is_named(project, params, said):
    with pytest.raises(ClickException, match=said):
        project.run(method="nested", **params)
