"""Estimates of the dimension and the advice, of a trained model."""

import pytest


@pytest.fixture(scope="module")
def run(project):
    return project.run("dimension", method="nested")


def test_the_advice_is_on_the_page_and_in_mlflow(run):
    found = run.load("dimension_metrics")
    page = run.path("dimension_report").read_text()
    assert found["advice"]["sentence"] in page
    assert "TwoNN" in page
    logged = run.mlflow.data.metrics["test.estimates.TwoNN"]
    assert logged == pytest.approx(found["estimates"]["TwoNN"]["value"])


def test_the_report_is_made_too(run):
    assert run.path("report").exists()
