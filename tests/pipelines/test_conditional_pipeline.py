"""Models that are conditional on a label or on columns, from the data to report and commands."""

import numpy as np
import pytest
import torch
from click import ClickException

from calibrated import conditional_rows
from data.source_files import write_idx
from submanifold import Predictor
from submanifold.common.errors import UserError
from submanifold.flows import context_of
from submanifold.models import Model
from submanifold.sklearn import ManifoldFlow

pytestmark = pytest.mark.pipeline


def test_every_part_of_a_labelled_run_is_given_the_label(project):
    path = write_idx(project.path / "idx", train=[0, 1, 2] * 20, test=[0, 1, 2] * 20)
    data = {
        "path": str(path),
        "size": 8,
        "margin": 0,
        "condition": "label",
        "counts": {"valid": 24},
    }
    run = project.run(
        dataset="mnist",
        method="H-MM",
        stage_1={"dim": 10},
        stage_2={"dim": 5},
        data=data,
        evaluation={"samples": 40},
    )
    train, u, samples = (run.load(name) for name in ("x_train", "stage_2.u_train", "samples"))
    assert train.context.tolist() == train.labels.tolist()
    assert np.array_equal(u.context, train.context)
    assert samples.context.shape == (40,)
    model = Model.load(run.path("hierarchy"))
    assert context_of(model) == {"classes": 3}
    assert model.data["condition"] == "label"
    metrics = run.load("metrics")
    assert 0 <= metrics["accuracy"]["value"] <= 1
    assert 0 <= metrics["calibration_error"]["value"] <= 1
    assert np.isfinite(metrics["bits_per_dim"]["value"])
    assert "Samples by class" in run.load("report")
    assert "--label=0" in run.load("report")
    with pytest.raises(UserError, match="got a conditional one"):
        ManifoldFlow.load(run.path("hierarchy"))
    assert run.load("illustrations")["by_class"].shape == (3, 8, 1, 8, 8)


def test_labels_must_be_complete(project):
    gap = write_idx(project.path / "gap", train=[0, 2] * 20, test=[0, 2] * 20)
    data = {"path": str(gap), "size": 8, "margin": 0, "condition": "label"}
    with pytest.raises(ClickException, match=r"all labels from 0 .*, got \[0, 2\]"):
        project.run("data", dataset="mnist", data=data)


def test_a_table_is_given_columns(project):
    frame, path = conditional_rows(300, 0), project.path / "given.csv"
    frame.to_csv(path, index=False)
    run = project.run(
        dataset="table",
        method="noise-conditional",
        density={"training": {"steps": 60}},
        stage_1={"dim": 1},
        data={"path": str(path), "condition": "age,dose"},
    )
    train, predictor = run.load("x_train"), Predictor.load(run.path("hierarchy"))
    assert (train.x.shape, train.context.shape) == ((240, 2), (240, 2))
    assert predictor.preprocessor.features == ("weight", "height")
    assert predictor.condition.features == ("age", "dose")
    x, context = (torch.from_numpy(np.array(each)) for each in (train.x, train.context))
    model = predictor.model
    assert model.log_prob(x, context).mean() > model.log_prob(x, context.flip(0)).mean()
    assert run.load("anomalies").column.isin(["weight", "height"]).all()
    # rows are more likely than the same ones with another age
    shuffled = frame.assign(age=frame["age"].to_numpy()[::-1])
    assert predictor.log_prob(frame).mean() > predictor.log_prob(shuffled).mean()
    assert f"submanifold sample {run.mlflow.info.run_name} new.csv" in run.text()
    with pytest.raises(ClickException, match="condition: expected columns of the table"):
        project.run("data", dataset="table", data={"path": str(path), "condition": "c3"})
