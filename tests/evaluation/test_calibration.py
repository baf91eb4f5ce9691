"""Known answers of p-values and combined scores."""

import json
import math

import numpy as np
import pytest
import scipy
import torch

from strategies import initialized_glow
from submanifold.common.errors import UserError
from submanifold.evaluation.calibration import (
    COMBINATION,
    MIN_IMAGES,
    SUMMED,
    Calibration,
    calibrate,
)
from submanifold.evaluation.discoveries import select
from submanifold.evaluation.scores import best_noise_scale, score
from submanifold.flows import Affine
from submanifold.models import Hierarchy, Stage

NAMES = ("density", "off_manifold", "encoder_distance")


def normal_scores(count, seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=count) for name in NAMES}


def test_p_values_of_normal_data_are_uniform():
    calibration = Calibration.fit(normal_scores(5000, 0), NAMES)
    scores = calibration.complete(normal_scores(5000, 1))
    for name in (*NAMES, "typicality", COMBINATION):
        p_values = calibration.p_values(name, scores[name])
        assert scipy.stats.kstest(p_values, "uniform").statistic < 0.035, name


@pytest.mark.parametrize(("count", "repeats"), [(20, 40), (145, 20)])
def test_fraction_alpha_of_normal_images_has_a_p_value_of_at_most_alpha(count, repeats):
    rng = np.random.default_rng(count)
    root = np.linalg.cholesky(0.4 * np.eye(5) + 0.6)

    def draw(size):
        heavy = root @ rng.normal(size=(5, size)) / np.sqrt(rng.chisquare(3, size) / 3)
        return dict(zip(("density", "b", "c", "d", "e"), heavy, strict=True))

    fractions = []
    for _ in range(repeats):
        scores = draw(count)
        calibration = Calibration.fit(scores, tuple(scores))
        new = calibration.complete(draw(300))[COMBINATION]
        p_values = calibration.p_values(COMBINATION, new)
        fractions.append([(p_values <= alpha).mean() for alpha in (0.05, 0.1)])
    expected, error = np.array([0.05, 0.1]), np.std(fractions, axis=0) / np.sqrt(repeats)
    assert (np.mean(fractions, axis=0) <= expected + 3 * error).all()
    assert (np.mean(fractions, axis=0) >= expected / 3).all(), "not too conservative either"


@pytest.mark.parametrize("members", [1, 3])
def test_a_selection_has_at_most_the_promised_fraction_of_normal_events(members):
    """The procedure bounds the mean by fdr times the fraction of normal events, here 0.8."""
    rng, levels, repeats = np.random.default_rng(members), (0.1, 0.2), 200
    group = np.repeat(np.arange(60), members)
    wrong = {"continuous": [], "ties": []}
    for _ in range(repeats):
        normal = rng.normal(size=60)[group] + 0.5 * rng.normal(size=len(group))
        new = math.sqrt(1.25) * rng.normal(size=20)
        new[:4] += 4  # anomalies; all are of other groups
        both = [{"continuous": x, "ties": x.round()} for x in (normal, new)]
        calibration = Calibration.fit(both[0], ("continuous",), group)
        for name, values in both[1].items():
            p_values = calibration.p_values(name, values)
            selected = [select(p_values, level) for level in levels]
            wrong[name].append([chosen[4:].sum() / max(1, chosen.sum()) for chosen in selected])
    for name, least in (("continuous", 0.5), ("ties", 0.2)):
        mean, error = np.mean(wrong[name], axis=0), np.std(wrong[name], axis=0) / math.sqrt(repeats)
        bound = 0.8 * np.array(levels)
        assert (mean <= bound + 3 * error).all(), name
        assert (mean >= least * bound).all(), "not too conservative either"


def test_copies_in_one_group_count_as_one_image():
    alone = normal_scores(100, 0)
    copies = {name: np.repeat(values, 8) for name, values in alone.items()}
    single = Calibration.fit(alone, NAMES)
    grouped = Calibration.fit(copies, NAMES, np.repeat(np.arange(100), 8))
    assert (grouped.count, grouped.groups) == (800, 100)
    assert grouped.basis == "800 images in 100 groups"
    assert (single.groups, single.basis) == (100, "100 images")
    assert grouped.smallest_p_value == single.smallest_p_value == pytest.approx(1 / 101)
    others = normal_scores(2000, 2)
    for name in (*NAMES, "typicality", COMBINATION):
        found, expected = (
            known.p_values(name, known.complete(others)[name]) for known in (grouped, single)
        )
        assert np.abs(found - expected).mean() < 0.02, name
        assert found.min() >= 1 / 101 - 1e-9


@pytest.mark.parametrize(
    ("count", "groups", "message"),
    [
        (MIN_IMAGES - 1, None, r"expected at least 20, .* got 19 images"),
        (1, None, "got 1 images"),
        (500, np.zeros(500, int), "got 500 images in 1 groups"),
        (500, np.arange(500) // 490, "got 500 images in 2 groups"),
    ],
)
def test_too_few_images_are_rejected(count, groups, message):
    with pytest.raises(UserError, match=message):
        Calibration.fit(normal_scores(count, 0), NAMES, groups)


def test_calibration_of_a_model_has_the_reason_if_there_are_too_few_images():
    images = np.random.default_rng(0).integers(0, 256, (MIN_IMAGES, 1, 8, 8), dtype=np.uint8)
    model = initialized_glow(images, 6, steps=1)
    device = torch.device("cpu")
    assert Calibration.from_dict(calibrate(model, images, device)).count == MIN_IMAGES
    found = calibrate(model, images[1:], device)
    assert found.keys() == {"noise_scale", "why"}
    assert "got 19 images" in found["why"]


@pytest.mark.parametrize(
    ("normal", "groups", "values", "p_values", "tolerance"),
    [
        (
            np.repeat([0, 1], [70, 30]),
            None,
            [0, 1, 2],
            [1, 31 / 101, 1 / 101],
            0.02,
        ),  # equal scores
        (np.arange(20), None, [-1, 9.5, 20], [1, 11 / 21, 1 / 21], 1e-3),  # with the new image
        # of 20 groups with equal weights, ten have nine images of score 0, ten have one of score 1
        (
            np.repeat([0, 1], [90, 10]),
            [*np.arange(90) // 9, *range(10, 20)],
            [0.5],
            [11 / 21],
            0.03,
        ),
    ],
)
def test_p_values_count_images_or_groups(normal, groups, values, p_values, tolerance):
    groups = None if groups is None else np.array(groups)
    calibration = Calibration.fit({"density": normal.astype(float)}, ("density",), groups)
    found = calibration.p_values("density", np.array(values, float))
    assert found == pytest.approx(p_values, abs=tolerance)  # between two levels


def test_inconsistent_scores_are_anomalous_although_each_is_normal():
    rng = np.random.default_rng(0)
    one = rng.normal(size=4000)
    tied = {"density": one, "off_manifold": one + 0.05 * rng.normal(size=4000)}
    calibration = Calibration.fit(tied, ("density", "off_manifold"))
    apart = calibration.complete({"density": np.array([1.0]), "off_manifold": np.array([-1.0])})
    for name in tied:
        assert calibration.p_values(name, apart[name])[0] > 0.1
    assert calibration.p_values(COMBINATION, apart[COMBINATION])[0] < 1e-3


@pytest.mark.parametrize("value", [np.inf, np.nan, 1e300])
def test_overflowing_scores_are_the_most_anomalous(value):
    normal = {**normal_scores(500, 0), "constant": np.ones(500)}
    calibration = Calibration.fit(normal, (*NAMES, "constant"))
    scores = {name: np.array([value, 0.0]) for name in NAMES} | {"constant": np.ones(2)}
    found = calibration.complete(scores)[COMBINATION]
    assert np.isfinite(found).all()
    assert calibration.p_values(COMBINATION, found) == pytest.approx([1 / 501, 1.0], abs=0.05)


def test_a_noise_conditional_model_is_scored_at_the_scale_that_fits_held_out_data():
    """The flow is the identity times e^(3 s - 3/2), so that data of scale 1 prefer s = 1/2."""
    model = Hierarchy([Stage(_Scaling(2), 2)])
    events = np.random.default_rng(0).normal(size=(400, 2)).astype(np.float32)
    found = calibrate(model, events, torch.device("cpu"))
    assert found["noise_scale"] == 0.5
    assert found["combined"] == ["smoothed_density"]
    few = calibrate(model, events[:19], torch.device("cpu"))  # too few for p-values
    assert few["noise_scale"] == best_noise_scale(model, events[:19])
    scores = score(model.with_facts(calibration=found), events[:5], ["density", "smoothed_density"])
    squares = (events[:5].astype(float) ** 2).sum(1)
    expected = squares / 2 + math.log(2 * math.pi)
    np.testing.assert_allclose(scores["smoothed_density"], expected, rtol=1e-5)
    expected = squares * math.exp(-3) / 2 + math.log(2 * math.pi) + 3
    np.testing.assert_allclose(scores["density"], expected, rtol=1e-5)


class _Scaling(Affine):
    takes_noise_scale = True

    def forward(self, x, context=None):
        log_scale = x.new_full((len(x), 1), -1.5) + (
            0 if context is None else 3 * context.noise_scale[:, None]
        )
        return x * log_scale.exp(), 2 * log_scale[:, 0]

    def inverse(self, z, context=None):
        return z / self(torch.ones_like(z), context)[0]


@pytest.mark.parametrize(("anomalies", "expected"), [(0, 0.5), (50, 0.5), (60, 0.0)])
def test_the_best_noise_scale_ignores_the_tenth_of_the_lowest_density(anomalies, expected):
    """Of normal rows of scale 1, and anomalies far away."""
    rows = np.random.default_rng(0).normal(size=(500, 2)).astype(np.float32)
    rows[:anomalies] = 100.0
    found = best_noise_scale(Hierarchy([Stage(_Scaling(2), 2)]), rows)
    assert found == pytest.approx(expected, abs=0.13)


def test_rows_without_finite_scores_are_stored_by_name_and_set_aside():
    scores = normal_scores(100, 0)
    scores["density"][7], scores["off_manifold"][31] = np.inf, np.nan
    fitted = Calibration.fit(scores, NAMES, rows=np.arange(100))
    stored = Calibration.from_dict(json.loads(json.dumps(fitted.to_dict(), allow_nan=False)))
    assert stored.smallest_p_value == pytest.approx(3 / 101)
    assert {*stored.most_anomalous(2)} == {"7", "31"}
    assert stored.without(["7", "31"]).smallest_p_value == pytest.approx(1 / 99)


@pytest.mark.parametrize("names", ["a", "ab"])
def test_a_stored_calibration_keeps_ties(names):
    """With a fifth of equal images, about 5% are flagged at 5%, before and after storage."""
    rng, flagged = np.random.default_rng(0), []
    for _ in range(30):
        calibration, new = rng.standard_normal((2, 2, 300)).astype(np.float32) / 7 + 1234.5678
        for scores in (calibration, new):
            scores[:, rng.random(300) < 0.2] = 1234.8
        fitted = Calibration.fit(dict(zip("ab", calibration, strict=True)), tuple(names))
        for stored in (fitted, Calibration.from_dict(json.loads(json.dumps(fitted.to_dict())))):
            scores = stored.complete(dict(zip("ab", new, strict=True)))[COMBINATION]
            flagged.append((stored.p_values(COMBINATION, scores) <= 0.05).mean())
    assert flagged[::2] == flagged[1::2]
    assert np.mean(flagged) < 0.06
    # scores are combined by another fit than those of each fold, which can break ties
    assert names == "ab" or max(flagged) < 0.1


@pytest.mark.parametrize("names", [("a", "b"), ("a",)], ids=str)
def test_equal_images_are_normal_although_their_scores_are_rounded(names):
    calibration = Calibration.fit({name: np.full(50, 1234.5) for name in names}, names)
    values = np.array([1234.5 * (1 - 3e-7), 1234.5, 1234.5 * (1 + 3e-7), 1260])
    scores = dict.fromkeys(names, values)
    p_values = calibration.p_values(COMBINATION, calibration.complete(scores)[COMBINATION])
    assert (p_values[:3] == 1).all()
    assert p_values[3] < 0.03


def test_normal_events_without_finite_scores_are_no_more_false_alarms(caplog):
    """One in twenty, in the first of 25 rows and of 25 groups; false alarms are as promised."""
    model, rates = Hierarchy([Stage(Affine(3), 2)]), (0.01, 0.05, 0.1, 0.3)
    rng, alarms = np.random.default_rng(0), []
    for _ in range(20):
        normal, new = rng.standard_normal((2, 500, 3)).astype(np.float32)
        for events in (normal, new):
            events[rng.random(500) < 0.05] = 1e30
        calibration = Calibration.from_dict(calibrate(model, normal, torch.device("cpu")))
        p_values = calibration.p_values(
            COMBINATION, calibration.complete(score(model, new))[COMBINATION]
        )
        assert p_values[new[:, 0] == 1e30] == pytest.approx(calibration.smallest_p_value)
        alarms.append([(p_values <= rate).mean() for rate in rates])
    mean, error = np.mean(alarms, axis=0), np.std(alarms, axis=0) / math.sqrt(20)
    assert (mean <= rates + 3 * error).all()
    assert mean[2:] == pytest.approx(rates[2:], abs=3 * error[2:].max())
    assert "of 500 validation rows have no finite scores" in caplog.text


def test_events_without_finite_scores_are_the_largest_scores():
    """Of 100 groups of two, 90 have finite scores, which have the p-values of 90 groups."""
    normal = {name: np.repeat(values, 2) for name, values in normal_scores(100, 0).items()}
    finite = {name: values[20:] for name, values in normal.items()}
    normal["density"][:20] = np.inf
    groups = np.arange(200) // 2
    found = Calibration.fit(normal, NAMES, groups)
    expected = Calibration.fit(finite, NAMES)
    assert (found.count, found.groups) == (200, 100)
    assert found.smallest_p_value == pytest.approx(11 / 101)
    for name in ("density", "off_manifold"):
        values = np.quantile(finite[name], [0, 0.4, 0.8, 1])
        above = (expected.p_values(name, values) * 181 - 1) / 180
        assert found.p_values(name, values) == pytest.approx((1 + 10 + 90 * above) / 101, abs=1e-3)
        threshold = found.threshold(name, 0.5)
        assert found.p_values(name, np.array([threshold]))[0] == pytest.approx(0.5, abs=0.02)
    stored = Calibration.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
    assert stored.smallest_p_value == found.smallest_p_value


def test_weights_are_those_of_the_groups_of_finite_scores():
    """After 20 infinite scores, 100 scores of 5 are one group, and 50 of at most 1 are others."""
    scores = np.concatenate([np.full(20, np.inf), np.full(100, 5.0), np.linspace(0, 1, 50)])
    groups = np.concatenate([np.arange(20), np.full(100, 20), np.arange(21, 71)])
    found = Calibration.fit({"density": scores}, ("density",), groups)
    expected = [(1 + 20) / 72, (1 + 21) / 72, (1 + 21 + 25) / 72]
    p_values = found.p_values("density", np.array([9.0, 3.0, 0.5]))
    assert p_values == pytest.approx(expected, abs=0.01)


def test_a_calibration_needs_finite_scores():
    """The reason has the numbers of events, if none or few of them have a finite score."""
    model = Hierarchy([Stage(Affine(3), 2)])
    for count in (0, MIN_IMAGES - 1):
        events = np.full((40, 3), 1e30, np.float32)
        events[:count] = np.random.default_rng(0).standard_normal((count, 3))
        why = calibrate(model, events, torch.device("cpu"))["why"]
        assert f"got 40 rows, {40 - count} of them without finite scores" in why


def draw_scores(rng, count, names):
    """Draw correlated scores with heavy tails, the second of which is positive."""
    first = rng.standard_cauchy(count)
    scores = first, np.abs(first + rng.normal(size=count))
    return dict(zip(names, scores, strict=False))


@pytest.mark.parametrize("names", [SUMMED[:1], SUMMED])
@pytest.mark.parametrize("count", [20, 100, 1000])
def test_p_values_of_exchangeable_scores_are_uniform(count, names):
    """As those of cross-calibration: held-out scores and that of a new event are exchangeable."""
    rng, repeats, rates = np.random.default_rng(count), 600, np.array([0.1, 0.3, 0.7])
    below = []
    for _ in range(repeats):
        fitted = Calibration.fit(draw_scores(rng, count, names), names)
        scores = fitted.complete(draw_scores(rng, 200, names))
        p_values = fitted.p_values(COMBINATION, scores[COMBINATION])
        below.append([(p_values <= rate).mean() for rate in rates])
    errors = np.std(below, axis=0) / math.sqrt(repeats)
    assert (np.abs(np.mean(below, axis=0) - rates) <= 3 * errors + 1 / (count + 1)).all()


def test_summed_scores_are_on_a_scale_of_quartiles():
    """Of 101 scores 0, 1, ..., 100 the median is 50, and the quartiles are 25 and 75."""
    line = np.arange(101.0)
    fitted = Calibration.fit(dict(zip(SUMMED, (line, 3 * line - 7), strict=True)), SUMMED)
    new = dict(zip(SUMMED, (np.array([50.0, 100, 1e9]), np.array([143.0, 143, 3e9])), strict=True))
    expected = [0, np.arcsinh(1), 2 * np.arcsinh(2e7)]
    np.testing.assert_allclose(fitted.complete(new)[COMBINATION], expected, atol=2e-3)
