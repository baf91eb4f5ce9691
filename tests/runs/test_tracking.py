"""Curves sent to MLflow while its server works, fails or hangs."""

import errno
import threading
import time

import pytest
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import OperationalError

from submanifold.runs import tracking
from submanifold.runs.store import is_store_failure
from submanifold.runs.tracking import Curves

UNREACHABLE = "There is no server"


class Client:
    """A fake MLflow client whose server may be down or slow."""

    def __init__(self):
        self.down, self.slow = False, threading.Event()
        self.slow.set()
        self.attempts, self.taken = 0, []

    def log_batch(self, run_id, metrics):
        self.attempts += 1
        self.slow.wait()
        if self.down:
            raise MlflowException(UNREACHABLE)
        self.taken += [(run_id, metric.key, metric.value, metric.step) for metric in metrics]


@pytest.fixture
def client(monkeypatch):
    client = Client()
    monkeypatch.setattr(tracking.mlflow, "MlflowClient", lambda: client)
    monkeypatch.setattr(tracking, "SEND_INTERVAL", 0.01)
    monkeypatch.setattr(tracking, "RETRY_INTERVAL", 0.02)
    monkeypatch.setattr(tracking, "CLOSE_TIMEOUT", 5.0)
    tracking._warn.cache_clear()
    return client


def rows(count):
    return [("a", "loss", float(step), step) for step in range(count)]


def fill(curves, steps):
    for step in steps:
        curves.add({"loss": float(step)}, step)


def test_values_arrive_in_order(client, caplog):
    curves = Curves("a")
    fill(curves, range(2500))
    curves.close()
    assert client.taken == rows(2500)
    assert client.attempts < 2500, "many at once"
    assert caplog.text == ""


def test_training_does_not_wait_for_a_hanging_server(client, caplog, monkeypatch):
    monkeypatch.setattr(tracking, "CLOSE_TIMEOUT", 0.1)
    client.slow.clear()
    curves, started = Curves("a"), time.monotonic()
    fill(curves, range(100))
    assert time.monotonic() - started < 1
    curves.close()
    assert time.monotonic() - started < 3
    assert "100 values of the training curves have not reached MLflow" in caplog.text
    client.slow.set()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MlflowException(UNREACHABLE), True),
        (MlflowException.invalid_parameter_value("name"), False),
        (OperationalError("INSERT", {}, Exception("database is locked")), True),
        (OSError(errno.ENOSPC, "full"), True),
        (FileNotFoundError(errno.ENOENT, "no metrics.json"), False),
        (ValueError("a mistake"), False),
    ],
)
def test_failures_of_the_store_are_distinguished_from_mistakes(error, expected):
    assert is_store_failure(error) is expected
