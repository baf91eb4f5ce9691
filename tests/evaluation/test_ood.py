import numpy as np
import pandas as pd
import pytest
import torch

from submanifold.common.errors import UserError
from submanifold.data import dequantize
from submanifold.evaluation.ood import (
    LINEAR,
    LINEAR_COMBINATION,
    MEASURES,
    measure_ood,
    score_kinds,
    titles,
    with_groups,
)
from submanifold.evaluation.scores import COMBINATION, SCORES
from submanifold.flows import Glow
from submanifold.models import Hierarchy, Stage


def scored(normal, ood):
    values = np.array([*normal, *ood], float)
    part = ["normal"] * len(normal) + ["ood"] * len(ood)
    return pd.DataFrame({"part": part, "number": 0, "density": values, "p_density": 1 - values})


def measured(normal, ood):
    return measure_ood(scored(normal, ood))["scores"]["density"]


def test_a_score_that_tells_them_all_apart():
    found = measured(range(50), range(100, 120))
    assert [found[name]["value"] for name in MEASURES] == pytest.approx([1.0, 1.0, 0.0])
    assert [found["auroc"][end] for end in ("low", "high")] == pytest.approx([1.0, 1.0])


def test_the_area_is_the_share_of_pairs_in_order():
    normal, ood = [1, 2, 3, 6], [2.5, 4, 5]
    pairs = np.mean([o > n for o in ood for n in normal])
    assert measured(normal, ood)["auroc"]["value"] == pytest.approx(pairs)


def test_false_positives_are_counted_where_nearly_all_outliers_are_found():
    normal, ood = np.arange(100), np.arange(90.5, 190.5)  # 95% of which are 95.5 and above
    assert measured(normal, ood)["false_positives"]["value"] == pytest.approx(0.04)


def test_a_score_that_says_nothing_has_an_interval_around_a_half():
    rng = np.random.default_rng(0)
    area = measured(rng.normal(size=400), rng.normal(size=400))["auroc"]
    assert area["low"] < 0.5 < area["high"]
    assert area["high"] - area["low"] == pytest.approx(4 * 0.0204, rel=0.3)  # Hanley & McNeil 1982


def test_the_interval_over_groups_is_that_of_independent_images_however_many_each_has():
    rng = np.random.default_rng(0)
    normal, ood = rng.normal(size=60), rng.normal(1, size=60)
    alone = measured(normal, ood)
    table = scored(np.repeat(normal, 10), np.repeat(ood, 10))
    repeated = np.repeat(np.arange(60), 10)
    found = measure_ood(with_groups(table, repeated, repeated))
    assert found["groups"] == {"normal": 60, "ood": 60}
    for name in ("auroc", "average_precision"):
        expected, over = alone[name], found["scores"]["density"][name]
        assert over["value"] == pytest.approx(expected["value"], abs=0.01)
        width = expected["high"] - expected["low"]
        assert over["high"] - over["low"] == pytest.approx(width, rel=0.1)
    assert measure_ood(table)["scores"]["density"]["auroc"]["high"] < over["high"]


def test_images_of_a_kind_without_groups_are_their_own():
    table = scored(range(8), range(3))
    assert with_groups(table, None, None) is table
    found = with_groups(table, np.array([5, 5, 2, 2, 2, 1, 1, 1, 7, 7]), None)
    assert found["group"].tolist() == [5, 5, 2, 2, 2, 1, 1, 1, 0, 1, 2]
    auroc = measure_ood(found)["scores"]["density"]["auroc"]
    assert (auroc["low"], auroc["high"]) == (None, None)  # of three groups there is no interval


def test_what_overflows_is_as_strange_as_can_be():
    found = measured([1.0, 2.0, 3.0], [np.inf, np.nan, 9.0])
    assert found["auroc"]["value"] == 1.0


def ramps(count, seed):
    rng = np.random.default_rng(seed)
    ramp = np.linspace(60, 180, 8)[:, None] * np.ones(8)
    return (ramp + rng.normal(0, 3, (count, 1, 8, 8))).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def model():
    """A Glow that is only set to the data."""
    torch.manual_seed(0)
    model = Hierarchy([Stage(Glow((1, 8, 8), levels=2, steps=2, width=8, whiten=True), 6)])
    with torch.no_grad():
        model(dequantize(torch.from_numpy(ramps(300, 0))))
    return model.eval()


NOISE = np.random.default_rng(9).integers(0, 256, (30, 1, 8, 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def table(model):
    """The model tells noise from its data."""
    return score_kinds(model, ramps(300, 0), ramps(200, 1), ramps(100, 2), NOISE)


def test_every_score_has_a_tail_probability(table):
    names = [*SCORES, COMBINATION, *LINEAR, LINEAR_COMBINATION]
    for name in names:
        tails = table[f"p_{name}"]
        assert tails.between(1 / 201 - 1e-9, 1).all()
    found = measure_ood(table)
    assert list(titles(found["scores"])) == names
    assert found["counts"] == {"normal": 100, "ood": 30}


def test_noise_is_found_and_normal_images_are_rarely_taken_for_it(table):
    noise = table[table["part"] == "ood"]
    normal = table[table["part"] == "normal"]
    for name in (COMBINATION, "density", "encoder_distance", LINEAR_COMBINATION):
        assert noise[f"p_{name}"].tolist() == pytest.approx([1 / 201] * len(noise)), name
        assert (normal[f"p_{name}"] <= 0.05).mean() < 0.15, name


def test_the_p_values_of_all_scores_count_groups_of_validation_images(model):
    names, groups = ("density", "encoder_distance"), np.arange(60) // 2
    table = score_kinds(
        model, ramps(300, 0), ramps(60, 1), ramps(5, 2), NOISE[:5], names, groups
    )  # fmt: skip
    noise = table[table["part"] == "ood"]
    for name in (*names, COMBINATION, LINEAR_COMBINATION):
        assert noise[f"p_{name}"].tolist() == pytest.approx([1 / 31] * 5), name


def test_too_few_validation_images_are_refused(model):
    with pytest.raises(UserError, match=r"expected at least 20, .* got 19 images"):
        score_kinds(model, ramps(300, 0), ramps(19, 1), ramps(5, 2), NOISE, ("density",))
