"""The comparison of finished runs: rows, numbers and pictures."""

import re

import pandas as pd
import pytest
from click import ClickException
from PIL import Image

from submanifold.pipelines.compare.nodes import differing_settings


@pytest.fixture(scope="module")
def runs(project):
    """Two trainings; the second has another seed and another weight, too."""
    return {
        "PR-D": project.run("joint", until="metrics", method="PR-D"),
        "H-MM": project.run(until="metrics", seed=1, stage_1={"reconstruction": {"weight": 30}}),
    }


@pytest.fixture(scope="module")
def comparison(project, runs):
    """The comparison, after runs that are not finished, or not the newest, or no trainings."""
    params = runs["PR-D"].mlflow.data.params
    for status in ("FAILED", "KILLED", "RUNNING"):
        make_run(project, status, params)
    measured_before = {**params, "keys.run": "photos-PR-D-by-an-older-version"}
    make_run(project, "FINISHED", measured_before, start_time=1)
    make_run(project, "FINISHED", {**params, "keys.model": "photos-PR-D-data-alone"}, figures={})
    return project.run("compare")


def make_run(project, status, params, figures=None, **given):
    """Log a run without running it."""
    client = project.mlflow_client
    experiment = client.get_experiment_by_name("submanifold").experiment_id
    run = client.create_run(experiment, **given).info.run_id
    for name, value in params.items():
        client.log_param(run, name, value)
    for name, value in ({"parameters": 9} if figures is None else figures).items():
        client.log_metric(run, f"test.{name}", value)
    client.set_terminated(run, status)
    return run


def row_of(table, run):
    (row,) = table[table["run_id"] == run.mlflow.info.run_id].to_dict("records")
    return row


def test_the_rows_are_the_newest_finished_runs(runs, comparison):
    shown = comparison.load("comparison_table")["run_id"].tolist()
    assert shown == [runs[name].mlflow.info.run_id for name in ("H-MM", "PR-D")]


@pytest.mark.parametrize("name", ["PR-D", "H-MM"])
def test_a_row_contains_the_metrics_of_its_run(runs, comparison, name):
    table, metrics = comparison.load("comparison_table"), runs[name].load("metrics")
    row = row_of(table, runs[name])
    assert row["method"] == runs[name].mlflow.data.params["method"]
    assert row["dims"] == " → ".join(map(str, metrics["dims"]))
    assert row["seed"] == runs[name].params.get("seed", 0)
    assert row["seconds.training"] == metrics["seconds"]["training"]
    for measure in ("bits_per_dim", "mse", "stage_1_mse", "sliced_wasserstein"):
        shown = [row[f"{measure}{end}"] for end in ("", "_low", "_high")]
        assert shown == [metrics[measure][end] for end in ("value", "low", "high")]
    assert "fid" not in row, "no run has it"


def test_a_row_lists_settings_that_differ_between_runs(runs, comparison):
    table = comparison.load("comparison_table")
    assert row_of(table, runs["H-MM"])["differs"].split("; ") == [
        *("stage_1.reconstruction.penalty=mse", "stage_1.reconstruction.weight=30"),
    ]
    assert row_of(table, runs["PR-D"])["differs"].split("; ") == [
        *("stage_1.reconstruction.delta=0.1", "stage_1.reconstruction.penalty=huber"),
        "stage_1.reconstruction.weight=300",
    ]


def test_equal_numbers_and_missing_stages_do_not_differ():
    settings = [
        {"method": "a", "weight": "300", "rate": "1e-05", "stage_1.dim": "9", "data.size": "8"},
        {"method": "b", "weight": "300.0", "rate": "1e-4", "stage_1.dim": "8", "stage_1.c": "0.5"},
        {"method": "b", "weight": "3e2", "rate": "1e-4", "stage_1.dim": "8", "stage_2.c": "1"},
    ]
    assert differing_settings(pd.DataFrame(settings)) == [
        *("data.size=8; rate=1e-05", "rate=0.0001; stage_1.c=0.5", "rate=0.0001"),
    ]


def test_the_page_is_self_contained_and_shows_samples_by_seed(runs, comparison):
    page = comparison.load("comparison")
    assert not re.search(r"https?://|<link|<script src", page)
    assert page.count("<tr id=") == page.count("<figure>") == 2
    assert page.index("Samples, seed 0") < page.index("Samples, seed 1")
    bits = runs["PR-D"].load("metrics")["bits_per_dim"]
    assert "{value:.3f}<small>[{low:.3f}, {high:.3f}]".format(**bits) in page


def test_a_comparison_is_an_mlflow_run_without_metrics(project, comparison):
    run, client = comparison.mlflow, project.mlflow_client
    assert (run.info.run_name, run.info.status) == ("photos-compare", "FINISHED")
    assert run.data.params == {"dataset": "photos"}
    assert run.data.metrics == {}
    artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert artifacts == {"comparison.html", "runs.csv"}


def test_runs_without_artifacts_keep_their_numbers(project, runs, comparison):
    before = comparison.load("comparison_table")
    artifacts = project.path / "mlartifacts"
    try:
        moved = artifacts.rename(project.path / "elsewhere")
        # what a training needs does not matter here: method, device
        again = project.run("compare", method="PR-D", device="cuda:99")
    finally:
        if artifacts.exists():
            (artifacts / again.mlflow.info.run_id).rename(moved / again.mlflow.info.run_id)
            artifacts.rmdir()
        moved.rename(artifacts)
    table = again.load("comparison_table")
    assert set(table["dims"]) == {"–"}
    assert sorted(table["mse"]) == sorted(before["mse"])
    assert again.load("comparison").count("No samples in MLflow") == 2


def test_runs_on_manifolds_are_compared_with_the_truth(project, runs, tmp_path):
    figures = {"parameters": 9, "divergence": 0.25, "sample_distance": 0.5}
    params = {"dataset": "circle", "method": "PR-D", "seed": 0}
    params |= {"keys.model": "circle-PR-D-1", "keys.run": "circle-PR-D-2"}
    run = make_run(project, "FINISHED", params, figures)
    Image.new("RGB", (20, 5)).save(tmp_path / "manifold.png")
    project.mlflow_client.log_artifact(run, str(tmp_path / "manifold.png"))
    comparison = project.run("compare", dataset="circle")
    (row,) = comparison.load("comparison_table").to_dict("records")
    assert {name: row[name] for name in figures} == figures
    assert "mse" not in row
    page = comparison.load("comparison")
    assert "KL from the truth (nats)" in page
    assert "data:image/png;base64" in page


def test_bits_may_be_negative_or_missing(project):
    params = {"dataset": "sphere", "method": "PR-D"}
    for seed, figures in enumerate([{"bits_per_dim": -1.5}, {}]):
        keys = {"keys.model": f"sphere-{seed}", "keys.run": f"sphere-{seed}"}
        make_run(
            project, "FINISHED", {**params, **keys, "seed": seed}, {"parameters": 9, **figures}
        )
    comparison = project.run("compare", dataset="sphere")
    bits = comparison.load("comparison_table")["bits_per_dim"].tolist()
    assert bits == pytest.approx([-1.5, float("nan")], nan_ok=True)
    page = comparison.load("comparison")
    assert 'data-value="-1.5">-1.500</td>' in page
    assert 'data-value="">–</td>' in page


def test_a_data_set_without_runs_is_an_error(project, runs, new_project):
    with pytest.raises(ClickException) as caught:
        project.run("compare", dataset="torus")
    assert re.search(r"finished runs \(.*photos.*\), got torus", str(caught.value))
    assert "kedro run --pipeline=hierarchical --params=dataset=torus" in str(caught.value)
    with pytest.raises(ClickException, match="there are none"):
        new_project().run("compare")
