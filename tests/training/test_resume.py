import json
import logging
import random
import signal
import subprocess
import sys
import time

import pytest
import resumable
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from submanifold.models import Model
from submanifold.training.trainer import EARLIER

pytestmark = pytest.mark.fault

SCRIPT = [sys.executable, resumable.__file__]
CLOCKS = {"seconds", "rows_per_second", "steps_trained"}


def timeless(value):
    """Drop whatever the clock decides from a history."""
    if isinstance(value, dict):
        return {key: timeless(inner) for key, inner in value.items() if key not in CLOCKS}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("kind", ["images", "vectors"])
def test_a_killed_training_resumes_bit_for_bit(tmp_path, kind):
    uninterrupted, history = resumable.train(kind, tmp_path / "uninterrupted")
    assert history["steps_trained"] == resumable.STEPS[kind]
    every, steps = resumable.EVERY[kind], resumable.STEPS[kind]

    # twice, each time somewhere after the checkpoint that the one before had reached
    folder, last = tmp_path / "killed", tmp_path / "killed" / "last.safetensors"
    reached = 0
    for upper in (steps // 2, steps - every):
        child = subprocess.Popen([*SCRIPT, kind, str(folder)], stdout=subprocess.PIPE)
        moment = random.randint(reached + every + 1, max(upper, reached + every + 1))
        while int(child.stdout.readline()) < moment:
            pass
        time.sleep(random.uniform(0, 0.1))
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        newest = last if last.exists() else last.with_name(EARLIER)  # killed between the two
        with safe_open(newest, "pt") as file:
            state = json.loads(file.metadata()["state"])
        assert reached < state["step"] < steps
        reached = state["step"]

    rows = []
    again, resumed = resumable.train(kind, folder, lambda step, row: rows.append((step, row)))
    assert resumed["steps_trained"] == steps - reached
    for (name, p), q in zip(again.named_parameters(), uninterrupted.parameters(), strict=True):
        assert torch.equal(p, q), name
    assert timeless(resumed) == timeless(history)
    mine, other = load_file(last), load_file(tmp_path / "uninterrupted" / last.name)
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[key], other[key]) for key in mine)
    # the log was handed out again from the start, each row once
    for part in ("train", "valid"):
        logged = [step for step, row in rows if f"{part}.loss" in row]
        assert logged == [row["step"] for row in history[part]]

    # and once it has ended, it trains no further
    third, finished = resumable.train(kind, folder)
    assert finished["steps_trained"] == 0
    assert all(map(torch.equal, third.parameters(), uninterrupted.parameters()))
    assert timeless(finished) == timeless(history)


def test_a_second_run_waits_for_the_first_and_reuses_its_result(tmp_path, caplog):
    first = subprocess.Popen([*SCRIPT, "phases", str(tmp_path)], stdout=subprocess.PIPE)
    assert first.stdout.readline().split()[0] == b"phase_1"
    with caplog.at_level(logging.INFO, "submanifold"):
        second, histories = resumable.train_phases(tmp_path)
    assert first.wait() == 0
    waits = "waiting for another run"
    assert any(waits in line and "finish phase_1" in line for line in caplog.messages)
    assert histories[0]["steps_trained"] == 0
    # of phase 2, whichever of the two came first
    assert histories[1]["steps_trained"] in (0, histories[1]["steps"])
    made = Model.load(tmp_path / "model.safetensors")
    assert all(map(torch.equal, second.parameters(), made.parameters()))
