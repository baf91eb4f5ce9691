"""The contract of every metric in the table, and how values are written."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from calibrated import smooth_images
from strategies import affine
from submanifold.data import Events, dequantize
from submanifold.data.batches import Batches
from submanifold.data.synthetic import LinearGaussian
from submanifold.data.tables import Preprocessor
from submanifold.evaluation import features as features_module
from submanifold.evaluation.baselines import PCA, fit_baselines, projected_events
from submanifold.evaluation.events import measure_events
from submanifold.evaluation.intervals import ENDS, proportion_interval
from submanifold.evaluation.measure import classification, measure, warnings
from submanifold.evaluation.metrics import (
    METRICS,
    NONE,
    PROJECTION_ERRORS,
    training_images_reach,
)
from submanifold.evaluation.reconstruction import reconstruction, squared_errors
from submanifold.evaluation.sample_quality import sample_quality
from submanifold.evaluation.truth import against_truth
from submanifold.flows import Affine, Glow, RealNVP, make_conditional
from submanifold.models import Hierarchy, Stage

CPU = torch.device("cpu")


def measured(model, test, baselines, input_noise=0.0, draws=1, volumes=0):
    """Measure the events of a test split, and summarize them."""
    rows = measure_events(model, {"test": test})
    return measure(model, rows, test, baselines, input_noise, draws, CPU, volumes)


@pytest.fixture(scope="module")
def results():
    """Results of all evaluations of tiny models, of images and of points."""
    torch.manual_seed(0)
    model = Hierarchy([Stage(Glow((1, 8, 8), 2, 1, width=8), 24), Stage(RealNVP(24, 2), 6)]).eval()
    train, valid, test = (Events(smooth_images(n, seed, 1)) for seed, n in enumerate((60, 20, 30)))
    with torch.no_grad():
        model(dequantize(torch.from_numpy(train.x)))
    baselines = fit_baselines(train, valid, test)[0]
    conditional = Hierarchy([Stage(make_conditional(Glow((1, 8, 8), 2, 1, width=8), classes=3), 6)])
    labelled = Events(test.x, np.arange(len(test)) % 3)
    points = LinearGaussian().sample(50, np.random.default_rng(0))
    linear = Hierarchy([Stage(Affine(8), 3)]).double()
    features = [smooth_images(n, n)[:, :, 0].reshape(n, -1) / 255 for n in (30, 30, 30)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features_module, "inception_features", lambda *_: features)
        with_inception = sample_quality(train, test, test, "download", CPU)
    return {
        "model": measured(model, test, baselines, 0.01, 2, volumes=2),
        "conditional": measured(conditional.eval(), labelled, baselines, 0.0, 2),
        "samples": sample_quality(train, test, smooth_images(30, 3, 1), None, CPU),
        "Inception": with_inception,
        "truth": against_truth(linear, LinearGaussian(), points, points[:20]),
        "pipeline": {"seconds": {"training": 3.5}},
    }


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())
def test_every_metric_is_computed_and_written(metric, results):
    assert metric.label
    assert metric.help.endswith(".")
    assert metric.better in ("lower", "higher", None)
    found = [value for each in results.values() if (value := metric.read(each)) is not None]
    assert found, "an evaluation returns it"
    for each in found:
        interval = each if isinstance(each, dict) else {"value": each, "low": None}
        if interval["value"] is None:
            assert metric.write(interval) == interval["why"].split(":")[0]
        else:
            assert math.isfinite(interval["value"])
            check_digits(metric.write(interval), interval)
        if interval.get("low") is not None:
            assert interval["low"] <= interval["value"] <= interval["high"]
    assert metric.read({}) is None
    for missing in (None, math.nan, {}, {"value": None}, {"value": math.nan}):
        assert metric.write(missing) == NONE
    assert metric.write({"value": None, "why": "not measured: too slow"}) == "not measured"


def test_every_interval_over_events_is_over_their_groups():
    """Three events are a group: of images without and with labels, and of rows of a table."""
    groups, counts = np.arange(30) // 3, dict[str, set[int]]()
    train, valid, test = (Events(smooth_images(n, seed, 1)) for seed, n in enumerate((60, 20, 30)))
    test = replace(test, groups=groups)
    of_images = fit_baselines(train, valid, test)[0]
    glow, flow = (Glow((1, 8, 8), 2, 1, width=8) for _ in range(2))
    labelled = replace(test, context=np.arange(30) % 3)
    table = np.random.default_rng(0).standard_normal((90, 8))
    preprocessor = Preprocessor.fit(table)
    rows = preprocessor.transform(table)
    of_test = replace(rows[:30], groups=groups)
    of_rows = fit_baselines(rows[30:], rows[30:], of_test)[0]
    tabular = Hierarchy([Stage(RealNVP(8, 2), 3)])
    tabular = tabular.with_facts(data={"table": preprocessor.to_dict()})
    for model, events, baselines, noise in (
        (Hierarchy([Stage(glow, 6)]), test, of_images, 0.01),
        (Hierarchy([Stage(make_conditional(flow, classes=3), 6)]), labelled, of_images, 0.0),
        (tabular, of_test, of_rows, 0.0),
    ):
        with torch.no_grad():
            found = measured(model.eval(), events, baselines, noise, 2, volumes=6)
        assert found["baselines"]["gaussian"]["bits_per_dim"]["groups"] == 10
        for name, metric in METRICS.items():
            interval = metric.read(found)
            if isinstance(interval, dict) and "low" in interval and interval["value"] is not None:
                counts.setdefault(name, set()).add(interval.get("groups", 0))
    assert counts.pop("manifold_nll") == {2}, "of six images"
    counts.pop("non_orthogonality", None)
    counts.pop("median_error", None)  # of the how-to that adds a metric
    assert {*counts} >= {"nll", "bits_per_dim", "psnr", "psnr_per_image", "accuracy"}
    assert counts == {name: {10} for name in counts}


def test_projections_and_pca_are_compared_on_the_same_events():
    """Of 150 events, the others of which are larger."""
    torch.manual_seed(0)
    model = Hierarchy([Stage(RealNVP(12, 2), 3), Stage(RealNVP(3, 2), 3)]).eval()
    rng = np.random.default_rng(0)
    train, test = (rng.normal(size=(n, 12)).astype(np.float32) for n in (50, 150))
    chosen = projected_events(150)
    test[np.setdiff1d(np.arange(150), chosen)] *= 2
    events, of_training = Events(test, groups=np.arange(150) // 4), Events(train)
    found = measured(model, events, fit_baselines(of_training, of_training, events)[0])
    some, groups = test[chosen], len(np.unique(chosen // 4))
    pca = PCA.fit(train)
    projections = {
        "encoder_mse": model.encoder_projection,
        "projection_mse": model.project,
        "nearest_mse": lambda x: model.project(x, nearest=True),
    }
    for name, projection in projections.items():
        errors = squared_errors(projection, Batches(some, 64))
        assert found[name]["value"] == pytest.approx(errors.mean(), rel=1e-4)
        assert (found[name]["n"], found[name]["groups"]) == (64, groups)
    mse = found["baselines"]["pca_subset"]["mse"]
    errors = squared_errors(lambda x: pca.project(x, 3), Batches(some, 64))
    assert mse["value"] == pytest.approx(errors.mean(), rel=1e-4)
    assert (mse["groups"], found["curve"]["n"]) == (groups, 64)
    curve = dict(zip(found["curve"]["dims"], found["curve"]["pca_mse"], strict=True))
    assert curve[3] == mse["value"]
    assert abs(found["baselines"]["pca"]["mse"]["value"] / mse["value"] - 1) > 0.05
    assert found["mse"]["n"] == 150


def test_the_direction_of_improvement_is_that_of_the_definition():
    higher = {name for name, metric in METRICS.items() if metric.better == "higher"}
    ratios = {name for name in METRICS if "psnr" in name}
    assert higher == ratios | {"precision", "recall", "accuracy"}
    for metric in METRICS.values():
        for direction in ("lower", "higher"):
            if f"{direction} is better" in metric.help.lower():
                assert metric.better == direction, metric.name
    errors = np.array([0.1, 0.2])
    assert reconstruction(errors)["psnr"]["value"] > reconstruction(2 * errors)["psnr"]["value"]


def check_digits(text, measured):
    """Check that the half-width of the interval is 10 to 99 units of the last digit, or more."""
    number = text.partition(" ")[0].replace(",", "")
    if measured.get("low") is None or measured["low"] == measured["high"]:
        assert float(number) == pytest.approx(measured["value"], rel=0.2, abs=1e-4)
        return
    half_width = (measured["high"] - measured["low"]) / 2
    if "e" in number:
        assert float(number) == pytest.approx(measured["value"], rel=0.06)
        return
    unit = 10.0 ** -len(number.partition(".")[2])
    assert abs(float(number) - measured["value"]) <= unit / 2 * (1 + 1e-6)
    assert 9.9 <= half_width / unit < 99.6 or unit == 1


def test_bits_per_dimension_and_squared_error_of_a_normal_density():
    model = Hierarchy([Stage(Affine(8), 8)])
    points = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    nats = 0.5 * np.square(points).sum(1) + 4 * math.log(2 * math.pi)
    rows = measure_events(model, {"test": Events(points)})
    np.testing.assert_allclose(rows["bits_per_dim"], nats / (8 * math.log(2)), rtol=1e-5)
    np.testing.assert_allclose(rows["encoder_distance"], 0, atol=1e-10)


@pytest.mark.parametrize(("error", "count"), [(math.nan, 1), (math.inf, 1), (0.9, 1), (0.0, 0)])
def test_an_inaccurate_inverse_is_a_warning(error, count):
    assert len(warnings({"inverse_error": error}, {})) == count


@pytest.mark.parametrize(
    ("samples", "training", "text"),
    [
        (10.0, 5.0, "says little here: training images themselves have 5.0"),
        (10.0, 12.0, "says little here: training images themselves have 12.0"),
        (10.0, 4.9, None),
        (None, 5.0, None),
        (10.0, None, None),
    ],
)
def test_a_distance_that_training_images_have_too_says_little(samples, training, text):
    metrics = {"fid": {"value": samples}, "training_images": {"fid": {"value": training}}}
    assert training_images_reach(metrics, "fid") == text
    assert training_images_reach({"fid": {"value": 1.0}, "training_images": None}, "fid") is None


def test_the_density_of_the_gaussian_is_in_the_units_of_the_table():
    model = Hierarchy([Stage(RealNVP(8, 2), 3)]).eval()
    table = np.random.default_rng(0).standard_normal((50, 8)) * np.e**2
    preprocessor = Preprocessor.fit(table)
    model = model.with_facts(data={"table": preprocessor.to_dict()})
    rows = preprocessor.transform(table)
    fitted = fit_baselines(rows, rows, rows)[0]
    found = measured(model, rows, fitted)["baselines"]["gaussian"]
    bits, log_scales = found["bits_per_dim"], np.log(table.std(0)).sum()
    expected = {end: bits[end] * 8 * math.log(2) + log_scales for end in ENDS}
    assert found["nll"] == pytest.approx(expected)


def test_the_density_of_the_gaussian_is_that_of_observed_values():
    """A normal density of transformed rows is a product, without the factors of missing values."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((300, 3)) * 20
    table[rng.random(table.shape) < [0.4, 0.2, 0]] = np.nan
    preprocessor = Preprocessor.fit(table)
    model = Hierarchy([Stage(make_conditional(RealNVP(3, 2), columns=2), 3)]).eval()
    model = model.with_facts(data={"table": preprocessor.to_dict()})
    rows = preprocessor.transform(table)
    nats = 0.5 * np.square(rows.x) + 0.5 * math.log(2 * math.pi)
    bits = dict.fromkeys(ENDS, nats.sum(1).mean() / (3 * math.log(2)))
    fitted = fit_baselines(rows, rows, rows)[0]
    fitted["gaussian"] |= {"bits_per_dim": bits}
    found = measured(model, rows, fitted)["baselines"]["gaussian"]
    scales = np.array([column.scale for column in preprocessor.varying])
    nats = np.where(np.isnan(table), 0, nats + np.log(scales))
    assert found["nll"]["value"] == pytest.approx(nats.sum(1).mean(), abs=0.2)


@pytest.mark.parametrize(("kind", "name"), PROJECTION_ERRORS.items())
def test_labels_and_definitions_name_the_projection(kind, name):
    mse, psnr = METRICS[name], METRICS[name.replace("mse", "psnr")]
    assert mse.label == f"MSE, {kind} projection (subset)"
    assert psnr.label == f"PSNR, {kind} projection, dB (subset)"
    assert f"{kind} projections" in psnr.help
    assert {
        "encoder": "encoder projections",
        "default": "four gradients",
        "nearest": "16 gradients",
    }[kind] in mse.help


def test_the_accuracy_is_that_of_evenly_spaced_events_and_of_their_groups():
    """Of two Gaussians, whose means are 0 and 2; a fifth of the labels are wrong."""
    flow = make_conditional(affine(torch.eye(2)), classes=2)
    with torch.no_grad():
        flow.of_context.weight[2, 1] = -2  # the shift of the first coordinate
    x = np.random.default_rng(0).normal(1, 2, (5000, 2)).astype(np.float32)
    is_right = np.arange(5000) % 5 > 0
    labels = ((x[:, 0] > 1) == is_right).astype(int)
    groups, chosen = np.arange(5000) // 10, np.linspace(0, 4999, 2000).round().astype(int)
    found = classification(Hierarchy([Stage(flow, 1)]), Events(x, labels), CPU, groups)["accuracy"]
    assert found == proportion_interval(is_right[chosen], groups[chosen])
    assert (found["n"], found["groups"]) == (2000, 500)
