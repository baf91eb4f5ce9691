"""Curves sent to MLflow while its server works, fails or hangs."""

import errno
import threading

import pytest
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import OperationalError

from submanifold.runs import tracking
from submanifold.runs.store import is_store_failure
from submanifold.runs.tracking import Curves


class Client:
    """A fake MLflow client whose server may hang."""

    def __init__(self):
        self.answers = threading.Event()
        self.answers.set()
        self.attempts, self.taken = 0, []

    def log_batch(self, run_id, metrics):
        self.attempts += 1
        self.answers.wait()
        self.taken += [(run_id, metric.key, metric.value, metric.step) for metric in metrics]


@pytest.fixture
def client(monkeypatch):
    client = Client()
    monkeypatch.setattr(tracking.mlflow, "MlflowClient", lambda: client)
    monkeypatch.setattr(tracking, "SEND_INTERVAL", 0.01)
    return client


def test_values_are_sent_in_order_and_many_at_once(client, caplog):
    curves = Curves("a")
    for step in range(2500):
        curves.log("train", step, {"loss": float(step)})
    curves.close()
    assert client.taken == [("a", "train.loss", float(step), step) for step in range(2500)]
    assert client.attempts < 2500
    assert caplog.text == ""


def test_training_does_not_wait_for_a_hanging_server(client, caplog, monkeypatch):
    monkeypatch.setattr(tracking, "CLOSE_TIMEOUT", 0.1)
    client.answers.clear()
    curves = Curves("a")
    for step in range(100):
        curves.log("train", step, {"loss": 1.0})
    curves.close()
    assert "100 values of the training curves have not reached MLflow" in caplog.text
    client.answers.set()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MlflowException("There is no server"), True),
        (MlflowException.invalid_parameter_value("name"), False),
        (OperationalError("INSERT", {}, Exception("database is locked")), True),
        (OSError(errno.ENOSPC, "full"), True),
        (FileNotFoundError(errno.ENOENT, "no metrics.json"), False),
        (ValueError("a mistake"), False),
    ],
)
def test_failures_of_the_store_are_distinguished_from_mistakes(error, expected):
    assert is_store_failure(error) is expected
