"""Tables in all pipelines: training, report, ood, dimension and cache keys."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from submanifold import Predictor
from submanifold.data.tables import Preprocessor
from submanifold.models import Model
from submanifold.sklearn import ManifoldFlow

pytestmark = pytest.mark.pipeline

RNG = np.random.default_rng(0)
METHOD = "density-first"


@pytest.fixture(scope="module")
def table(project):
    """400 rows of two factors in columns of different kinds, and 60 without the factors.

    The column kind is a label.
    """
    factors = RNG.normal(size=(460, 2))
    frame = pd.DataFrame(factors @ RNG.normal(size=(2, 5)), columns=list("abcde"))
    frame += 0.1 * RNG.normal(size=frame.shape)
    frame["e"] = frame["e"].round(1)
    frame["city"] = np.where(factors[:, 0] > 0, "Bern", "Rome")
    frame.iloc[400:, :5] = RNG.permuted(frame.iloc[400:, :5].to_numpy(), axis=0) * 3
    frame["kind"] = RNG.choice(["x", "y"], 460)
    frame[:400].to_csv(project.path / "rows.csv", index=False)
    frame[400:].to_parquet(project.path / "other.parquet")
    return project.path / "rows.csv"


@pytest.fixture(scope="module")
def params(table):
    data = {"path": str(table), "label": "kind"}
    steps = {"density": 30, "reconstruction": 12}
    training = {name: {"training": {"steps": count}} for name, count in steps.items()}
    return {"dataset": "table", "method": "noise-conditional", "data": data, **training}


@pytest.fixture(scope="module")
def run(project, params):
    return project.run(**params)


def test_a_csv_file_is_trained_on_and_evaluated(run):
    assert run.load("x_train").x.shape == (320, 6)
    assert set(run.load("x_test").labels) == {"x", "y"}
    model = Model.load(run.path("hierarchy"))
    assert model.dims == [6, 3]
    preprocessor = Preprocessor.from_dict(model.data["table"])
    assert preprocessor.inputs == (*"abcde", "city")
    kinds = {column.name: column.kind for column in preprocessor.columns}
    assert kinds == dict.fromkeys("abcd", "continuous") | {"e": "quantized", "city": "categorical"}
    assert model.data["label"] == "kind"
    assert "quantiles" in model.calibration
    metrics = run.load("metrics")
    assert np.isfinite([metrics["bits_per_dim"]["value"], metrics["mse"]["value"]]).all()
    assert run.load("manifest")["counts"] == {"train": 320, "valid": 40, "test": 40}


def test_all_rows_but_those_of_the_test_calibrate_by_models_of_folds(project, params, run):
    crossed = project.run(calibration="cross", **params)
    assert crossed.path("rotation_2.model") == run.path("rotation_2.model")
    model = Model.load(crossed.path("hierarchy"))
    calibration = Predictor(model).calibrated()
    used = [crossed.load(name).rows for name in ("x_train", "x_valid", "x_test")]
    assert [int(row) for row in calibration.rows] == [*used[0], *used[1]]
    assert sorted(np.concatenate(used)) == [*range(400)]
    assert calibration.smallest_p_value == pytest.approx(1 / 361)
    assert crossed.load("metrics")["curve"] == run.load("metrics")["curve"]
    assert "360 rows" in " ".join(crossed.text().split())


def test_the_report_is_in_the_units_of_the_table(run):
    text, metrics = run.text(), run.load("metrics")
    model = Model.load(run.path("hierarchy"))
    rows = Preprocessor.from_dict(model.data["table"]).inverse_transform(run.load("x_test"))
    nll = -Predictor(model).score(rows)["log_prob"]
    # the noise of the quantized column differs
    assert metrics["nll"]["value"] == pytest.approx(nll.mean(), abs=0.5)
    assert metrics["curve"]["dims"] == [1, 2, 3, 4]
    for part in (
        "nats (negative log-density) on average; a Gaussian with full covariance has",
        "NLL (nats)",
        "Smallest d whose nearest projections explain",
        "Training rows have",
        "320 training, 40 validation and 40 test rows",
        "Most anomalous rows",
        "with noise over the step",
        "2 categories: Rome, Bern as categories data.columns.city=ignore",
        "submanifold score",
        "new.csv --alpha=5%",
    ):
        assert part in text, part
    assert not re.search(r"\b(images?|pictures?)\b", text.lower())
    assert run.artifacts >= {"marginals.png", "pairs.png", "anomalies.csv", "scored_events.csv"}


def test_the_most_anomalous_rows_have_contributions_of_columns(run, table):
    found, scored = run.load("anomalies"), run.load("scored_events").query("split == 'test'")
    worst = run.load("x_test").x[scored["number"][scored["anomaly_score"].idxmax()]]
    model = Model.load(run.path("hierarchy"))
    rows = pd.read_csv(table).iloc[[found["row"].iloc[0]]]
    again = Preprocessor.from_dict(model.data["table"]).transform(rows).x[0]
    assert again[[0, 1, 2, 3]] == pytest.approx(worst[[0, 1, 2, 3]], abs=1e-5)
    assert set(found["column"]) <= set("abcde") | {"city"}
    assert found.groupby("row").size().max() == 3
    assert (found["contribution"] >= 0).all()
    assert found["contribution"][:3].is_monotonic_decreasing


def test_rows_of_another_table_are_out_of_distribution(project, params, run):
    found = project.run(
        "ood", only_missing_outputs=True, ood=str(project.path / "other.parquet"), **params
    )
    assert not any(found.steps.values())
    measured = found.load("ood_metrics")
    assert measured["counts"] == {"normal": 40, "ood": 60}
    assert measured["scores"]["anomaly_score"]["auroc"]["value"] > 0.8
    text = found.text("ood_report")
    assert "flags" in text
    assert "by a model of “rows.csv”" in text
    assert "TABLE is a file with the columns of the training table" in text
    assert not re.search(r"\b(images?|pictures?|pixels?)\b", text.lower())


def test_the_estimator_opens_a_model_of_a_table_with_categories(run, table):
    rows = pd.read_csv(table)[:50]
    estimator = ManifoldFlow.load(run.path("hierarchy"))
    assert list(estimator.feature_names_in_) == [*"abcde", "city"]
    expected = Predictor(estimator.model_).score(rows)["log_prob"]
    scale, estimator.noise_scale_ = estimator.noise_scale_, 0.0  # of log_prob
    np.testing.assert_allclose(estimator.score_samples(rows), expected, rtol=1e-3, atol=1e-3)
    estimator.noise_scale_ = scale
    assert (estimator.predict(rows) == 1).mean() > 0.8
    assert (estimator.predict(rows.assign(city="Oslo")) == -1).all()
    assert (estimator.predict(rows.assign(a=rows["a"] + 50)) == -1).all()
    assert estimator.transform(rows).shape == (50, estimator.n_components)


def test_cache_keys_follow_content_and_settings(project, table):
    def keys(**data):
        data = {"path": str(table), "label": "kind", **data}
        with project.session(dataset="table", method=METHOD, data=data) as session:
            return session.load_context().config_loader.artifact_keys

    first = keys()
    (table.parent / "moved").mkdir()
    copy = Path(shutil.copy2(table, table.parent / "moved"))
    assert keys(path=str(copy)) == first
    copy.write_bytes(table.read_bytes().replace(b",x\n", b",z\n", 1))
    assert keys(path=str(copy))["data"] != first["data"]
    assert keys(seed=1)["density"] != first["density"]
