import mlflow
import numpy as np
import pytest
import torch

from submanifold.data import dequantize
from submanifold.evaluation.scores import QUICK, Calibration, score
from submanifold.flows import Glow
from submanifold.manifold import Hierarchy, Stage
from submanifold.pipelines.served import Served, log_model
from submanifold.pipelines.store import create_store
from submanifold.uses.scoring import score_pictures


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
    create_store(uri)
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


@pytest.mark.parametrize(("shape", "params", "message"), [
    ((2, 3, 8, 8), {}, "but the model was trained on"),
    ((2, 1, 8, 8), {"task": "paint"}, "task=paint is not known. Allowed: score, encode"),
])  # fmt: skip
def test_what_cannot_be_done_is_said(model, shape, params, message):
    with pytest.raises(ValueError, match=message):
        Served(model).predict(np.zeros(shape, np.uint8), params)
