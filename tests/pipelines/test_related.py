"""The related systems are rows of settings, and run to the report as the paper's methods do."""

import math
import re

import pytest
from click import ClickException

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


def has_no_density(run):
    """Nothing is said of all of space, and the rest is there."""
    metrics, report = run.load("metrics"), run.load("report")
    assert metrics["bits_per_dim"]["value"] is None
    assert "not invertible" in metrics["bits_per_dim"]["why"]
    assert math.isfinite(metrics["mse"]["value"])
    assert "not on all of R<sup>" in report
    assert "an exact density" not in report
    assert "bpd" not in run.mlflow.data.metrics
    rows = run.load("phase_1.history")["valid"]
    assert "bits_per_dim" not in rows[0]
    return run


def test_a_conformal_embedding_has_a_density_on_its_manifold_alone(project):
    run = has_no_density(project.run("joint", dataset="circle", method="conformal"))
    truth = run.load("truth")
    assert math.isfinite(truth["manifold_nll"]["value"])
    assert "divergence" not in truth
    flow = run.load("hierarchy").config["stages"][0]["bijections"][0]
    assert flow["type"] == "conformal", "not the dataset's, which is for flows of images"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["trumpet", "autoencoder"])
def test_a_manifold_is_learned_and_then_the_density_of_its_code(project, method):
    run = has_no_density(project.run(method=method, **INNER))
    assert math.isfinite(run.load("metrics")["manifold_nll"]["value"])


@pytest.mark.slow
def test_a_conformal_embedding_of_images_is_reported(project):
    has_no_density(project.run("joint", method="conformal", **INNER))


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "flow"), [("photos", "soft_glow"), ("circle", "soft_realnvp")])
def test_softflow_is_told_of_noise(project, dataset, flow):
    run = ends_well(project.run("joint", until="metrics", dataset=dataset, method="SoftFlow"))
    assert run.load("hierarchy").config["stages"][0]["bijections"][0]["type"] == flow
    noisy = run.load("metrics")["bits_per_dim_noisy"]["value"]
    assert math.isfinite(noisy)


@pytest.mark.slow
def test_a_noisy_injective_flow_keeps_its_noise(project):
    run = ends_well(project.run("joint", until="metrics", method="NIF", **INNER))
    assert [each.get("noise", 0) for each in run.load("hierarchy").config["stages"]] == [0, 0.1]


@pytest.mark.parametrize("dataset", ["circle", pytest.param("photos", marks=pytest.mark.slow)])
def test_several_charts_are_one_density(project, dataset):
    about = {} if dataset == "circle" else DIM
    run = project.run("joint", dataset=dataset, method="multi-chart", charts=3, **about)
    ends_well(run)
    assert run.load("hierarchy").config["charts"] == 3
    assert "an exact density" in run.load("report")


@pytest.mark.parametrize(("method", "changes", "message"), [
    ("H-MM", {"charts": 2}, "phase_1 trains stage 1"),
    ("nested", {"charts": 2}, "charts=2 cannot be used with method=nested"),
    ("rectangular", {"charts": 2}, "one chart's volume"),
    ("trumpet", {"phase_1": {"likelihood": {"weight": 1.0}}}, "no closed form"),
    ("SoftFlow", {"phase_1": {"input_noise": 0}}, "adds none there"),
    ("NIF", {"stage_1": {"dim": 24, "noise": 0.1}}, "stage_1.noise=0.1"),
    ("conformal", {"stage_1": {"dim": 193}}, "stage_1.dim: expected 1 to 192"),
    ("H-MM", {"stage_1": {"flow": {"type": "trumpet", "steps": 0}}}, "stage_1.flow.steps=0"),
])  # fmt: skip
def test_what_cannot_be_is_refused(project, method, changes, message):
    changes = INNER | changes if method not in ("rectangular", "SoftFlow", "nested") else (
        ({} if method == "SoftFlow" else DIM) | changes
    )  # fmt: skip
    with pytest.raises(ClickException, match=re.escape(message)):
        project.run("hierarchical", method=method, **changes)
