"""The whole pipeline with phases that two processes train."""

import pytest

TWO = {"launch": {"processes": 2}}


@pytest.mark.slow
def test_two_processes_reproduce_the_run_of_one(new_project):
    one, two = new_project(), new_project()
    alone, shared = one.run(method="nested"), two.run(method="nested", **TWO)
    assert shared.steps == alone.steps
    mine, theirs = shared.load("metrics"), alone.load("metrics")
    for name, within in (("bits_per_dim", 1e-3), ("mse", 2e-2)):
        assert mine[name]["value"] == pytest.approx(theirs[name]["value"], rel=within)
    # cache keys do not depend on the number of processes
    assert two.run(method="nested").steps == dict.fromkeys(alone.steps, 0)
    curves = [
        project.mlflow_client.get_metric_history(run.mlflow.info.run_id, "stage_1.train.loss")
        for project, run in ((one, alone), (two, shared))
    ]
    assert [point.step for point in curves[1]] == [point.step for point in curves[0]]
