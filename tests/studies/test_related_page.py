from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from submanifold.data.synthetic import MANIFOLDS, Circle
from submanifold.flows import Glow, RealNVP
from submanifold.models import Hierarchy, Stage
from submanifold.studies import related, related_measures
from submanifold.studies.targets import TARGETS, Content
from submanifold.studies.write import plan


def value(number):
    return {"value": number, "low": number - 0.001, "high": number + 0.001}


def of_points(nearest, divergence=None):
    found = {"nearest_distance": value(nearest), "data_distance": value(0.1),
             "seconds": {"value": 10.0}}  # fmt: skip
    return found if divergence is None else found | {"divergence": value(divergence)}


MEASURED = {
    "circle: nested (ours)": of_points(0.06, 0.09),
    "circle: nested, then a flow (ours)": of_points(0.05, 0.08),
    "circle: two charts": of_points(0.01, 0.02),
    "circle: Trumpet": of_points(0.02),
    "circle: SoftFlow": {"divergence": value(0.01), "seconds": {"value": 10.0}},
    "paraboloid: nested (ours)": of_points(0.01, 0.02),
    "paraboloid: nested, then a flow (ours)": of_points(0.015, 0.03),
    "paraboloid: two charts": of_points(0.02, 0.01),
}


@pytest.fixture
def runs(monkeypatch, tmp_path):
    """One seed of some systems, measured as above; nothing is trained."""
    monkeypatch.setattr(related, "measure_points", lambda experiment: MEASURED[experiment.name])
    return {name: [SimpleNamespace(name=name, project=tmp_path)] for name in MEASURED}


def test_each_system_finds_what_is_below_the_thresholds(runs):
    tables = related.make(runs, Content).tables
    rows = tables["What each system finds, at what price"].set_index("system").to_dict("index")
    ours, charts = rows["nested (ours)"], rows["two charts"]
    assert (ours["manifolds found"], ours["not found"]) == ("1 of 2", "circle")
    assert ours["densities found"] == "2 of 2"
    assert (charts["manifolds found"], charts["not found"]) == ("2 of 2", "")
    assert rows["Trumpet"]["densities found"] == "none to find"
    assert rows["SoftFlow"]["manifolds found"] == "none to find"
    softflow = tables["circle"].set_index("system").loc["SoftFlow"]
    assert softflow["nearest point to the true one"] == "–"
    assert tables["circle"].set_index("system").loc["Trumpet", "nats above the truth"] == "–"


def test_where_ours_is_off_the_frontier_it_is_said_what_is_better(runs):
    notes = related.make(runs, Content).notes
    assert "circle: nested (ours) is not on the frontier; better in both: two charts." in notes
    on = [note for note in notes if "is on the frontier" in note]
    assert on == ["paraboloid: nested (ours) is on the frontier of density and manifold."]


def test_what_was_measured_before_stands_where_there_is_no_run(runs, tmp_path):
    first = related.make(runs, Content)
    assert any(note.startswith("Not run on circle: PCA, then a flow") for note in first.notes)
    record = tmp_path / related.RECORD
    record.parent.mkdir()
    first.data.assign(seed=1).to_csv(record, index=False)
    content = related.make(runs, Content)
    assert set(content.tables["circle"]["seeds"]) == {2}
    assert content.notes[-1].startswith(f"{len(first.data)} lines")


def test_seconds_are_the_least_of_the_seeds_and_others_their_mean(runs, tmp_path):
    first = related.make(runs, Content)
    record = tmp_path / related.RECORD
    record.parent.mkdir()
    slower = first.data.assign(seed=1)
    slower["value"] *= 3
    new = slower[slower["measure"] == "seconds"].assign(measure="sample_median")
    pd.concat([slower, new]).to_csv(record, index=False)
    row = related.make(runs, Content).tables["circle"].set_index("system").loc["two charts"]
    assert (row["seeds"], row["seconds"]) == (2, "10")
    assert row["nearest point to the true one"].startswith("0.02 [")


def test_every_system_is_on_every_manifold_that_it_is_another_on():
    labels = set(TARGETS["related"].needs)
    for manifold, kind in MANIFOLDS.items():
        absent = [name for name in related.SYSTEMS if f"{manifold}: {name}" not in labels]
        assert absent == (["principal flow", "canonical flow"] if kind.dim == 1 else [])
    assert "CelebA, d = 500: rectangular flow" not in labels
    assert "Fashion-MNIST, d = 20: rectangular flow" in labels


@pytest.mark.parametrize("data", ["circle", "linear_gaussian", "Fashion-MNIST, d = 64"])
def test_every_system_is_a_row_of_settings_that_can_work(project, data):
    planned = plan(["related"], project.path)["related"]
    for label, (experiment,) in planned.items():
        if label.startswith(f"{data}: ") and not label.endswith("SoftFlow"):  # it has no manifold
            system = related.SYSTEMS[label.partition(": ")[2]]
            assert experiment.parameters["method"] == system.method
            assert experiment.configuration.experiment.model.stages[-1].dim == (
                related.IMAGES[data].dim if data in related.IMAGES else MANIFOLDS[data].dim
            )


def experiment(tmp_path, model, arrays, **about):
    """As much of an experiment as is asked for a model's measurements."""
    catalog = SimpleNamespace(exists=lambda name: name in arrays)
    found = SimpleNamespace(
        project=tmp_path, key="a-run", load=({"hierarchy": model} | arrays).__getitem__,
        histories=lambda: [{"seconds": 2.0}, {"seconds": 3.0}], catalog=catalog,
        parameters={"device": "cpu"}, groups={}, **about,
    )  # fmt: skip
    found.changed = lambda name, value: found
    return found


def test_a_model_of_points_is_measured_once_beside_the_truth(tmp_path):
    torch.manual_seed(0)
    model, truth = Hierarchy([Stage(RealNVP(2, hidden=8), 1)]), Circle()
    points = truth.sample(200, np.random.default_rng(0)).astype(np.float32)
    data = SimpleNamespace(experiment=SimpleNamespace(data=SimpleNamespace(manifold=truth)))
    about = experiment(tmp_path, model, {"x_test": points}, configuration=data)
    found = related_measures.measure_points(about)
    off = np.abs(np.linalg.norm(points, axis=1) - 1)
    assert found["data_distance"]["value"] == pytest.approx(off.mean(), rel=1e-5)
    assert found["nearest_distance"]["value"] <= found["projection_distance"]["value"] + 1e-6
    above = found["manifold_nll"]["value"] - truth.manifold_entropy
    assert found["manifold_divergence"]["value"] == pytest.approx(above, rel=1e-6)
    assert found["seconds"]["value"] == 5
    samples = found["sample_median"]
    assert samples["low"] < samples["value"] < samples["high"]
    about.load = None
    assert related_measures.measure_points(about) == found


def test_a_model_of_points_without_a_manifold_has_no_projections(tmp_path):
    torch.manual_seed(0)
    points = Circle().sample(200, np.random.default_rng(0)).astype(np.float32)
    data = SimpleNamespace(experiment=SimpleNamespace(data=SimpleNamespace(manifold=Circle())))
    model = Hierarchy([Stage(RealNVP(2, hidden=8), 2)])
    about = experiment(tmp_path, model, {"x_test": points}, configuration=data)
    found = related_measures.measure_points(about)
    assert not {"nearest_distance", "projection_distance"} & set(found)
    assert found["sample_median"]["value"] > 0


def test_a_model_of_images_is_measured_with_ood(tmp_path):
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    parts = {"x_train": 300, "x_valid": 40, "x_test": 60}
    arrays = {name: rng.integers(100, 150, (count, 1, 8, 8), dtype=np.uint8)
              for name, count in parts.items()}  # fmt: skip
    arrays["x_ood"] = rng.integers(0, 256, (50, 1, 8, 8), dtype=np.uint8)
    flow = Glow((1, 8, 8), levels=2, steps=2, width=8)
    with torch.no_grad():
        flow(torch.from_numpy(arrays["x_train"]) / 256 - 0.5)  # so that it is set from data
    model = Hierarchy([Stage(flow, 6)]).eval()
    found = related_measures.measure_images(experiment(tmp_path, model, arrays), "noise")
    assert found["auroc.mahalanobis"]["value"] > 0.9
    assert found["nearest"]["value"] <= found["encoder"]["value"]
    assert pd.notna(found["kid"]["value"])
    assert found["bits_per_dim"]["n"] == 60
