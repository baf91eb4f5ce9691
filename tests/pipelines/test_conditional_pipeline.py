"""Models that are conditional on a label or on columns, from the data to report and commands."""

import numpy as np
import pandas as pd
import pytest
import torch
from click import ClickException
from click.testing import CliRunner

from data.source_files import write_idx
from submanifold import Predictor, cli
from submanifold.common.errors import UserError
from submanifold.data.tables import Preprocessor
from submanifold.flows import context_of
from submanifold.models import Model
from submanifold.sklearn import ManifoldFlow

LABELS = [n % 3 for n in range(60)]


@pytest.fixture(scope="module")
def mnist(project):
    """60 training and 60 test images of three labels, which are the first pixel."""
    return write_idx(project.path / "idx", train=LABELS, test=LABELS)


@pytest.fixture(scope="module")
def run(project, mnist):
    data = {"path": str(mnist), "size": 8, "margin": 0, "condition": "label",
            "counts": {"valid": 24}}  # fmt: skip
    return project.run(dataset="mnist", method="H-MM", stage_1={"dim": 10}, stage_2={"dim": 5},
                       data=data, evaluation={"samples": 40})  # fmt: skip


def test_every_part_of_a_labelled_run_is_given_the_label(run):
    train, u, samples = (run.load(name) for name in ("x_train", "stage_2.u_train", "samples"))
    assert train.context.tolist() == run.load("labels")["train"]
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


def test_labels_must_be_known_and_complete(project, tmp_path, mnist):
    gap = write_idx(tmp_path / "gap", train=[0, 2] * 20, test=[0, 2] * 20)
    for path, more, message in [
        (gap, {}, "all labels from 0 to a largest one, got 0, 2"),
        (mnist, {"charts": 2}, "charts: expected 1 with data.condition, got 2"),
        (mnist, {"ood": "fashion_mnist"}, "ood: expected null with data.condition"),
    ]:
        data = {"path": str(path), "size": 8, "margin": 0, "condition": "label"}
        with pytest.raises(ClickException, match=message):
            project.run("data", dataset="mnist", data=data, **more)
    with pytest.raises(ClickException, match="condition: expected none with source=photos"):
        project.run("data", dataset="photos", data={"condition": "label"})


def test_a_table_is_given_columns(project):
    rng = np.random.default_rng(0)
    c = rng.normal(size=(300, 2))
    y = c @ np.array([[1.0, -1], [0.5, 2], [0, 1]]).T + 0.1 * rng.normal(size=(300, 3))
    frame = pd.DataFrame(np.concatenate([c, y], 1), columns=["c1", "c2", "y1", "y2", "y3"])
    path = project.path / "given.csv"
    frame.to_csv(path, index=False)
    run = project.run(
        dataset="table", method="noise-conditional", density={"training": {"steps": 60}},
        stage_1={"dim": 2}, data={"path": str(path), "condition": "c1|c2"},
    )  # fmt: skip
    train, model = run.load("x_train"), Model.load(run.path("hierarchy"))
    assert train.shape == (240, 3)
    assert train.context.shape == (240, 2)
    assert Preprocessor.from_dict(model.data["table"]).features == ("y1", "y2", "y3")
    given = Preprocessor.from_dict(model.data["condition"])
    assert given.features == ("c1", "c2")
    x, context = (torch.from_numpy(np.array(each)) for each in (train, train.context))
    assert model.log_prob(x, context).mean() > model.log_prob(x, context.flip(0)).mean()
    assert run.load("anomalies").column.isin(["y1", "y2", "y3"]).all()
    out = project.path / "given-scores.csv"
    result = CliRunner().invoke(
        cli.cli, ["score", str(run.path("hierarchy")), str(path), "--out", str(out)]
    )
    assert result.exit_code == 0, result.output
    # rows of c and of their y are more likely than the same y with another c
    shuffled = frame.assign(c1=frame["c1"].to_numpy()[::-1])
    assert pd.read_csv(out)["log_prob"].mean() > Predictor(model).score(shuffled)["log_prob"].mean()
    assert "sample" in run.load("report")
    with pytest.raises(ClickException, match="condition: expected columns of the table"):
        project.run("data", dataset="table", data={"path": str(path), "condition": "c3"})
