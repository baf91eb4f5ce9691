"""Methods of related systems: training, metrics and report."""

import math

import pytest

pytestmark = pytest.mark.pipeline

DIM = {"stage_1": {"dim": 24}}
INNER = {**DIM, "stage_2": {"dim": 24}}
VOLUMES = {"evaluation": {"volumes": 4}}
SHORT = {"training": {"steps": 12}}
slow = pytest.mark.slow


def check(run, report=True):
    """Check that the metrics are finite, and that bits are reported if there is a density."""
    metrics = run.load("metrics")
    assert math.isfinite(metrics["mse"]["value"])
    bits = metrics["bits_per_dim"]
    if run.load("hierarchy").has_density:
        assert math.isfinite(bits["value"])
    else:
        assert (bits["value"], "not invertible" in bits["why"]) == (None, True)
        on_manifold = metrics if "manifold_nll" in metrics else run.load("truth")
        assert math.isfinite(on_manifold["manifold_nll"]["value"])
        assert not report or "but not on R<sup>" in run.load("report")
    return run


@pytest.mark.parametrize(
    ("method", "changes", "stage"),
    [
        pytest.param("PIE", DIM, {"off_manifold_scale": 0.01}, marks=slow),
        pytest.param("NIF", INNER, {"noise": 0.1}, marks=slow),
        pytest.param("M-flow", INNER, {}, marks=slow),
        pytest.param("trumpet", INNER | VOLUMES, {}, marks=slow),
        pytest.param("autoencoder", INNER | VOLUMES, {}, marks=slow),
        pytest.param("conformal", INNER | VOLUMES, {}, marks=slow),
        ("conformal", {"dataset": "circle"}, {}),
        pytest.param("SoftFlow", {}, {}, marks=slow),
        pytest.param("SoftFlow", {"dataset": "circle"}, {}, marks=slow),
        ("multi-chart", {"dataset": "circle", "charts": 3}, {}),
        pytest.param("multi-chart", DIM | {"charts": 3}, {}, marks=slow),
    ],
)
def test_related_systems_are_trained_and_reported(project, method, changes, stage):
    run = check(project.run(method=method, **changes))
    config = run.load("hierarchy").describe()
    charts = config.get("charts", [config])
    assert all(stage.items() <= chart["stages"][-1].items() for chart in charts)
    assert len(charts) == changes.get("charts", 1)
    if method == "SoftFlow":
        assert math.isfinite(run.load("metrics")["bits_per_dim_noisy"]["value"])


@pytest.mark.parametrize(
    ("method", "dim"),
    [("rectangular", 24), pytest.param("rectangular", 70, marks=slow), ("FIF", 24)],
)
def test_flows_are_trained_by_the_density_on_their_manifold(project, method, dim):
    about = {"stage_1": {"dim": dim}, "joint": SHORT, **VOLUMES}
    run = check(project.run(until="metrics", method=method, **about), report=False)
    (history,) = [run.load(name) for name in run.catalog if name.endswith(".history")]
    assert all(math.isfinite(row["manifold_likelihood"]) for row in history["train"])
    assert "likelihood" not in history["train"][0]
