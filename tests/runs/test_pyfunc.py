import json
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.pyfunc import scoring_server

import submanifold
from calibrated import calibrated_model, conditional_rows, conditional_table_model
from submanifold import Predictor
from submanifold.data.tables import Preprocessor
from submanifold.evaluation.calibration import calibrate
from submanifold.flows import RealNVP
from submanifold.models import Hierarchy, Stage
from submanifold.runs.pyfunc import ServedModel, log_model


def images(count, seed=2):
    return np.random.default_rng(seed).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def model():
    return calibrated_model(channels=1)


@pytest.fixture(scope="module")
def loaded(model, tmp_path_factory):
    """The model as MLflow loads it from a registry."""
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    mlflow.create_experiment("models", artifact_location=str(folder / "artifacts"))
    mlflow.set_experiment("models")
    model.save(folder / "hierarchy.safetensors")
    with mlflow.start_run():
        log_model(folder / "hierarchy.safetensors", "digits")
    yield mlflow.pyfunc.load_model("models:/digits/1")
    mlflow.set_tracking_uri(before)


def request(loaded, inputs=None, **params):
    """Return the status and the body of the response of MLflow's server."""
    body = {"inputs": images(2).tolist() if inputs is None else inputs, "params": params}
    schema = loaded.metadata.get_input_schema()
    try:
        content = json.dumps(body).encode()
        found = scoring_server.invocations(content, "application/json", loaded, schema)
    except mlflow.MlflowException as error:  # as the server does
        return error.get_http_status_code(), json.loads(error.serialize_as_json())
    return found.status, json.loads(found.response)


def test_a_logged_model_contains_no_configuration(loaded, model, tmp_path, monkeypatch):
    """src/submanifold/conf is a link to conf/ of the checkout, where the user has credentials."""
    package = tmp_path / "src" / "submanifold"
    package.mkdir(parents=True)
    (package / "code.py").touch()
    (tmp_path / "conf" / "local").mkdir(parents=True)
    (tmp_path / "conf" / "local" / "credentials.yml").write_text("password: secret")
    (package / "conf").symlink_to(tmp_path / "conf")
    monkeypatch.setattr(submanifold, "__file__", str(package / "__init__.py"))
    model.save(tmp_path / "hierarchy.safetensors")
    with mlflow.start_run():
        log_model(tmp_path / "hierarchy.safetensors")
    uri = mlflow.last_logged_model().model_uri
    logged = Path(mlflow.artifacts.download_artifacts(uri))
    assert (logged / "code" / "submanifold" / "code.py").is_file()
    assert not list(logged.rglob("*credentials*"))


def test_a_loaded_model_runs_each_task(model, loaded):
    expected = Predictor(model).score(images(5))
    np.testing.assert_array_equal(loaded.predict(images(5)), expected)
    codes = loaded.predict(images(5), params={"task": "encode"})
    assert (codes["u"].shape, codes["v"].shape) == ((5, 16), (5, 48))
    projected = loaded.predict(images(5), params={"task": "project", "nearest": True})
    assert projected.shape == (5, 1, 8, 8)
    status, found = request(loaded, task="sample", count=3, seed=7)
    assert (status, np.shape(found["predictions"])) == (200, (3, 1, 8, 8))


@pytest.mark.parametrize(("params", "message"), [
    ({"task": "a\nb"}, r"task: expected score, encode, project or sample, got a\nb."),
    ({"task": "sample", "count": 0}, "count: expected 1 or more, got 0."),
])  # fmt: skip
def test_a_mistake_is_answered_with_one_line(loaded, params, message):
    body = {"error_code": "INVALID_PARAMETER_VALUE", "message": message}
    assert request(loaded, **params) == (400, body)


@pytest.mark.parametrize(("inputs", "params"), [
    (np.zeros((2, 3, 8, 8), int).tolist(), {}), ([[1], [2, 3]], {}), ("text", {}), ([], {}),
    (np.full((1, 1, 8, 8), 256).tolist(), {}), (None, {"count": "many"}),
])  # fmt: skip
def test_inputs_that_mlflow_rejects_have_status_400(loaded, inputs, params):
    status, found = request(loaded, inputs, **params)
    assert status == 400
    assert "stack_trace" not in found


@pytest.mark.parametrize("task", ["score", "encode", "project"])
@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (0, 1, 8, 8)])
def test_images_that_do_not_fit_are_rejected(model, task, shape):
    with pytest.raises(mlflow.MlflowException, match="events: expected uint8 of shape") as caught:
        ServedModel(model).predict(np.zeros(shape, np.uint8), {"task": task})
    assert caught.value.get_http_status_code() == 400


def test_a_defect_is_logged_and_not_sent(loaded, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("in /a/path")

    monkeypatch.setattr("submanifold.inference.predictor.Predictor.sample", fail)
    status, found = request(loaded, task="sample")
    assert (status, found["message"]) == (500, "The model failed. See the server's log.")
    assert "RuntimeError: in /a/path" in caplog.text


# ---- tables


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return pd.DataFrame({"age": rng.integers(18, 80, 300), "weight": rng.normal(70, 10, 300),
                         "city": rng.choice(["Bern", "Rome"], 300)})  # fmt: skip


@pytest.fixture(scope="module")
def of_table(rows, loaded, tmp_path_factory):
    """A model of a table and how MLflow loads it."""
    preprocessor = Preprocessor.fit(rows, categorical="intervals")
    model = Hierarchy([Stage(RealNVP(3), dim=2)]).eval()
    model.data = {"table": preprocessor.to_dict(), "label": None}
    model.calibration = calibrate(model, preprocessor.transform(rows[:100]), torch.device("cpu"))
    path = tmp_path_factory.mktemp("table") / "hierarchy.safetensors"
    model.save(path)
    with mlflow.start_run():
        log_model(path, "people")
    return model, mlflow.pyfunc.load_model("models:/people/1")


def test_a_model_of_a_table_has_a_signature_of_named_columns(of_table, rows):
    model, served = of_table
    schema = served.metadata.get_input_schema()
    assert schema.input_names() == ["age", "weight", "city"]
    found = served.predict(rows[["city", "weight", "age"]][:5])
    pd.testing.assert_frame_equal(found, Predictor(model).score(rows[:5]))
    codes = served.predict(rows[:5], params={"task": "encode"})
    assert list(codes) == ["u0", "u1", "v0"]
    projected = served.predict(rows[:5], params={"task": "project"})
    assert list(projected) == ["age", "weight", "city"]
    sampled = served.predict(rows[:1], params={"task": "sample", "count": 4})
    assert set(sampled["city"]) <= {"Bern", "Rome"}


def test_rows_are_served_over_http(of_table, rows):
    model, served = of_table
    schema = served.metadata.get_input_schema()

    def answer(body):
        content = json.dumps(body).encode()
        found = scoring_server.invocations(content, "application/json", served, schema)
        return json.loads(found.response)["predictions"]

    scores = answer({"dataframe_split": rows[:3].to_dict("split")})
    assert [each["p_value"] for each in scores] == pytest.approx(
        Predictor(model).score(rows[:3])["p_value"].tolist()
    )
    with pytest.raises(mlflow.MlflowException, match="weight"):
        answer({"dataframe_split": rows[["age", "city"]][:3].to_dict("split")})


# ---- tables with a condition


@pytest.fixture(scope="module")
def given_columns(loaded, tmp_path_factory):
    """A model that is conditional on age and dose, and how MLflow loads it."""
    model = conditional_table_model()
    path = tmp_path_factory.mktemp("given") / "hierarchy.safetensors"
    model.save(path)
    with mlflow.start_run():
        log_model(path, "given")
    return model, mlflow.pyfunc.load_model("models:/given/1")


def test_the_signature_requires_the_condition(given_columns):
    model, served = given_columns
    schema, table = served.metadata.get_input_schema(), conditional_rows(5, 2)
    assert schema.required_input_names() == ["age", "dose"]
    assert set(schema.optional_input_names()) == {"weight", "height"}
    pd.testing.assert_frame_equal(served.predict(table), Predictor(model).score(table))
    given = table[["age", "dose"]]
    for params in ({"task": "sample"}, {"task": "sample", "count": 3}):
        found = served.predict(given, params=params)
        expected = Predictor(model).sample(params.get("count", 1), condition=given)
        pd.testing.assert_frame_equal(found, expected)
    for wrong, params, message in [
        (table.drop(columns="dose"), {}, "dose"),
        (given, {}, "without weight, height"),
        (table.assign(age="old"), {}, "age"),
    ]:
        with pytest.raises(mlflow.MlflowException, match=message):
            served.predict(wrong, params=params)
