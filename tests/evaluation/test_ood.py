from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from strategies import initialized_glow
from submanifold import Predictor
from submanifold.data import Events
from submanifold.evaluation.baselines import PCA, pca_batches
from submanifold.evaluation.calibration import COMBINATION, calibrate
from submanifold.evaluation.intervals import false_alarm_range
from submanifold.evaluation.ood import (
    ANOMALY,
    DESCRIPTIONS,
    LINEAR,
    LINEAR_COMBINATION,
    MEASURES,
    measure_ood,
    roc,
    score_parts,
)
from submanifold.evaluation.scores import MASK, NEIGHBOR_DISTANCE, SCORES, SMOOTHED_DENSITY


def scored(normal, ood):
    values = np.array([*normal, *ood], float)
    part = ["normal"] * len(normal) + ["ood"] * len(ood)
    return pd.DataFrame({"part": part, "number": 0, "density": values, "p_density": 1 - values})


def measured(normal, ood):
    return measure_ood(scored(normal, ood))["scores"]["density"]


def test_separating_score_is_perfect():
    found = measured(range(50), range(100, 120))
    assert [found[name]["value"] for name in MEASURES] == pytest.approx([1.0, 1.0, 0.0])
    assert [found["auroc"][end] for end in ("low", "high")] == pytest.approx([1.0, 1.0])


def test_equal_scores_are_half_an_ordered_pair():
    normal, ood = [1, 2, 2, 2, 3], [2, 2, 3, 4]
    pairs = np.mean([(o > n) + (o == n) / 2 for o in ood for n in normal])
    assert measured(normal, ood)["auroc"]["value"] == pytest.approx(pairs)


def test_false_positives_are_counted_at_95_percent_recall():
    normal, ood = np.arange(100), np.arange(90.5, 190.5)  # 95% of which are 95.5 and above
    assert measured(normal, ood)["false_positives"]["value"] == pytest.approx(0.04)


def test_auroc_interval_of_a_random_score_contains_one_half():
    rng = np.random.default_rng(0)
    area = measured(rng.normal(size=400), rng.normal(size=400))["auroc"]
    assert area["low"] < 0.5 < area["high"]
    assert area["high"] - area["low"] == pytest.approx(4 * 0.0204, rel=0.3)  # Hanley & McNeil 1982


def test_interval_over_groups_of_copies_is_that_of_single_images():
    rng = np.random.default_rng(0)
    normal, ood = rng.normal(size=60), rng.normal(1, size=60)
    alone = measured(normal, ood)
    table = scored(np.repeat(normal, 10), np.repeat(ood, 10))
    repeated = np.repeat(np.arange(60), 10)
    found = measure_ood(table.assign(group=np.tile(repeated, 2)))
    assert found["groups"] == {"normal": 60, "ood": 60}
    for name in ("auroc", "average_precision"):
        expected, over = alone[name], found["scores"]["density"][name]
        assert over["value"] == pytest.approx(expected["value"], abs=0.01)
        width = expected["high"] - expected["low"]
        assert over["high"] - over["low"] == pytest.approx(width, rel=0.1)
    assert measure_ood(table)["scores"]["density"]["auroc"]["high"] < over["high"]


@pytest.mark.parametrize("few", ["normal", "ood"])
def test_intervals_need_enough_groups_of_both_parts(few):
    rng = np.random.default_rng(0)
    table = scored(rng.normal(size=60), rng.normal(1, size=60))
    numbers = np.concatenate(
        [np.arange(60) // (15 if few == part else 1) for part in ("normal", "ood")]
    )
    area = measure_ood(table.assign(group=numbers))["scores"]["density"]["auroc"]
    assert area["low"] is area["high"] is None


def test_roc_has_the_rates_of_every_threshold():
    false, true = roc(normal=np.array([1.0, 2.0]), ood=np.array([1.5, np.nan]))
    assert false.tolist() == [0, 0, 0.5, 0.5, 1]  # for thresholds above all, NaN, 2, 1.5 and 1
    assert true.tolist() == [0, 0.5, 0.5, 1, 1]


def ramps(count, seed):
    rng = np.random.default_rng(seed)
    ramp = np.linspace(60, 180, 8)[:, None] * np.ones(8)
    return (ramp + rng.normal(0, 3, (count, 1, 8, 8))).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def model():
    model = initialized_glow(ramps(300, 0), 6, steps=2, whiten=True)
    return model.with_facts(calibration=calibrate(model, ramps(200, 1), torch.device("cpu")))


NOISE = np.random.default_rng(9).integers(0, 256, (30, 1, 8, 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def table(model):
    return score_parts(model, *map(Events, (ramps(300, 0), ramps(200, 1), ramps(100, 2), NOISE)))


@pytest.fixture(scope="module")
def separation(table, model):
    return measure_ood(table, model)


def test_every_score_has_p_values_and_a_description(table, separation):
    of_tables = SMOOTHED_DENSITY, NEIGHBOR_DISTANCE, MASK
    own = [name for name in SCORES if name not in of_tables]
    names = [*own, COMBINATION, ANOMALY, *LINEAR, LINEAR_COMBINATION]
    for name in names:
        assert table[f"p_{name}"].between(1 / 201 - 1e-9, 1).all()
    assert [name for name in DESCRIPTIONS if name in separation["scores"]] == names
    assert separation["counts"] == {"normal": 100, "ood": 30}


def test_training_data_fit_linear_scores_and_validation_data_calibrate_all(model):
    """Of three kinds of images, so that exchanged splits give other scores and p-values."""
    train, test = ramps(300, 0), ramps(60, 2)[:, :, ::-1].copy()
    valid = np.random.default_rng(3).integers(0, 256, (100, 1, 8, 8), dtype=np.uint8)
    table = score_parts(model, *map(Events, (train, valid, test, NOISE)))
    noise = table[table["part"] == "ood"]
    for name in ("density", "encoder_distance", COMBINATION, *LINEAR):
        assert 0.2 < noise[f"p_{name}"].mean() < 0.8, name
    pca = PCA.fit(train).shrink(valid)
    expected = [-pca.log_prob(x).numpy() for x in pca_batches(NOISE)]
    np.testing.assert_allclose(noise["mahalanobis"], np.concatenate(expected))


def test_anomaly_score_is_that_of_the_command(table, model):
    for part, images in (("normal", ramps(100, 2)), ("ood", NOISE)):
        own = table[table["part"] == part]
        found = Predictor(model).score(images)
        assert own[f"p_{ANOMALY}"].tolist() == pytest.approx(found["p_value"].tolist())
        assert own[ANOMALY].tolist() == pytest.approx(found["anomaly_score"].tolist())


def test_alarms_are_the_flagged_fractions_of_both_parts(table, separation, model):
    alarms = separation["alarms"]
    assert [row["rate"] for row in alarms] == [0.1, 0.05, 0.01]  # the smallest p-value is 1/201
    p_values = table.loc[table["part"] == "normal", f"p_{ANOMALY}"]
    for row in alarms:
        assert row["false_alarms"]["value"] == pytest.approx((p_values <= row["rate"]).mean())
        low, high = false_alarm_range(row["rate"], 100, 200)
        assert row["expected"] == {"low": low, "high": high}
        assert row["detected"]["value"] == 1
        assert row["detected"]["low"] == pytest.approx(0.025 ** (1 / 30))  # Clopper & Pearson
    alone = table[["part", "number", ANOMALY, f"p_{ANOMALY}"]]
    assert "alarms" not in measure_ood(alone, SimpleNamespace(calibration={"why": "few"}))
    grouped = alone.assign(group=table["number"] // 10)
    row = measure_ood(grouped, model)["alarms"][0]
    assert (row["false_alarms"]["groups"], row["detected"]["groups"]) == (10, 3)


def test_groups_are_those_of_each_part(model):
    """P-values count groups of validation images; parts without groups have single images."""
    names, ood = ("density", "encoder_distance"), Events(NOISE[:5])
    train, valid, test = Events(ramps(300, 0)), Events(ramps(60, 1)), Events(ramps(5, 2))
    valid = replace(valid, groups=np.arange(60) // 2)
    table = score_parts(model, train, valid, replace(test, groups=np.full(5, 2)), ood, names)
    assert table["group"].tolist() == [2] * 5 + [0, 1, 2, 3, 4]
    noise = table[table["part"] == "ood"]
    for name in (*names, COMBINATION, LINEAR_COMBINATION):
        assert noise[f"p_{name}"].tolist() == pytest.approx([1 / 31] * 5), name
    table = score_parts(model, train, valid, test, replace(ood, groups=np.full(5, 8)), names)
    assert table["group"].tolist() == [0, 1, 2, 3, 4] + [8] * 5


def test_areas_are_those_of_scikit_learn():
    """Of scores with ties, which are one threshold."""
    rng = np.random.default_rng(0)
    normal, ood = rng.normal(0, 3, 60).round(), rng.normal(2, 3, 30).round()
    areas, is_ood = measured(normal, ood), np.repeat([0, 1], [60, 30])
    for name, area in (("auroc", roc_auc_score), ("average_precision", average_precision_score)):
        expected = area(is_ood, np.concatenate([normal, ood]))
        assert areas[name]["value"] == pytest.approx(expected)
