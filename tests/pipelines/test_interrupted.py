"""Runs that end before their time: killed, told to stop, or failed."""

import contextlib
import json
import signal
import time

import pytest
import torch
from click import ClickException
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from submanifold.common.errors import UserError
from submanifold.pipelines.evaluation import nodes
from submanifold.training.checkpoint import EARLIER, LAST

STEPS, EVERY = 300, 20
LONG = {"stage_2": {"training": {"steps": STEPS, "validate_every": EVERY}}}
COMMAND = (
    *("run", "--env=test", "--pipeline=hierarchical"),
    f"--params=device=cpu,stage_2.training.steps={STEPS},stage_2.training.validate_every={EVERY}",
)


def reached(project):
    """Step of stage 2's last checkpoint, or of the one before while it is being replaced."""
    steps = [0]
    for folder in project.path.glob("data/06_models/photos-stage_2-*"):
        for name in (LAST, EARLIER):
            with (
                contextlib.suppress(OSError, SafetensorError),
                safe_open(folder / name, "pt") as file,
            ):
                steps.append(json.loads(file.metadata()["state"])["step"])
    return max(steps)


def stop(project, how):
    """Run, stop it after a new checkpoint of stage 2, and say where it was."""
    before = reached(project)
    process = project.start(*COMMAND)
    deadline = time.monotonic() + 100
    while reached(project) <= before:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(how)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert before < reached(project) < STEPS
    return reached(project)


def statuses(project):
    return [run.info.status for run in project.mlflow_runs()]


@pytest.mark.parametrize("signals", [
    [signal.SIGTERM],
    pytest.param([signal.SIGKILL, signal.SIGTERM, signal.SIGINT], marks=pytest.mark.slow),
], ids=lambda signals: " ".join(each.name for each in signals))  # fmt: skip
def test_a_run_stopped_in_stage_2_is_picked_up_and_ends_like_one_that_was_not(new_project, signals):
    project = new_project()
    for number, how in enumerate(signals):
        stopped_at = stop(project, how)
        *before, last = statuses(project)
        assert before == ["KILLED"] * number, "what was killed is marked by the next"
        assert last == ("RUNNING" if how == signal.SIGKILL else "KILLED")

    last = project.run(until="metrics", **LONG)
    assert statuses(project) == ["KILLED"] * len(signals) + ["FINISHED"]
    assert last.steps == {"stage_1": 0, "stage_2": STEPS - stopped_at}

    other = new_project()
    whole = other.run(until="metrics", **LONG)
    assert whole.steps == {"stage_1": 12, "stage_2": STEPS}
    for name in ("stage_1.model", "stage_2.model", "hierarchy"):
        mine, its = load_file(last.path(name)), load_file(whole.path(name))
        assert mine.keys() == its.keys()
        assert all(torch.equal(mine[key], its[key]) for key in mine)
    mine, its = last.load("metrics"), whole.load("metrics")
    assert {**mine, "seconds": None} == {**its, "seconds": None}

    # the run that went on has the whole curve, from the first step
    for run, project_ in ((last, project), (whole, other)):
        curve = project_.mlflow_client.get_metric_history(
            run.mlflow.info.run_id, "stage_2.valid.loss"
        )
        assert [point.step for point in curve] == list(range(EVERY, STEPS + 1, EVERY))


def test_a_run_whose_node_fails_is_marked_failed(project, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("the moon is full")

    monkeypatch.setattr(nodes, "measure", fail)
    with pytest.raises(RuntimeError, match="the moon is full"):
        project.run(until="metrics")
    assert statuses(project)[-1] == "FAILED"
    monkeypatch.undo()
    assert project.run(until="metrics").steps == {"stage_1": 0, "stage_2": 0}
    assert statuses(project)[-2:] == ["FAILED", "FINISHED"]


def test_a_run_that_a_mistake_ends_is_marked_failed(project, monkeypatch):
    def refuse(*arguments):
        raise UserError("the disk is full")

    monkeypatch.setattr(nodes, "measure", refuse)
    with pytest.raises(ClickException, match="the disk is full"):
        project.run(until="metrics", evaluation={"samples": 32})
    assert statuses(project)[-1] == "FAILED"
