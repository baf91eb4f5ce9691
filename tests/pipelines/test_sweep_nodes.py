"""The points of a sweep, whatever a run has measured."""

import json

import mlflow
import pandas as pd
import pytest

from submanifold.pipelines.sweep.nodes import draw_sweep, tag_run


@pytest.fixture
def points(new_project, tmp_path):
    """Make runs of a sweep by hand: its table and its figure."""
    project = new_project()

    def collect(parameter, *runs):
        client = project.mlflow_client
        with project.session() as session:
            session.load_context()  # kedro-mlflow makes the experiment
            experiment = client.get_experiment_by_name("submanifold").experiment_id
            for number, (value, dims, metrics) in enumerate(runs):
                run = client.create_run(experiment).info.run_id
                params = {"keys.run": f"run-{number}", "keys.model": f"model-{number}", "seed": 0}
                for name, each in {**params, "stage_1.dim": dims[1], parameter: value}.items():
                    client.log_param(run, name, each)
                for name, each in {"parameters": 9, "mse": 0.1, **metrics}.items():
                    client.log_metric(run, f"test.{name}", each)
                (tmp_path / "metrics.json").write_text(json.dumps({"dims": dims}))
                client.log_artifact(run, str(tmp_path / "metrics.json"))
                tag_run(f"run-{number}", f"photos-H-MM-{parameter}")
        table = project.run("sweep", until="sweep_table", sweep=parameter).load("sweep_table")
        return table, draw_sweep(table, parameter, {"pca_mse": [0.3, 0.2, 0.1]})

    yield collect
    mlflow.set_tracking_uri(None)


def test_missing_bits_are_nan(points):
    table, figure = points(
        "stage_1.delta",
        (0.1, [2, 1], {"bits_per_dim": -1.5, "bits_per_dim.low": -2}),
        (0.3, [2, 1], {}),
    )
    assert table["bpd"].tolist() == pytest.approx([-1.5, float("nan")], nan_ok=True)
    assert table["bpd_low"][0] == -2
    assert pd.isna(table["bpd_high"]).all()
    assert {"0.1", "0.3"} <= {trace.name for trace in figure.data}


def test_the_dimension_is_that_of_the_model(points):
    metrics = {
        f"{name}{end}": 2 for name in ("bits_per_dim", "mse") for end in ("", ".low", ".high")
    }
    table, figure = points("stage_1.dim", (1, [2, 1], metrics), (None, [2, 2], metrics))
    assert table["dim"].tolist() == [1, 2]
    assert table["value"].tolist() == ["1", "none"]
    assert {"1", "none"} <= {trace.name for trace in figure.data}
