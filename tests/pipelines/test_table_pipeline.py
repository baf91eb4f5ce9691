"""Tables from a file to a model: training, evaluation, cache keys and mistakes."""

import numpy as np
import pandas as pd
import pytest
from click import ClickException

from submanifold.data.tables import Preprocessor
from submanifold.models import Model

RNG = np.random.default_rng(0)
METHOD = "density-first"


@pytest.fixture(scope="module")
def table(project):
    """300 rows of columns a to f with two factors, and a label."""
    factors = RNG.normal(size=(300, 2))
    frame = pd.DataFrame(factors @ RNG.normal(size=(2, 6)), columns=list("abcdef"))
    frame += 0.1 * RNG.normal(size=frame.shape)
    frame["f"] = frame["f"].round(1)
    frame["kind"] = RNG.choice(["x", "y"], 300)
    path = project.path / "my.csv"
    frame.to_csv(path, index=False)
    return path


def test_a_csv_file_is_trained_on_and_evaluated(project, table):
    data = {"path": str(table), "label": "kind"}
    run = project.run(
        dataset="table", method="noise-conditional", density={"training": {"steps": 30}}, data=data
    )
    assert run.load("x_train").shape == (240, 6)
    assert set(run.load("labels")["test"]) == {"x", "y"}
    model = Model.load(run.path("hierarchy"))
    assert model.dims == [6, 3]
    preprocessor = Preprocessor.from_dict(model.data["table"])
    assert preprocessor.features == tuple("abcdef")
    assert {each.name: each.step for each in preprocessor.columns if each.step} == {"f": 0.1}
    assert model.data["label"] == "kind"
    assert "quantiles" in model.calibration
    metrics = run.load("metrics")
    assert np.isfinite([metrics["bits_per_dim"]["value"], metrics["mse"]["value"]]).all()
    assert run.load("manifest")["counts"] == {"train": 240, "valid": 30, "test": 30}


def test_an_installed_table_by_name(project):
    with project.session(dataset="wine", method="auto") as session:
        experiment = session.load_context().config_loader.experiment
    assert experiment.kind == "table"
    assert [stage.dim for stage in experiment.model.stages] == [6]


def test_cache_keys_follow_content_and_settings(project, table):
    def keys(**data):
        data = {"path": str(table), "label": "kind", **data}
        with project.session(dataset="table", method=METHOD, data=data) as session:
            return session.load_context().config_loader.artifact_keys

    first = keys()
    copy = table.with_name("copy.csv")
    copy.write_bytes(table.read_bytes())
    assert keys(path=str(copy)) == first
    copy.write_bytes(table.read_bytes().replace(b",x\n", b",z\n", 1))
    assert keys(path=str(copy))["data"] != first["data"]
    assert keys(seed=1)["density"] != first["density"]


MISTAKES = {
    "no path": ({"dataset": "table"}, r"data\.path: expected the path of a table"),
    "no file": ({"data": {"path": "none.csv"}}, r"data\.path=none\.csv: .* does not exist"),
    "categories": ({}, r"data\.categorical: .* got categories in kind"),
    "no such column": ({"data": {"drop": "knd"}}, r"data\.drop: .* Did you mean kind\?"),
    "dimension": ({"data": {"drop": "kind"}, "stage_1": {"dim": 7}}, "dim"),
    "images": ({"data": {"size": 32}}, r"data\.size is not a setting"),
    "a table as images": ({"dataset": "folder"}, r"data\.path=.*\. A table needs dataset=table"),
    "ood": ({"data": {"drop": "kind"}, "ood": "mnist"}, "ood: expected the path of a table"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named_before_training(project, table, name):
    params, message = MISTAKES[name]
    params = {"dataset": "table", "method": METHOD, **params}
    if name != "no path":
        params["data"] = {"path": str(table), **params.get("data", {})}
    with project.session(**params) as session, pytest.raises(ClickException, match=message):
        session.load_context()
