import json
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

CLOCKS = {"seconds", "rows_per_second", "steps_trained"}


def timeless(value):
    """Drop whatever the clock decides from a history."""
    if isinstance(value, dict):
        return {key: timeless(inner) for key, inner in value.items() if key not in CLOCKS}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("kind", ["images", "vectors"])
def test_a_killed_training_ends_like_one_that_was_not(tmp_path, kind):
    whole, history = resumable.train(kind, tmp_path / "whole")
    assert history["steps_trained"] == resumable.STEPS[kind]
    every, steps = resumable.EVERY[kind], resumable.STEPS[kind]

    # twice, each time somewhere after the checkpoint that the one before had reached
    folder, last = tmp_path / "killed", tmp_path / "killed" / "last.safetensors"
    reached = 0
    for upper in (steps // 2, steps - every):
        child = subprocess.Popen(
            [sys.executable, resumable.__file__, kind, str(folder)], stdout=subprocess.PIPE
        )
        moment = random.randint(reached + every + 1, max(upper, reached + every + 1))
        while int(child.stdout.readline()) < moment:
            pass
        time.sleep(random.uniform(0, 0.1))
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        with safe_open(last, "pt") as file:
            state = json.loads(file.metadata()["state"])
        assert reached < state["step"] < steps
        reached = state["step"]

    rows = []
    again, resumed = resumable.train(kind, folder, lambda step, row: rows.append((step, row)))
    assert resumed["steps_trained"] == steps - reached
    for (name, p), q in zip(again.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(p, q), name
    assert timeless(resumed) == timeless(history)
    assert timeless(again.notes) == timeless(whole.notes)
    for name in ("last.safetensors", "best.safetensors"):
        mine, other = load_file(folder / name), load_file(tmp_path / "whole" / name)
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[key], other[key]) for key in mine)
    # the log was handed out again from the start, each row once
    for part in ("train", "valid"):
        logged = [step for step, row in rows if f"{part}.loss" in row]
        assert logged == [row["step"] for row in history[part]]

    # and once it has ended, it trains no further
    third, finished = resumable.train(kind, folder)
    assert finished["steps_trained"] == 0
    assert all(map(torch.equal, third.parameters(), whole.parameters()))
    assert timeless(finished) == timeless(history)
    assert third.notes == again.notes
