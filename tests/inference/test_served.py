import json
import signal

import mlflow
import numpy as np
import pytest
import torch
import uvicorn
from mlflow.pyfunc import scoring_server

from submanifold.data import dequantize
from submanifold.evaluation.scores import QUICK, Calibration, score
from submanifold.flows import Glow
from submanifold.inference.scoring import score_pictures
from submanifold.inference.served import Served, log_model
from submanifold.models import Hierarchy, Stage
from submanifold.runs.store import prepare_store


def images(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    found = Hierarchy([Stage(Glow((1, 8, 8), levels=2, steps=2, width=8, whiten=False), 6)])
    with torch.no_grad():
        found(dequantize(torch.from_numpy(images(64, 0))))
    found.eval()
    found.calibration = Calibration.fit(score(found, images(50, 1)), QUICK).to_dict()
    return found


@pytest.fixture(scope="module")
def loaded(model, tmp_path_factory):
    """The model as MLflow loads it from a registry."""
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    prepare_store(uri)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    mlflow.create_experiment("models", artifact_location=str(folder / "artifacts"))
    mlflow.set_experiment("models")
    model.save(folder / "hierarchy.safetensors")
    with mlflow.start_run():
        log_model(folder / "hierarchy.safetensors", "digits")
    yield mlflow.pyfunc.load_model("models:/digits/1")
    mlflow.set_tracking_uri(before)


def test_a_loaded_model_scores_as_the_model_does(model, loaded):
    table = loaded.predict(images(5, 2))
    np.testing.assert_array_equal(table, score_pictures(model, images(5, 2)))


def test_a_loaded_model_encodes_projects_and_samples(loaded):
    codes = loaded.predict(images(5, 2), params={"task": "encode"})
    assert (codes["u"].shape, codes["v"].shape) == ((5, 6), (5, 58))
    projected = loaded.predict(images(5, 2), params={"task": "project", "nearest": True})
    assert projected.shape == (5, 1, 8, 8)
    drawn = loaded.predict(images(1, 0), params={"task": "sample", "count": 3, "seed": 7})
    assert drawn.shape == (3, 1, 8, 8)


def test_the_signature_says_what_images_it_takes(loaded):
    (spec,) = loaded.metadata.signature.inputs.inputs
    assert (spec.type, spec.shape) == (np.dtype(np.uint8), (-1, 1, 8, 8))
    with pytest.raises(mlflow.MlflowException):
        loaded.predict(np.zeros((2, 3, 8, 8), np.uint8))


def answer(loaded, inputs=None, **params):
    """Status and body with which MLflow's server answers a request."""
    body = {"inputs": images(2, 2).tolist() if inputs is None else inputs, "params": params}
    schema = loaded.metadata.get_input_schema()
    try:
        content = json.dumps(body).encode()
        found = scoring_server.invocations(content, "application/json", loaded, schema)
    except mlflow.MlflowException as error:  # as the server does
        return error.get_http_status_code(), json.loads(error.serialize_as_json())
    return found.status, json.loads(found.response)


def test_a_request_is_answered(loaded):
    status, found = answer(loaded, task="sample", count=3)
    assert (status, np.shape(found["predictions"])) == (200, (3, 1, 8, 8))


@pytest.mark.parametrize(("params", "message"), [
    ({"task": "paint"}, "task: expected one of score, encode, project, sample, got paint."),
    ({"task": "a\nb"}, r"task: expected one of score, encode, project, sample, got a\nb."),
    ({"task": "sample", "count": 100_000_000},
     "count: expected at most max_rows=1024, got 100000000. Send several requests."),
    ({"task": "sample", "count": 0}, "count: expected 1 or more, got 0."),
    ({"task": "sample", "temperature": float("nan")}, "temperature: expected 0 to 10, got nan."),
    ({"task": "sample", "seed": 10**23},
     "seed: expected an integer from -2^63 to 2^63 - 1, got 100000000000000000000000."),
])  # fmt: skip
def test_a_mistake_is_answered_by_one_line(loaded, params, message):
    assert answer(loaded, **params) == (
        400, {"error_code": "INVALID_PARAMETER_VALUE", "message": message},
    )  # fmt: skip


@pytest.mark.parametrize(("inputs", "params"), [
    (np.zeros((2, 3, 8, 8), int).tolist(), {}), ([[1, 2]], {}), ([[1], [2, 3]], {}), ("text", {}),
    ([], {}), (np.full((1, 1, 8, 8), 256).tolist(), {}), (None, {"count": "many"}),
])  # fmt: skip
def test_what_mlflow_refuses_is_the_callers_mistake(loaded, inputs, params):
    status, found = answer(loaded, inputs, **params)
    assert status == 400
    assert not found.keys() & {"stack_trace"}


@pytest.mark.parametrize("task", ["score", "encode", "project"])
@pytest.mark.parametrize(("given", "message"), [
    (np.zeros((2, 3, 8, 8), np.uint8), "images: expected uint8 of shape"),
    (np.zeros((2, 1, 8, 8)), "images: expected uint8 of shape"),
    (np.zeros((0, 1, 8, 8), np.uint8), "with N at least 1, got uint8 of shape"),
    (np.zeros((5, 1, 8, 8), np.uint8), "images: expected at most max_rows=4, got 5"),
])  # fmt: skip
def test_images_that_do_not_fit_are_refused(model, task, given, message):
    with pytest.raises(mlflow.MlflowException, match=message) as caught:
        Served(model, max_rows=4).predict(given, {"task": task})
    assert caught.value.get_http_status_code() == 400


def test_a_defect_is_logged_and_not_shown(loaded, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("in /a/path")

    monkeypatch.setattr("submanifold.inference.served.sample_pictures", fail)
    status, found = answer(loaded, task="sample")
    assert (status, found["message"]) == (500, "The model failed. See the server's log.")
    assert "RuntimeError: in /a/path" in caplog.text


@pytest.mark.parametrize("task", ["score", "encode", "project", "sample"])
def test_a_request_is_cancelled_between_two_batches(model, monkeypatch, task):
    """By its time, and when the server has had a SIGTERM."""
    given = images(65, 2)
    with pytest.raises(mlflow.MlflowException, match=r"cancelled after max_seconds=0\.") as caught:
        Served(model, max_seconds=0).predict(given, {"task": task})
    assert caught.value.get_http_status_code() == 504

    class Server(uvicorn.Server):
        def __init__(self):
            self.should_exit = True

    before = signal.signal(signal.SIGTERM, Server().handle_exit)
    try:
        with pytest.raises(mlflow.MlflowException, match="The server is ending") as caught:
            Served(model).predict(given, {"task": task})
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.get_http_status_code() == 503


def test_the_limits_of_a_request_can_be_changed(loaded):
    config = {"max_rows": 2, "max_seconds": 5}
    changed = mlflow.pyfunc.load_model("models:/digits/1", model_config=config)
    status, found = answer(changed, images(3, 2).tolist())
    assert (status, found["message"][:40]) == (400, "images: expected at most max_rows=2, got")
    assert answer(loaded, images(3, 2).tolist())[0] == 200
