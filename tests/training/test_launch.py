"""Several processes train what one trains."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import resumable
import torch

from submanifold import team
from submanifold.errors import UserError
from submanifold.training import launch
from submanifold.training.launch import train_by_processes
from submanifold.training.phases import PhaseSettings, train_phase

CPU = torch.device("cpu")


def phase(**changes):
    settings = resumable.settings(**{"precision": "float32", "steps": 12, **changes})
    return PhaseSettings(
        stages=(1,), input_noise=0.01, training=settings,
        reconstruction={"penalty": "mse", "weight": 10.0, "spread": 2.0},
    )  # fmt: skip


def images(tmp_path):
    """A map of a file, and an array that is none."""
    rows = np.random.default_rng(0).integers(0, 256, (84, 3, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "train.npy", rows[:64])
    return np.load(tmp_path / "train.npy", mmap_mode="c"), rows[64:]


def arguments(tmp_path, name, *more, **changes):
    return (phase(**changes), resumable.MODEL, None, *images(tmp_path), 3, CPU, tmp_path / name,
            *more)  # fmt: skip


def test_alone_there_is_nothing_to_share():
    rows = torch.arange(6.0)
    assert (team.size(), team.rank()) == (1, 0)
    assert torch.equal(team.share(rows), rows)
    assert torch.equal(team.drawn(torch.arange, 4), torch.arange(4))
    team.average([rows])
    assert torch.equal(rows, torch.arange(6.0))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """One training by one process and by two: models, histories, and what was logged."""
    folder = tmp_path_factory.mktemp("launch")
    logged = {"one": [], "two": []}

    def log(name):
        return lambda *row: logged[name].append(row)

    one = train_phase(*arguments(folder, "one", log("one")))
    two = train_by_processes(2, *arguments(folder, "two", log("two")))
    return folder, one, two, logged


def test_two_processes_have_the_loss_curve_of_one(both):
    _, (one, alone), (two, shared), _ = both
    for kind in ("train", "valid"):
        for mine, theirs in zip(shared[kind], alone[kind], strict=True):
            for key in mine.keys() - {"rows_per_second"}:
                if key != "inverse_error":  # which is rounding itself
                    assert mine[key] == pytest.approx(theirs[key], rel=1e-5), (kind, key)
    for p, q in zip(two.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)


def test_one_of_them_logs_and_writes(both):
    folder, _, _, logged = both
    assert [row[:2] for row in logged["two"]] == [row[:2] for row in logged["one"]]
    assert {path.name for path in (folder / "two").iterdir()} == {"last.safetensors"}


def test_a_training_goes_on_with_another_number_of_processes(tmp_path, both):
    _, (one, _), _, _ = both

    def stop(name, step, row):
        if step == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_phase(*arguments(tmp_path, "changed", stop))
    two, history = train_by_processes(2, *arguments(tmp_path, "changed"))
    assert history["steps_trained"] == 6
    for p, q in zip(two.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"launch.processes=3 cannot share a batch of 16"):
        train_by_processes(3, *arguments(tmp_path, "three"))


def test_a_training_that_fails_says_why(tmp_path):
    with pytest.raises(UserError, match=r"Lower training.learning_rate"):
        train_by_processes(2, *arguments(tmp_path, "wild", learning_rate=1e30, clip=None))


def test_a_process_that_dies_ends_all_with_a_message_and_loses_nothing(tmp_path, monkeypatch):
    killed = []

    def kill(name, step, row):
        if "valid.loss" in row and not killed:
            children = os.popen(f"ps -o pid= --ppid {os.getpid()}").read().split()
            workers = [int(pid) for pid in children if is_worker(pid)]
            killed.append(workers[-1])
            os.kill(killed[0], signal.SIGKILL)

    def is_worker(pid):
        try:
            return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False

    monkeypatch.setattr(launch, "LOOK", 0.01)
    long = arguments(tmp_path, "dies", kill, validate_every=6, steps=5000)
    with pytest.raises(UserError, match="give the command again to go on"):
        train_by_processes(2, *long)
    assert killed
    assert (tmp_path / "dies" / "last.safetensors").exists()
