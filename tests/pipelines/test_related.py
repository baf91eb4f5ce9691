"""The related systems are rows of settings, and run to the report as the paper's methods do."""

import math

import pytest

DIM = {"stage_1": {"dim": 24}}
INNER = {**DIM, "stage_2": {"dim": 24}}
SHORT = {"training": {"steps": 12}}


def ends_well(run):
    metrics = run.load("metrics")
    assert math.isfinite(metrics["mse"]["value"])
    assert math.isfinite(metrics["bits_per_dim"]["value"])
    return run


@pytest.mark.parametrize("large", [
    False, pytest.param(True, marks=pytest.mark.slow)
], ids=["exact", "estimated"])  # fmt: skip
def test_a_rectangular_flow_is_trained_by_the_density_on_its_manifold(project, large):
    until = "hierarchy" if large else "metrics"
    about = {"stage_1": {"dim": 70 if large else 24}, "phase_1": SHORT}
    run = project.run("joint", until=until, method="rectangular", **about)
    assert large or ends_well(run)
    rows = run.load("phase_1.history")["train"]
    assert all(math.isfinite(row["manifold_likelihood"]) for row in rows)
    assert "likelihood" not in rows[0]
    assert "phase_1.train.manifold_likelihood" in run.mlflow.data.metrics


@pytest.mark.slow
def test_m_flow_learns_the_manifold_and_then_its_density(project):
    run = ends_well(project.run(until="metrics", method="M-flow", **INNER))
    first, second = (run.load(f"phase_{n}.history")["train"][0] for n in (1, 2))
    assert "likelihood" not in first
    assert "reconstruction" not in second


@pytest.mark.slow
def test_m_flow_in_turns_trains_both_stages_twice(project):
    phases = {f"phase_{n}": SHORT for n in (1, 2, 3, 4)}
    run = project.run(until="hierarchy", method="M-flow-alternating", **INNER, **phases)
    assert [run.load(f"phase_{n}.history")["steps"] for n in (1, 2, 3, 4)] == [12] * 4
    assert [each["stages"] for each in run.load("hierarchy").notes["phases"]] == [[1], [2]] * 2


@pytest.mark.slow
def test_pie_leaves_little_room_off_the_manifold(project):
    run = ends_well(project.run("joint", until="metrics", method="PIE", **DIM))
    assert run.load("hierarchy").config["stages"][0]["off_manifold_scale"] == 0.01
