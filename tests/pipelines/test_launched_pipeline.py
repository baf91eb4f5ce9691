"""A session whose phases are trained by two processes."""

import pytest


@pytest.mark.slow
def test_two_processes_have_the_results_of_one(new_project):
    one = new_project().run(method="nested")
    project, launch = new_project(), {"processes": 2}
    two = project.run(method="nested", launch=launch)
    assert two.steps == one.steps
    metrics, expected = two.load("metrics"), one.load("metrics")
    for name, tolerance in (("bits_per_dim", 1e-3), ("mse", 2e-2)):
        assert metrics[name]["value"] == pytest.approx(expected[name]["value"], rel=tolerance)
    # cache keys do not depend on the number of processes
    assert project.run(method="nested").steps == dict.fromkeys(one.steps, 0)
    assert two.curve("density.train.loss").keys() == one.curve("density.train.loss").keys() != set()
