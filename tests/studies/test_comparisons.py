from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from strategies import initialized_glow, perturb
from submanifold.data import Events
from submanifold.data.batches import Batches
from submanifold.data.synthetic import Circle
from submanifold.evaluation.baselines import PCA, pca_batches
from submanifold.evaluation.intervals import mean_interval, plus_minus
from submanifold.evaluation.likelihood import dequantized_log_probs, to_bits_per_dim
from submanifold.evaluation.ood import measure_ood, score_parts
from submanifold.evaluation.reconstruction import squared_errors
from submanifold.evaluation.scores import QUICK
from submanifold.flows import RealNVP
from submanifold.models import Hierarchy, Stage
from submanifold.runs.experiments import CachedRun
from submanifold.studies import results
from submanifold.studies.comparisons import measures, related
from submanifold.studies.results import as_rows, summarize


def run(model, arrays, truth=None, groups=None):
    """The attributes of a run that measurements use."""
    events = {name: Events(x, groups=(groups or {}).get(name)) for name, x in arrays.items()}
    found = SimpleNamespace(
        load=({"hierarchy": model} | events).__getitem__,
        seconds=lambda: 5.0,
        settings=SimpleNamespace(device="cpu", data=SimpleNamespace(manifold=truth)),
        catalog=SimpleNamespace(exists=lambda name: name in arrays),
    )
    found.with_params = lambda params: found
    return found


@pytest.mark.parametrize("dim", [1, 2])
def test_points_are_compared_with_the_truth(dim):
    torch.manual_seed(0)
    truth = Circle()
    points = truth.sample(200, np.random.default_rng(0)).astype(np.float32)
    model = Hierarchy([Stage(RealNVP(2, hidden=8), dim)])
    found = measures.measure_points(run(model, {"x_test": points}, truth))
    samples = found["sample_median"]
    assert samples["low"] < samples["value"] < samples["high"]
    assert found["seconds"]["value"] == 5
    if dim == 2:
        assert not {"nearest_distance", "projection_distance"} & set(found), "no manifold"
        return
    distance = np.abs(np.linalg.norm(points, axis=1) - 1)
    assert found["data_distance"]["value"] == pytest.approx(distance.mean(), rel=1e-5)
    assert found["nearest_distance"]["value"] <= found["projection_distance"]["value"] + 1e-6
    above = found["manifold_nll"]["value"] - truth.manifold_entropy
    assert found["manifold_divergence"]["value"] == pytest.approx(above, rel=1e-6)


def test_images_are_measured_and_scored_against_ood_images():
    rng, counts = np.random.default_rng(0), {"x_train": 300, "x_valid": 40, "x_test": 60}
    images = {
        name: rng.integers(100, 150, (count, 1, 8, 8), dtype=np.uint8)
        for name, count in counts.items()
    }
    images["x_ood"] = rng.integers(0, 256, (50, 1, 8, 8), dtype=np.uint8)
    model = initialized_glow(images["x_train"], 6, steps=2)
    about = run(model, images)
    wide, narrow = measures.measure_images(about, [model, model.at_dim(3)])
    pca = PCA.fit(images["x_train"])
    errors = torch.cat([pca.squared_errors(x)[:, 6] for x in pca_batches(images["x_test"])])
    assert wide["pca"]["value"] == pytest.approx(errors.mean().item(), rel=1e-3)
    assert wide["encoder"]["n"] == len(images["x_test"])
    assert wide["nearest"]["value"] <= wide["encoder"]["value"]
    assert wide["pca"]["value"] < narrow["pca"]["value"]
    assert np.isfinite(wide["kid"]["value"])
    assert measures.bits_per_dim(about, model, 50)["n"] == 50
    assert measures.measure_aurocs(about, model, "noise")["auroc.mahalanobis"]["value"] > 0.9


def test_measurements_are_cached_by_key(tmp_path):
    measured = iter([1.0, 2.0])
    runs = [SimpleNamespace(project=tmp_path, key=key) for key in ("a", "a", "b")]
    found = [CachedRun.cached(run, "page", lambda: next(measured)) for run in runs]
    assert found == [1.0, 1.0, 2.0]


def point_measures(nearest=None, divergence=None):
    values = {"divergence": divergence, "nearest_distance": nearest, "data_distance": 0.1}
    found = {name: plus_minus(value, 0.001) for name, value in values.items() if value is not None}
    return found | {"seconds": {"value": 10.0}}


RELATED = {
    "circle: nested (ours)": point_measures(0.06, 0.09),
    "circle: density-first (ours)": point_measures(0.05, 0.08),
    "circle: four charts": point_measures(0.01, 0.02),
    "circle: Trumpet": point_measures(0.02),
    "circle: SoftFlow": point_measures(None, 0.01),
    "circle: PIE": point_measures(),
    "paraboloid: nested (ours)": point_measures(0.01, 0.02),
    "paraboloid: density-first (ours)": point_measures(0.015, 0.03),
    "paraboloid: four charts": point_measures(0.02, 0.01),
}


def test_related_marks_manifolds_and_densities_below_the_thresholds():
    measured = []
    for name, found in RELATED.items():
        manifold, _, system = name.partition(": ")
        measured += as_rows(found, data=manifold, row=system, seed=0)
    table = related.compare_systems(measured).tables["What each system finds, and its cost"]
    shown = ["manifolds", "densities", "circle", "paraboloid"]
    rows = table.set_index("system")[shown].T.to_dict("list")
    assert rows["nested (ours)"] == ["1 of 2", "2 of 2", "D", "MD"]
    assert rows["four charts"] == ["2 of 2", "2 of 2", "MD", "MD"]
    assert rows["PIE"] == ["0 of 1", "0 of 1", "", "–"]
    assert rows["Trumpet"] == ["1 of 1", "not available", "M", "–"]
    assert rows["SoftFlow"] == ["not available", "1 of 1", "D", "–"]


def test_test_images_and_their_groups_are_measured():
    """Of splits of different brightness."""
    rng, parts = np.random.default_rng(0), ("x_train", "x_valid", "x_test", "x_ood")
    images = {
        name: rng.integers(50 * n, 50 * n + 60, (90, 1, 8, 8), dtype=np.uint8)
        for n, name in enumerate(parts)
    }
    train, _, test, _ = images.values()
    groups = {name: np.arange(90) // size for size, name in enumerate(parts, start=1)}
    model = perturb(initialized_glow(train, 12, steps=1))
    about = run(model, images, groups=groups)
    (measured,) = measures.measure_images(about, [model])
    projections = {
        "encoder": model.encoder_projection,
        "default": model.project,
        "nearest": partial(model.project, nearest=True),
    }
    means = []
    for name, project in projections.items():
        errors = squared_errors(project, Batches(test, 64))
        expected = mean_interval(errors, groups["x_test"])
        assert measured[name] == pytest.approx(expected)
        means.append(expected["value"])
    assert means[0] > 1.001 * means[1]
    assert means[1] > 1.000005 * means[2]  # in float32 default projections are nearly nearest
    (log_prob,) = dequantized_log_probs(model, test[:40], 1, "cpu")
    bits = mean_interval(to_bits_per_dim(log_prob, test), groups["x_test"][:40])
    assert measures.bits_per_dim(about, model, 40) == pytest.approx(bits)
    scores = measure_ood(score_parts(model, *map(about.load, parts), QUICK))["scores"]
    expected = {f"auroc.{name}": score["auroc"] for name, score in scores.items()}
    assert measures.measure_aurocs(about, model, "noise") == expected


def test_seconds_are_the_smallest_and_other_measures_means_over_seeds():
    rows = [
        {"data": "circle", "row": "flow", "seed": seed, "measure": name, "value": value}
        for name, values in {"mse": (1.0, 2.0, 6.0), "seconds": (30.0, 10.0, 20.0)}.items()
        for seed, value in enumerate(values)
    ]
    summary = summarize(pd.DataFrame(rows, columns=[*rows[0], "low", "high"]), ["circle"])
    measured = summary["circle"]["flow"]
    assert [measured[name]["value"] for name in ("mse", "seconds", "seeds")] == [3, 10, 3]


def test_a_tradeoff_has_bits_then_encoder_then_nearest_errors():
    names = ("bits_per_dim", "encoder", "nearest", "pca")
    rows = {
        system: {name: {"value": 10 * number + n} for n, name in enumerate(names)}
        for number, system in enumerate(("nested", "Glow"))
    }
    del rows["Glow"]["nearest"]
    found = results.tradeoff(rows)
    assert [*found] == ["nested", "PCA"]
    assert found["nested"] == (0, 1, 2)
    assert found["PCA"][1:] == (13, 13)
