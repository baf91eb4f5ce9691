"""The table and the plot of a sweep."""

import json

import pandas as pd
import pytest

from submanifold.pipelines.sweep.nodes import draw_sweep, tag_run, write_sweep
from submanifold.runs.store import connect


def collect(project, folder, parameter, *runs):
    """Log runs of a sweep in MLflow, and return their table and plot."""
    client = project.mlflow_client
    with project.session() as session:
        connect(session.load_context().config_loader["mlflow"])
        experiment = client.get_experiment_by_name("submanifold").experiment_id
        for number, (value, dims, metrics) in enumerate(runs):
            run, key = client.create_run(experiment).info.run_id, f"{parameter}-{number}"
            params = {"keys.run": key, "keys.model": key, "seed": 0, parameter: value}
            for name, each in params.items():
                client.log_param(run, name, each)
            given = {"stage_1": {"flow": {"layers": 2}}, "training": {"steps": 9}, "name": "a"}
            client.set_tag(run, "kedro_command", "kedro run --pipeline=hierarchical")
            client.set_tag(run, "runtime_params", str(given | {parameter: value}))
            for name, each in {"parameters": 9, "mse": 0.1, **metrics}.items():
                client.log_metric(run, f"test.{name}", each)
            (folder / "metrics.json").write_text(json.dumps({"dims": dims}))
            client.log_artifact(run, str(folder / "metrics.json"))
            tag_run(key, f"photos-H-MM-{parameter}")
    table = project.run("sweep", until="sweep_table", sweep=parameter).load("sweep_table")
    return table, draw_sweep(table, parameter, {"pca_mse": [0.3, 0.2, 0.1]})


def test_missing_bits_are_nan(project, tmp_path):
    bits = {"bits_per_dim": -1.5, "bits_per_dim.low": -2}
    runs = (0.1, [2, 1], bits), (0.3, [2, 1], {})
    table, figure = collect(project, tmp_path, "stage_1.delta", *runs)
    assert table["bpd"].tolist() == pytest.approx([-1.5, float("nan")], nan_ok=True)
    assert table["bpd_low"][0] == -2
    assert pd.isna(table["bpd_high"]).all()
    assert {"0.1", "0.3"} <= {trace.name for trace in figure.data}
    page = write_sweep(table, figure, "stage_1.delta", "photos", "H-MM", tmp_path)
    assert "There are too few different results" in page
    assert "<script src" not in page


def test_dimension_is_that_of_the_model(project, tmp_path):
    metrics = {"bits_per_dim": 2, "mse": 2}
    runs = (1, [2, 1], metrics), (None, [2, 2], metrics)
    table, figure = collect(project, tmp_path, "stage_1.dim", *runs)
    assert table["dim"].tolist() == [1, 2]
    assert table["value"].tolist() == ["1", "none"]
    assert {"1", "none"} <= {trace.name for trace in figure.data}


def test_page_names_the_best_values_and_links_reports(project, tmp_path):
    runs = [(number, [3, number], {"bits_per_dim": 4 - number, "mse": 0.1 * number,
                                   "mse.low": 0.1 * number - 0.06, "mse.high": 0.1 * number + 0.06})
            for number in (1, 2)]  # fmt: skip
    table, figure = collect(project, tmp_path, "stage_2.dim", *runs)
    report = tmp_path / "stage_2.dim-1" / "report.html"
    report.parent.mkdir()
    report.touch()
    page = write_sweep(table, figure, "stage_2.dim", "photos", "H-MM", tmp_path)
    best = "stage_2.dim = 2 has the best BPD, 2.000. stage_2.dim = 1 has the best MSE of encoder"
    assert f"{best} projections, 0.100 [" in page
    assert "the interval of stage_2.dim = 2 overlaps with it" in page
    assert page.count('href="../stage_2.dim-1/report.html"') == page.count('href="../') == 1
    assert "submanifold score data/06_models/stage_2.dim-0 PICTURES" in page
    params = "stage_1.flow.layers=2,training.steps=9"
    assert f"submanifold sweep stage_2.dim VALUE VALUE --params={params}" in page
    page = write_sweep(
        table.assign(points=True, command=None), figure, "stage_2.dim", "a", "b", tmp_path
    )
    assert "Next steps" not in page
