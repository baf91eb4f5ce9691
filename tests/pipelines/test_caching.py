"""What is trained again, and what is found: the table of kedro.md, in steps trained."""

import shutil

import numpy as np
import pytest
from PIL import Image

from submanifold import cli

STEPS = 12
BOTH, NONE = {"stage_1": STEPS, "stage_2": STEPS}, {"stage_1": 0, "stage_2": 0}
ONLY_2 = {"stage_1": 0, "stage_2": STEPS}


@pytest.fixture(scope="module")
def first(project):
    return project.run(until="metrics")


def trained(project, **params):
    return project.run(until="hierarchy", **params).steps


def test_the_first_run_trains_both_stages_and_the_same_again_trains_none(project, first):
    assert first.steps == BOTH
    again = project.run(until="metrics")
    assert again.steps == NONE
    assert again.path("hierarchy") == first.path("hierarchy")
    mine, before = again.load("metrics"), first.load("metrics")
    assert mine["bits_per_dim"] == before["bits_per_dim"]


def test_a_run_of_nothing_but_reused_phases_has_their_curves_and_metrics(project, first):
    again = project.run(until="metrics", only_missing_outputs=True)
    assert again.steps == NONE
    assert again.mlflow.data.metrics["test.bits_per_dim"] == pytest.approx(
        first.load("metrics")["bits_per_dim"]["value"]
    )

    def curve(run):
        history = project.mlflow_client.get_metric_history(
            run.mlflow.info.run_id, "stage_2.train.loss"
        )
        return {point.step: point.value for point in history}

    assert curve(again) == curve(first) != {}


@pytest.mark.parametrize(
    ("arguments", "only_missing"),
    [
        ([], True),
        (["--pipeline=hierarchical", "--to-outputs=metrics"], True),
        (["--nodes=evaluate"], False),
        (["--pipeline=compare"], False),
    ],
)
def test_kedro_run_computes_what_is_missing_and_what_is_named(
    project, monkeypatch, arguments, only_missing
):
    given = {}
    monkeypatch.setattr(cli.kedro_run, "callback", lambda **options: given.update(options))
    code, output = project.typed("run", "--env=test", *arguments)
    assert code == 0, output
    assert given["only_missing_outputs"] is only_missing


@pytest.mark.parametrize(
    "setting",
    [{"stage_2": {"dim": 10}}, {"stage_2": {"reconstruction": {"penalty": "none"}}}],
)
def test_another_setting_of_stage_2_retrains_only_stage_2(project, first, setting):
    assert trained(project, **setting) == ONLY_2


def test_another_dim_of_stage_1_retrains_both_and_going_back_reuses_both(project, first):
    assert trained(project, stage_1={"dim": 20}) == BOTH
    assert trained(project) == NONE


def test_another_delta_of_stage_1_retrains_both_and_going_back_reuses_both(project):
    def huber(delta):
        reconstruction = {"penalty": "huber", "delta": delta}
        return trained(project, stage_1={"reconstruction": reconstruction})

    assert [huber(0.1), huber(0.2), huber(0.1)] == [BOTH, BOTH, NONE]


def test_methods_that_differ_in_stage_2_share_stage_1(project, first):
    dims = {"stage_1": {"dim": 24}, "stage_2": {"dim": 12}}
    assert trained(project, method="H-MH", **dims) == ONLY_2


LIKELIHOOD_FIRST = """
methods:
  likelihood-first:
    stage_1: {flow: {type: glow}, dim: 24}
    stage_2: {flow: {type: realnvp}, dim: 12}
    phases:
      density: {stages: 1, reconstruction: {penalty: none}}
      penalty: {stages: 1, reconstruction: {weight: 30.0}}
      code_flow: {stages: 2}
"""


def test_of_three_phases_only_those_that_are_changed_and_follow_are_trained(project, first):
    """A Glow by likelihood alone, then with the penalty, then stage 2: one row of conf/."""
    parameters = project.path / "conf" / "test" / "parameters.yml"
    before = parameters.read_text()
    row = LIKELIHOOD_FIRST.replace("\nmethods:\n", "")
    parameters.write_text(before.replace("methods:\n", f"methods:\n{row}", 1))

    def steps(**params):
        return list(trained(project, method="likelihood-first", **params).values())

    try:
        assert steps() == [STEPS, STEPS, STEPS]
        assert steps(code_flow={"training": {"clip": 0.5}}) == [0, 0, STEPS]
        assert steps(penalty={"reconstruction": {"weight": 3.0}}) == [0, STEPS, STEPS]
        assert steps(stage_2={"dim": 6}) == [0, 0, STEPS]
        run = project.run(until="hierarchy", method="likelihood-first")
        assert list(run.steps.values()) == [0, 0, 0]
        phases = run.load("hierarchy").notes["phases"]
        assert [phase["stages"] for phase in phases] == [[1], [1], [2]]
        assert "penalty.train.reconstruction" in run.mlflow.data.metrics
        assert "density.train.reconstruction" not in run.mlflow.data.metrics
    finally:
        parameters.write_text(before)


def test_another_seed_retrains_both_on_the_same_data(project, first):
    data = {name: first.path(name) for name in ("x_train", "manifest")}
    before = {path: path.read_bytes() for path in data.values()}
    inode = data["x_train"].stat().st_ino
    other = project.run(until="hierarchy", seed=1)
    assert other.steps == BOTH
    assert {name: other.path(name) for name in data} == data
    assert {path: path.read_bytes() for path in data.values()} == before
    assert data["x_train"].stat().st_ino == inode


def test_the_device_retrains_nothing(project, first):
    assert trained(project, device="auto") == NONE


def test_a_setting_of_the_evaluation_retrains_nothing_but_is_evaluated(project, first):
    other = project.run(until="metrics", evaluation={"samples": 32})
    assert other.steps == NONE
    assert other.load("metrics")["counts"]["samples"] == 32
    assert first.load("metrics")["counts"]["samples"] == 64


def write_images(folder, numbers):
    for number in numbers:
        pixels = np.random.default_rng(number).integers(0, 256, (10, 9, 3), dtype=np.uint8)
        (folder / f"{number % 3}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number % 3}" / f"{number}.png")


def test_a_folder_of_images_may_move_but_not_change(project, tmp_path):
    def from_folder(path):
        data = {"path": str(path), "size": 8}
        return trained(project, dataset="folder", data=data)

    write_images(tmp_path / "here", range(40))
    assert from_folder(tmp_path / "here") == BOTH
    (tmp_path / "far" / "away").mkdir(parents=True)
    shutil.move(tmp_path / "here", tmp_path / "far" / "away" / "there")
    assert from_folder(tmp_path / "far" / "away" / "there") == NONE
    write_images(tmp_path / "far" / "away" / "there", [40])
    assert from_folder(tmp_path / "far" / "away" / "there") == BOTH
