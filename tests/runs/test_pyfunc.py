import base64
import copy
import json
import math
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.pyfunc import scoring_server
from PIL import Image

from calibrated import (
    calibrated_model,
    conditional_rows,
    conditional_table_model,
    png,
    table_model,
)
from submanifold import Predictor
from submanifold.data.images import load_pictures
from submanifold.evaluation.calibration import Calibration
from submanifold.evaluation.scores import QUICK, score
from submanifold.flows import Glow, RealNVP, make_conditional
from submanifold.models import Hierarchy, Stage
from submanifold.runs.pyfunc import RequestError, ServedModel, log_model

POINTS = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)


def images(count, seed=2):
    return np.random.default_rng(seed).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def model():
    return calibrated_model(channels=1)


def served(model, name, folder):
    """The model as MLflow loads it from a registry."""
    model.save(folder / "hierarchy.safetensors")
    with mlflow.start_run():
        log_model(folder / "hierarchy.safetensors", name)
    return mlflow.pyfunc.load_model(f"models:/{name}/1")


@pytest.fixture(scope="module")
def loaded(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    mlflow.create_experiment("models", artifact_location=str(folder / "artifacts"))
    mlflow.set_experiment("models")
    yield served(model, "digits", folder)
    mlflow.set_tracking_uri(before)


def request(loaded, inputs=None, kind="inputs", **params):
    """Return the status and the body of the response of MLflow's server."""
    body = {kind: images(2).tolist() if inputs is None else inputs, "params": params}
    schema = loaded.metadata.get_input_schema()
    try:
        content = json.dumps(body).encode()
        found = scoring_server.invocations(content, "application/json", loaded, schema)
    except mlflow.MlflowException as error:  # as the server does
        return error.get_http_status_code(), json.loads(error.serialize_as_json())
    return found.status, json.loads(found.response)


def test_a_logged_model_contains_no_configuration(loaded):
    """src/submanifold/conf is a link to conf/ of the checkout, where the user has credentials."""
    code = Path(mlflow.artifacts.download_artifacts("models:/digits/1"), "code", "submanifold")
    assert (code / "runs" / "pyfunc.py").is_file()
    assert not (code / "conf").exists()


def test_a_loaded_model_runs_each_task(model, loaded):
    expected = Predictor(model).score(images(5))
    np.testing.assert_array_equal(loaded.predict(images(5)), expected)
    scores = loaded.predict(images(5), params={"nearest": True})
    np.testing.assert_array_equal(scores, Predictor(model).score(images(5), nearest=True))
    for nearest, kind in ((False, "encoder"), (True, "nearest")):
        codes = loaded.predict(images(5), params={"task": "encode", "nearest": nearest})
        for name, code in zip("uv", Predictor(model).encode(images(5), kind), strict=True):
            np.testing.assert_array_equal(codes[name], code)
        projected = loaded.predict(images(5), params={"task": "project", "nearest": nearest})
        np.testing.assert_array_equal(projected, Predictor(model).project(images(5), nearest)[0])
    status, found = request(loaded, task="sample", count=3, seed=7)
    assert (status, np.shape(found["predictions"])) == (200, (3, 1, 8, 8))


def test_floats_over_http_are_pixels_between_0_and_1(model, loaded):
    """They must not be cast to bytes, which would be black."""
    expected = Predictor(model).score(images(2))["bits_per_dim"].tolist()
    for inputs in (images(2), images(2).astype(float) / 255):
        status, response = request(loaded, inputs.tolist())
        assert status == 200
        rows = response["predictions"]
        assert [row["bits_per_dim"] for row in rows] == pytest.approx(expected, rel=1e-6)
    for inputs in (images(2) + 0.5, images(2) / 255 - 0.5):
        status, response = request(loaded, inputs.tolist())
        assert (status, "expected uint8" in response["message"]) == (400, True)


def test_image_files_over_http_are_prepared_like_training_images(model, loaded, tmp_path):
    """Of another size and shape, in color; in base64."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    texts = []
    for name in ("a.png", "b.jpg"):
        Image.fromarray(pixels).save(tmp_path / name)
        texts.append(base64.b64encode((tmp_path / name).read_bytes()).decode())
    status, response = request(loaded, texts)
    prepared = load_pictures([tmp_path / "a.png", tmp_path / "b.jpg"], **model.data)
    expected = Predictor(model).score(prepared)["p_value"].tolist()
    assert status == 200
    assert [row["p_value"] for row in response["predictions"]] == pytest.approx(expected)
    no_image = base64.b64encode(b"no image").decode()
    for inputs, message in (
        ([texts[0], no_image], "inputs[1]: expected a list of image files, such as JPEG"),
        ([texts[0], "no base64"], "inputs[1]: expected a list of image files"),
        ([[texts[0]]], "inputs: expected a list of image files"),
    ):
        status, response = request(loaded, inputs)
        assert (status, message in response["message"]) == (400, True)


def test_the_model_of_a_run_is_found_by_the_id_of_the_run(model, loaded, tmp_path):
    """As the page on serving says, without a name in the registry."""
    model.save(tmp_path / "hierarchy.safetensors")
    with mlflow.start_run() as run:
        log_model(tmp_path / "hierarchy.safetensors")
    found = mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/model").predict(images(2))
    np.testing.assert_array_equal(found, loaded.predict(images(2)))


def test_points_are_served_over_http(loaded, tmp_path):
    model = Hierarchy([Stage(RealNVP(2), 1)])
    calibration = Calibration.fit(score(model, POINTS), QUICK).to_dict()
    model = model.with_facts(calibration=calibration)
    loaded = served(model, "points", tmp_path)
    assert loaded.metadata.signature.inputs.inputs[0].type == np.float32
    for points in (POINTS[:3], POINTS[:3].round()):
        numbers = points.astype(int) if (points == points.round()).all() else points
        status, response = request(loaded, numbers.tolist())
        expected = Predictor(model).score(points)["p_value"].tolist()
        assert status == 200
        assert [row["p_value"] for row in response["predictions"]] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"task": "a\nb"}, r"task=a\nb cannot be used: Input should be 'score', 'encode', "),
        (
            {"count": 0},
            "count=0 cannot be used: Input should be greater than or equal to 1. Change ",
        ),
        (
            {"count": None},
            "count=None cannot be used: Input should be a valid integer. Change it in ",
        ),
        (
            {"count": 10**6},
            "count=1000000 cannot be used: Input should be less than or equal to 10000",
        ),
        ({"seed": None}, "seed=None cannot be used: "),
        ({"seed": -1}, "seed=-1 cannot be used: "),
        ({"seed": 10**30}, "seed=1000000000000000000000000000000 cannot be used: "),
        ({"temperature": None}, "temperature=None cannot be used: "),
        ({"temperature": 1e308}, "temperature=1e+308 cannot be used: "),
        ({"temperature": math.nan}, "temperature=nan cannot be used: "),
    ],
)
def test_a_mistake_is_answered_with_one_line(loaded, params, message):
    status, body = request(loaded, **{"task": "sample", **params})
    assert (status, body["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
    assert body["message"].startswith(message)
    assert "\n" not in body["message"]


@pytest.mark.parametrize(
    ("inputs", "params"),
    [
        (np.zeros((2, 3, 8, 8), int).tolist(), {}),
        ([[1], [2, 3]], {}),
        ("text", {}),
        ([], {}),
        (np.full((1, 1, 8, 8), 256).tolist(), {}),
        (None, {"count": "many"}),
    ],
)
def test_inputs_that_mlflow_rejects_have_status_400(loaded, inputs, params):
    status, found = request(loaded, inputs, **params)
    assert status == 400
    assert "stack_trace" not in found


@pytest.mark.parametrize("inputs", [None, {"a": [1]}, [[1], [2, 3]], 7])
def test_inputs_in_python_that_are_no_images_are_a_mistake_of_the_caller(model, inputs):
    with pytest.raises(RequestError, match=r"^(inputs|events): expected ") as caught:
        ServedModel(model).predict(inputs)
    assert caught.value.get_http_status_code() == 400


def test_images_in_base64_may_be_a_column(model, loaded):
    colored = images(2).repeat(3, 1)
    files = [base64.b64encode(png(image)).decode() for image in colored]
    described = model.with_facts(data={"size": 8, "channels": 1, "crop": "square"})
    expected = ServedModel(described).predict(files)
    for column in (pd.Series(files), pd.DataFrame({"image": files}), np.array(files, object)):
        pd.testing.assert_frame_equal(ServedModel(described).predict(column), expected)


def test_a_label_that_is_missing_is_refused(loaded, tmp_path):
    flow = make_conditional(Glow((1, 8, 8), levels=2, steps=1, width=4), classes=3)
    conditional = served(Hierarchy([Stage(flow, 9)]).eval(), "labels", tmp_path)
    with pytest.raises(RequestError, match=r"^label: expected a label from 0 to 2, .* got none"):
        conditional.predict(images(2), params={"task": "sample"})
    assert (
        len(conditional.predict(images(2), params={"task": "sample", "count": 3, "label": 2})) == 3
    )


def test_a_defect_is_logged_and_not_sent(model, caplog):
    def fail(*_):
        raise RuntimeError("in /a/path")

    broken = copy.deepcopy(model)
    broken.stages[0].flows[0].register_forward_pre_hook(fail)
    with pytest.raises(RequestError, match=r"^The model failed\. See") as caught:
        ServedModel(broken).predict(images(2))
    assert caught.value.get_http_status_code() == 500
    assert "RuntimeError: in /a/path" in caplog.text


# ---- tables


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "age": rng.integers(18, 80, 300),
            "weight": rng.normal(70, 10, 300),
            "city": rng.choice(["Bern", "Rome"], 300),
        }
    )


@pytest.fixture(scope="module")
def of_table(rows, loaded, tmp_path_factory):
    """A model of a table and how MLflow loads it."""
    model = table_model(RealNVP(3), 2, rows, rows[:100])
    return model, served(model, "people", tmp_path_factory.mktemp("table"))


def test_a_model_of_a_table_has_a_signature_of_named_columns(of_table, rows):
    model, loaded = of_table
    assert loaded.metadata.get_input_schema().input_names() == ["age", "weight", "city"]
    found = loaded.predict(rows[["city", "weight", "age"]][:5])
    pd.testing.assert_frame_equal(found, Predictor(model).score(rows[:5]))
    codes = loaded.predict(rows[:5], params={"task": "encode"})
    assert list(codes) == ["u0", "u1", "v0"]
    projected = loaded.predict(rows[:5], params={"task": "project"})
    assert list(projected) == ["age", "weight", "city"]
    sampled = loaded.predict(rows[:1], params={"task": "sample", "count": 4})
    assert set(sampled["city"]) <= {"Bern", "Rome"}


def strict(text):
    """Refuse the constants of Python's JSON: NaN and infinities."""
    raise AssertionError(text)


@pytest.mark.parametrize("task", ["score", "encode", "project", "sample"])
def test_responses_are_json_of_the_standard(of_table, rows, task):
    _, loaded = of_table
    extreme = rows[:3].assign(weight=[1e38, 70.0, -1e30], city=["Rome", "Oslo", "Bern"])
    body = {"dataframe_split": extreme.to_dict("split"), "params": {"task": task, "count": 3}}
    schema = loaded.metadata.get_input_schema()
    found = scoring_server.invocations(json.dumps(body), "application/json", loaded, schema)
    predictions = json.loads(found.response, parse_constant=strict)["predictions"]
    assert len(predictions) == 3
    if task == "score":
        values = [row["log_prob"] for row in predictions]
        assert (values[0], values[1] < 0) == (None, True)


def test_rows_are_served_over_http(of_table, rows):
    model, loaded = of_table
    status, found = request(loaded, rows[:3].to_dict("split"), "dataframe_split")
    expected = Predictor(model).score(rows[:3])["p_value"].tolist()
    assert status == 200
    assert [each["p_value"] for each in found["predictions"]] == pytest.approx(expected)
    without = rows[["age", "city"]][:3].to_dict("split")
    status, found = request(loaded, without, "dataframe_split")
    assert (status, "weight" in found["message"]) == (400, True)


# ---- tables with a condition


@pytest.fixture(scope="module")
def given_columns(loaded, tmp_path_factory):
    """A model that is conditional on age and dose, and how MLflow loads it."""
    model = conditional_table_model()
    return model, served(model, "given", tmp_path_factory.mktemp("given"))


def test_the_signature_requires_the_condition(given_columns):
    model, loaded = given_columns
    schema, table = loaded.metadata.get_input_schema(), conditional_rows(5, 2)
    assert schema.required_input_names() == ["age", "dose"]
    assert set(schema.optional_input_names()) == {"weight", "height"}
    pd.testing.assert_frame_equal(loaded.predict(table), Predictor(model).score(table))
    given = table[["age", "dose"]]
    for params in ({"task": "sample"}, {"task": "sample", "count": 3}):
        found = loaded.predict(given, params=params)
        expected = Predictor(model).sample(params.get("count", 1), condition=given)
        pd.testing.assert_frame_equal(found, expected)
    for wrong, params, message in [
        (table.drop(columns="dose"), {}, "dose"),
        (given, {}, "without weight, height"),
        (table.assign(age="old"), {}, "age"),
    ]:
        with pytest.raises(mlflow.MlflowException, match=message):
            loaded.predict(wrong, params=params)
