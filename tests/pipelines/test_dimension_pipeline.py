"""The dimension pipeline: estimates of the dimension and advice."""

import pytest


@pytest.fixture(scope="module")
def run(project):
    return project.run("dimension", method="nested")


def test_advice_is_on_the_page_and_estimates_are_logged(run):
    found = run.load("dimension_metrics")
    page = run.path("dimension_report").read_text()
    assert found["advice"]["sentence"] in page
    assert "TwoNN" in page
    logged = run.mlflow.data.metrics["test.estimates.TwoNN"]
    assert logged == pytest.approx(found["estimates"]["TwoNN"]["value"])
    assert run.path("report").exists()
