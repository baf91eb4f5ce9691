"""The contract of every metric in the table, and how values are written."""

import math

import click
import numpy as np
import pytest
import torch

from submanifold.data import dequantize
from submanifold.data.arrays import with_context
from submanifold.data.batches import Batches
from submanifold.data.synthetic import LinearGaussian
from submanifold.evaluation import baselines as baselines_module
from submanifold.evaluation import measure as measure_module
from submanifold.evaluation import paper
from submanifold.evaluation.baselines import PCA, evenly_spaced, fit_baselines, pca_batches
from submanifold.evaluation.measure import measure, objectives, warnings
from submanifold.evaluation.metrics import (
    COMPARED,
    COMPARED_WITH_TEST,
    METRICS,
    NONE,
    PROJECTION_ERRORS,
    format_interval,
    training_images_reach,
)
from submanifold.evaluation.reconstruction import squared_errors
from submanifold.evaluation.sample_quality import sample_quality
from submanifold.evaluation.truth import against_truth
from submanifold.flows import Affine, Glow, RealNVP, make_conditional
from submanifold.inference.command import project
from submanifold.models import Hierarchy, Stage

CPU = torch.device("cpu")


def images(count, seed):
    ramp = np.linspace(60, 180, 8)[:, None] * np.ones(8)
    noise = np.random.default_rng(seed).normal(0, 12, (count, 1, 8, 8))
    return (ramp + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def results():
    """Results of all evaluations of tiny models, of images and of points."""
    torch.manual_seed(0)
    model = Hierarchy([Stage(Glow((1, 8, 8), 2, 1, width=8), 24), Stage(RealNVP(24, 2), 6)]).eval()
    train, valid, test = (images(n, seed) for seed, n in enumerate((60, 20, 30)))
    with torch.no_grad():
        model(dequantize(torch.from_numpy(train)))
    baselines, _ = fit_baselines(train, valid, test)
    conditional = Hierarchy([Stage(make_conditional(Glow((1, 8, 8), 2, 1, width=8), classes=3), 6)])
    labelled = with_context(test, np.arange(len(test)) % 3)
    points = LinearGaussian().sample(50, np.random.default_rng(0))
    linear = Hierarchy([Stage(Affine(8), 3)]).double()
    return {
        "model": measure(model, test, baselines, 0.01, 2, CPU),
        "conditional": measure(conditional.eval(), labelled, baselines, 0.0, 2, CPU),
        "samples": sample_quality(train, test, images(30, 3), "auto", CPU),
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


def test_projections_and_pca_are_compared_on_the_same_images(monkeypatch):
    """Four of nine images, which are brighter one after the other: a subset has other means."""
    for module in (baselines_module, measure_module):
        monkeypatch.setattr(module, "COMPARED_EVENTS", 4)
    torch.manual_seed(0)
    model = Hierarchy([Stage(RealNVP(12, 2), 3), Stage(RealNVP(3, 2), 3)]).eval()
    rng = np.random.default_rng(0)
    train, test = (rng.normal(size=(n, 12)).astype(np.float32) for n in (50, 9))
    test *= np.geomspace(1, 100, 9, dtype=np.float32)[:, None]
    groups = np.arange(9) // 2
    found = measure(model, test, fit_baselines(train, train, test, groups)[0], 0.0, 1, CPU, groups)
    some, chosen = evenly_spaced(test, 4), [0, 3, 5, 8]
    assert (some == test[chosen]).all()
    pca = PCA.fit(pca_batches(train))
    projections = {
        "encoder_mse": model.encoder_projection,
        "projection_mse": model.project,
        "nearest_mse": lambda x: model.project(x, exact=True),
    }
    for name, projection in projections.items():
        errors = squared_errors(projection, Batches(some, 4))
        assert found[name]["value"] == pytest.approx(errors.mean(), rel=1e-4)
        assert (found[name]["n"], found[name]["groups"]) == (4, 4)
    mse = found["baselines"]["pca_subset"]["mse"]
    errors = squared_errors(lambda x: pca.project(x, 3), Batches(some, 4))
    assert mse["value"] == pytest.approx(errors.mean(), rel=1e-4)
    assert mse["groups"] == 4
    assert abs(found["baselines"]["pca"]["mse"]["value"] / mse["value"] - 1) > 0.05
    assert found["mse"]["n"] == 9


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


@pytest.mark.parametrize("half_width", [3.54e-4, 0.00996, 0.0994, 0.1, 0.5, 1.0, 30.0, 4e4])
@pytest.mark.parametrize("value", [0.0, 3.14159265, -271.828, 31415.9])
def test_a_value_has_as_many_digits_as_its_interval_allows(value, half_width):
    measured = {"value": value, "low": value - half_width, "high": value + half_width}
    for spec in (".3f", ".5f", ",.0f"):
        text = format_interval(measured, spec)
        check_digits(text, measured)
        low, high = text.partition("[")[2].rstrip("]").replace(", ", " ").replace(",", "").split()
        count = len(text.partition(" ")[0].partition(".")[2])
        assert (len(low.partition(".")[2]), len(high.partition(".")[2])) == (count, count)


def test_value_is_written_with_its_interval():
    bits = METRICS["bits_per_dim"]
    measured = {"value": 3.7408, "low": 3.72, "high": 3.7612, "n": 9}
    assert bits.write(measured) == "3.741 [3.720, 3.761]"
    assert bits.write(measured, signed=True, label=True) == "+3.741 BPD [+3.720, +3.761]"
    assert bits.write({**measured, "low": 3.3}) == "3.74 [3.30, 3.76]"
    assert bits.write({**measured, "low": None}) == "3.741"
    assert bits.write({**measured, "high": math.nan}) == "3.741"
    tiny = {"value": 3.21e-7, "low": 3.0e-7, "high": 3.5e-7}
    assert METRICS["mse"].write(tiny) == "3.2e-07 [3.0e-07, 3.5e-07]"
    assert METRICS["parameters"].write(-1234567, signed=True) == "-1,234,567"


def test_a_distance_that_training_images_have_too_is_marked():
    def found(own, value):
        kid = {"value": value, "low": value - 0.3, "high": value + 0.3}
        metrics = {"kid": {"value": own}, "training_images": {"kid": kid}}
        return training_images_reach(metrics, "kid")

    assert found(0.6, 0.5432) == "says little here: training images themselves have 0.54"
    assert found(0.6, 0.02) is None, "the samples are much farther away"
    assert training_images_reach({"kid": {"value": 0.5}, "training_images": None}, "kid") is None


def test_the_first_projection_is_the_default_of_the_command():
    (option,) = (each for each in project.params if each.name == "exact")
    is_exact = option.get_default(click.Context(project)) is True
    assert (next(iter(PROJECTION_ERRORS)) == "default") == (not is_exact)
    assert METRICS.keys() >= {*PROJECTION_ERRORS.values(), *COMPARED_WITH_TEST}


def test_metrics_of_the_paper_are_in_the_table():
    published = paper.results()
    assert set(published["metric"]) == {"bpd", "mse", "fid", "parameters"} <= COMPARED.keys()
    # table 2, H-MM, as printed
    row = published.query("table == 1 and method == 'DNF' and metric == 'mse'").iloc[0]
    assert (row["value"], row["spread"], row["stage_dims"]) == (0.004, 0.0002, "3072-500-500")


def test_warnings_collect_those_of_trainings_and_an_inaccurate_inverse():
    histories = {"phase_1": {"warnings": {}}, "phase_3": {"warnings": {"target": "not reached"}}}
    assert warnings({"inverse_error": 0.0}, histories) == ["phase_3: not reached"]
    for error in (0.5, math.nan):
        (found,) = warnings({"inverse_error": error}, {})
        assert found.startswith("The inverse is inaccurate")


def test_objectives_are_bits_per_dimension_and_squared_error():
    model = Hierarchy([Stage(Affine(8), 8)])
    points = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    bits, mse = objectives(model, points, CPU)
    nats = 0.5 * np.square(points).sum(1).mean() + 4 * math.log(2 * math.pi)
    assert bits == pytest.approx(nats / (8 * math.log(2)), rel=1e-5)
    assert mse == pytest.approx(0, abs=1e-10)
