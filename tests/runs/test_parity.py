"""Predictor, command, served model and estimator have equal scores, codes and projections."""

import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from submanifold import Predictor
from submanifold.cli import cli
from submanifold.runs.pyfunc import log_model
from submanifold.sklearn import ManifoldFlow

COLUMNS = ["height", "weight", "age"]


def people(count, seed):
    rows = np.random.default_rng(seed).normal(size=(count, 3)) * [9, 12, 20] + [170, 70, 40]
    rows[:, 1] += rows[:, 0] - 170
    return pd.DataFrame(rows, columns=COLUMNS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the file of an estimator, and a table of new rows."""
    folder = tmp_path_factory.mktemp("parity")
    ManifoldFlow(2, steps=6, random_state=0).fit(people(300, 0)).save(folder / "model.safetensors")
    people(20, 1).to_csv(folder / "rows.csv", index=False)
    return folder


def by_command(folder, task):
    options = [] if task == "score" else ["--nearest"]
    out = folder / f"{task}.csv"
    arguments = [task, folder / "model.safetensors", folder / "rows.csv", "--out", out, *options]
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return pd.read_csv(out)


@pytest.fixture(scope="module")
def results(folder):
    """The p-value, the coordinates on the manifold and the projection of each row, by interface."""
    rows, path = pd.read_csv(folder / "rows.csv"), folder / "model.safetensors"
    predictor, flow = Predictor.load(path), ManifoldFlow.load(path)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.create_experiment("parity", artifact_location=str(folder / "artifacts"))
    mlflow.set_experiment("parity")
    with mlflow.start_run():
        log_model(path, "parity")
    served = mlflow.pyfunc.load_model("models:/parity/1")
    mlflow.set_tracking_uri(before)
    codes = served.predict(rows, params={"task": "encode", "nearest": True})
    projected = served.predict(rows, params={"task": "project", "nearest": True})
    return {
        "predictor": (
            predictor.score(rows)["p_value"],
            predictor.encode(rows, "nearest")[0],
            predictor.project(rows, nearest=True)[0][COLUMNS],
        ),
        "command": (
            by_command(folder, "score")["p_value"],
            by_command(folder, "encode")[["u0", "u1"]],
            by_command(folder, "project")[COLUMNS],
        ),
        "served model": (
            served.predict(rows)["p_value"],
            pd.DataFrame(codes)[["u0", "u1"]],
            pd.DataFrame(projected)[COLUMNS],
        ),
        "estimator": (flow.p_values(rows), flow.transform(rows), flow.project(rows)),
    }


@pytest.mark.parametrize("interface", ["command", "served model", "estimator"])
def test_interfaces_agree(results, interface):
    for found, expected in zip(results[interface], results["predictor"], strict=True):
        assert np.asarray(found).std() > 0
        # the estimator searches nearest points in double precision
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
