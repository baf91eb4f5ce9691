"""The table and the plot of a sweep."""

import json

import pandas as pd
import pytest

from submanifold.pipelines.sweep.nodes import draw_sweep, tag_run


def collect(project, folder, parameter, *runs):
    """Log runs of a sweep in MLflow, and return their table and plot."""
    client = project.mlflow_client
    with project.session() as session:
        session.load_context()  # creates the MLflow experiment
        experiment = client.get_experiment_by_name("submanifold").experiment_id
        for number, (value, dims, metrics) in enumerate(runs):
            run, key = client.create_run(experiment).info.run_id, f"{parameter}-{number}"
            params = {"keys.run": key, "keys.model": key, "seed": 0, parameter: value}
            for name, each in params.items():
                client.log_param(run, name, each)
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


def test_dimension_is_that_of_the_model(project, tmp_path):
    metrics = {"bits_per_dim": 2, "mse": 2}
    runs = (1, [2, 1], metrics), (None, [2, 2], metrics)
    table, figure = collect(project, tmp_path, "stage_1.dim", *runs)
    assert table["dim"].tolist() == [1, 2]
    assert table["value"].tolist() == ["1", "none"]
    assert {"1", "none"} <= {trace.name for trace in figure.data}
