"""The comparison of finished runs: the table and the page."""

import re

import pandas as pd
import pytest
from click import ClickException
from PIL import Image

from submanifold.evaluation.metrics import METRICS
from submanifold.pipelines.compare import sections
from submanifold.pipelines.compare.nodes import differing_settings


@pytest.fixture(scope="module")
def runs(project):
    """Two runs, which differ in the method, the seed and the weight."""
    weight = {"reconstruction": {"weight": 30}}
    return {
        "PR-D": project.run("joint", until="metrics", method="PR-D"),
        "H-MM": project.run(until="metrics", seed=1, stage_1=weight),
    }


@pytest.fixture(scope="module")
def comparison(project, runs):
    """The comparison, with runs that are not finished, not evaluated, or not the newest."""
    params = runs["PR-D"].mlflow.data.params
    for status in ("FAILED", "KILLED", "RUNNING"):
        log_run(project, params, {"parameters": 9}, status)
    earlier = {**params, "keys.run": "photos-PR-D-earlier"}
    log_run(project, earlier, {"parameters": 9}, start_time=1)
    log_run(project, {**params, "keys.model": "photos-PR-D-data"}, {})
    return project.run("compare")


def log_run(project, params, metrics, status="FINISHED", **given):
    """Create an MLflow run without running a pipeline."""
    client = project.mlflow_client
    experiment = client.get_experiment_by_name("submanifold").experiment_id
    run = client.create_run(experiment, **given).info.run_id
    for name, value in params.items():
        client.log_param(run, name, value)
    for name, value in metrics.items():
        client.log_metric(run, f"test.{name}", value)
    client.set_terminated(run, status)
    return run


def test_table_contains_the_newest_finished_runs(runs, comparison):
    table = comparison.load("comparison_table")
    assert table["run_id"].tolist() == [runs[n].mlflow.info.run_id for n in ("H-MM", "PR-D")]
    for (_, row), run in zip(table.iterrows(), (runs["H-MM"], runs["PR-D"]), strict=True):
        metrics = run.load("metrics")
        assert row["method"] == run.mlflow.data.params["method"]
        assert row["dims"] == " → ".join(map(str, metrics["dims"]))
        assert row["seed"] == run.params.get("seed", 0)
        assert row["seconds.training"] == metrics["seconds"]["training"]
        for name in ("bits_per_dim", "mse", "stage_1_mse", "sliced_wasserstein"):
            values = [row[f"{name}{end}"] for end in ("", "_low", "_high")]
            assert values == [metrics[name][end] for end in ("value", "low", "high")]
    assert "fid" not in table, "no run has it"
    assert table["differs"].tolist() == [
        "stage_1.reconstruction.penalty=mse; stage_1.reconstruction.weight=30.0",
        "stage_1.reconstruction.delta=0.1; stage_1.reconstruction.penalty=huber; "
        "stage_1.reconstruction.weight=300.0",
    ]


def test_settings_of_missing_stages_or_phases_do_not_differ():
    settings = [
        {"method": "a", "charts": "3", "stage_1.dim": "9", "name": "first"},
        {"method": "b", "charts": "1", "stage_1.dim": "8", "stage_1.noise": "0.5"},
        {"method": "b", "charts": "1", "stage_1.dim": "8", "code_flow.stages": "[2]"},
    ]
    assert differing_settings(pd.DataFrame(settings)) == [
        *("charts=3", "charts=1; stage_1.noise=0.5", "charts=1")
    ]


def test_flows_are_the_first_differing_settings():
    settings = [{"charts": str(n), "stage_1.flow.type": f"flow {n}"} for n in (1, 2)]
    assert differing_settings(pd.DataFrame(settings))[0] == "stage_1.flow.type=flow 1; charts=1"


def test_page_is_self_contained_and_shows_samples_by_seed(runs, comparison):
    page = comparison.load("comparison")
    joint, hierarchical = ".*method=PR-D", "[^<]*stage_1.reconstruction.weight=30"
    command = rf"submanifold run --pipeline=(joint{joint}|hierarchical{hierarchical})"
    assert re.search(command, page), re.findall("submanifold run.*", page)
    assert not re.search(r"https?://|<link (?!rel=.icon)|<script src", page)
    assert page.count("<tr id=") == page.count("(<a href=") == 2
    assert page.index("Samples, seed 0") < page.index("Samples, seed 1")
    bits = runs["PR-D"].load("metrics")["bits_per_dim"]
    value, _, ends = METRICS["bits_per_dim"].write(bits).partition(" ")
    assert f"{value}<small>{ends}</small>" in page
    run = comparison.mlflow
    assert (run.info.run_name, run.info.status) == ("photos-compare", "FINISHED")
    assert (run.data.params, run.data.metrics) == ({"dataset": "photos"}, {})
    assert comparison.artifacts == {"comparison.html", "runs.csv"}


def test_conclusion_names_the_best_runs_overlaps_and_the_effect_of_seeds():
    rows = [("a", 0, 3.0, 0.02), ("a", 1, 3.1, 0.02), ("b", 0, 3.5, 0.01)]
    table = pd.DataFrame([
        {"name": f"{method}-{seed}", "method": method, "dims": "9", "seed": seed, "differs": None,
         "bits_per_dim": bits, "bits_per_dim_low": bits - 0.06, "bits_per_dim_high": bits + 0.06,
         "mse": mse, "mse_low": mse - 0.001, "mse_high": mse + 0.001,
         "encoder_mse": mse}
        for method, seed, bits, mse in rows
    ])  # fmt: skip
    metrics = sections.headlines(table)
    bits, error, seeds = sections.conclusion(table, metrics)
    assert bits.startswith(
        "a-0 has the best BPD, 3.000 [2.940, 3.060]; the interval of a-1 overlaps"
    )
    assert error == "b-0 has the best MSE of encoder projections, 0.0100 [0.0090, 0.0110]."
    differ = "differ by up to 0.1 (BPD) and 0 (MSE of encoder projections)"
    assert seeds == f"Runs that differ only in the seed {differ}."
    assert sections.sort_runs(table[::-1], metrics)["name"].tolist() == ["a-0", "a-1", "b-0"]
    assert list(sections.points(table)) == ["1. a-0 (a)", "2. a-1 (a)", "3. b-0 (b)"]


def test_finished_reports_are_linked(runs, comparison, project):
    project.run("joint", method="PR-D")
    key = runs["PR-D"].mlflow.data.params["keys.run"]
    page = project.run("compare").load("comparison")
    assert page.count(f'href="../{key}/report.html"') == 2


def test_runs_without_artifacts_keep_their_numbers(project, comparison):
    before = comparison.load("comparison_table")
    artifacts = project.path / "data" / "mlartifacts"
    try:
        moved = artifacts.rename(project.path / "moved")
        # settings of trainings have no effect
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


def test_runs_on_points_show_the_truth_and_missing_or_negative_bits(project, runs, tmp_path):
    metrics = {"parameters": 9, "divergence": 0.25, "sample_distance": 0.5}
    params = {"dataset": "circle", "method": "PR-D"}
    Image.new("RGB", (20, 5)).save(tmp_path / "manifold.png")
    for seed, bits in enumerate([{"bits_per_dim": -1.5}, {}]):
        keys = {"seed": seed, "keys.model": f"circle-{seed}", "keys.run": f"circle-{seed}"}
        run = log_run(project, params | keys, metrics | bits)
        project.mlflow_client.log_artifact(run, str(tmp_path / "manifold.png"))
    comparison = project.run("compare", dataset="circle")
    table, page = comparison.load("comparison_table"), comparison.load("comparison")
    assert {name: table[name][0] for name in metrics} == metrics
    assert table["bits_per_dim"].tolist() == pytest.approx([-1.5, float("nan")], nan_ok=True)
    assert "mse" not in table
    assert "KL from the truth (nats)" in page
    assert page.count("data:image/png;base64") == 2
    assert 'data-value="-1.5">-1.500</td>' in page
    assert 'data-value="">–</td>' in page


def test_dataset_without_runs_is_rejected(project, runs):
    with pytest.raises(ClickException) as caught:
        project.run("compare", dataset="torus")
    assert re.search(r"finished runs in sqlite.* \(.*photos\), got torus", str(caught.value))
