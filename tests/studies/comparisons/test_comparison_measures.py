from types import SimpleNamespace

import numpy as np
import pytest
import torch

from splits import as_maps, checked_splits
from submanifold.data.synthetic import Circle
from submanifold.evaluation.baselines import PCA, pca_batches
from submanifold.flows import Glow, RealNVP
from submanifold.models import Hierarchy, Stage
from submanifold.runs.experiments import CachedRun
from submanifold.studies.comparisons import measures


def run(tmp_path, model, arrays, truth=None, **about):
    """The attributes of a run that measurements use."""
    found = SimpleNamespace(
        project=tmp_path, load=({"hierarchy": model} | arrays).__getitem__, groups={},
        seconds=lambda: 5.0,
        settings=SimpleNamespace(device="cpu", data=SimpleNamespace(manifold=truth)),
        catalog=SimpleNamespace(exists=lambda name: name in arrays), **about,
    )  # fmt: skip
    found.changed = lambda name, value: found
    return found


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    counts = {"x_train": 300, "x_valid": 40, "x_test": 60}
    arrays = {name: rng.integers(100, 150, (count, 1, 8, 8), dtype=np.uint8)
              for name, count in counts.items()}  # fmt: skip
    return arrays | {"x_ood": rng.integers(0, 256, (50, 1, 8, 8), dtype=np.uint8)}


@pytest.mark.parametrize("dim", [1, 2])
def test_points_are_compared_with_the_truth(tmp_path, dim):
    torch.manual_seed(0)
    truth = Circle()
    points = truth.sample(200, np.random.default_rng(0)).astype(np.float32)
    model = Hierarchy([Stage(RealNVP(2, hidden=8), dim)])
    found = measures.measure_points(run(tmp_path, model, {"x_test": points}, truth))
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


def test_images_are_measured_and_scored_against_ood_images(tmp_path, images):
    torch.manual_seed(0)
    flow = Glow((1, 8, 8), levels=2, steps=2, width=8)
    with torch.no_grad():
        flow(torch.from_numpy(images["x_train"]) / 256 - 0.5)  # data-dependent initialization
    model = Hierarchy([Stage(flow, 6)]).eval()
    about = run(tmp_path, model, as_maps(tmp_path, **images))
    with checked_splits() as checked:
        wide, narrow = measures.measure_images(about, [model, model.at_dim(3)])
        measures.measure_aurocs(about, model, "noise")
    assert {"sample_quality: train", "sample_quality: test", "score_parts: train"} <= checked
    pca = PCA.fit(pca_batches(images["x_train"]))
    errors = torch.cat([pca.squared_errors(x)[:, 6] for x in pca_batches(images["x_test"])])
    assert wide["pca"]["value"] == pytest.approx(errors.mean().item(), rel=1e-3)
    assert wide["encoder"]["n"] == len(images["x_test"])
    assert wide["nearest"]["value"] <= wide["encoder"]["value"]
    assert wide["pca"]["value"] < narrow["pca"]["value"]
    assert np.isfinite(wide["kid"]["value"])
    assert measures.bits_per_dim(about, model, 50)["n"] == 50
    assert measures.measure_aurocs(about, model, "noise")["auroc.mahalanobis"]["value"] > 0.9


@pytest.mark.parametrize(("key", "count"), [("a", 1), ("b", 2)])
def test_measurements_are_cached_by_key(tmp_path, key, count):
    measured = iter([{"bpd": {"value": 1.0}}, {"bpd": {"value": 2.0}}])
    first, second = (SimpleNamespace(project=tmp_path, key=name) for name in ("a", key))
    CachedRun.cached(first, "page", lambda: next(measured))
    found = CachedRun.cached(second, "page", lambda: next(measured))
    assert found == {"bpd": {"value": float(count)}}
