"""The sentences of the report that draw conclusions from numbers."""

import numpy as np
import pandas as pd
import pytest

from submanifold.evaluation.calibration import Calibration
from submanifold.pipelines.reporting.sections import against_pca, alarms, anomalies, describe_gap

RNG = np.random.default_rng(0)
SCORES = {"density": RNG.standard_normal(400)}
CALIBRATION = Calibration.fit(SCORES, ("density",)).to_dict()


def scored(shift=0.0, count=400, p_values=None):
    tables = [
        pd.DataFrame({"split": split, "group": range(count), "bits_per_dim": 3 + offset
                      + 0.2 * RNG.standard_normal(count)})
        for split, offset in (("train", 0.0), ("valid", shift), ("test", shift))
    ]  # fmt: skip
    tables[2]["p_value"] = np.linspace(0, 1, count) if p_values is None else p_values
    return pd.concat(tables)


@pytest.mark.parametrize(("shift", "count", "conclusion"), [
    (0.3, 400, "it overfits"),
    (-0.3, 400, "the splits differ"),
    (0.3, 1, "too few images"),
])  # fmt: skip
def test_overfitting_is_concluded_from_the_interval(shift, count, conclusion):
    assert conclusion in describe_gap(scored(shift, count))


def test_anomalous_rows_are_listed_with_their_columns():
    about = {"row": 1234, "p_value": 0.0051, "nll": 12.3456}
    explained = pd.DataFrame([
        {**about, "column": "age", "value": "93", "contribution": 12.34, "usual": "41"},
        {**about, "column": "city", "value": "Rome", "contribution": 0.5, "usual": "Bern"},
        {**about, "column": "x", "value": "1", "contribution": 0.0, "usual": "1"},
        {**about, "row": 7, "column": "age", "value": "30", "contribution": 0.0, "usual": "30"},
    ])  # fmt: skip
    found = anomalies(explained)
    assert found.to_dict("records") == [
        {"row": "1234", "p-value": "0.0051", "log-density": "-12.35",
         "columns": "age = 93 (+12.3 with 41); city = Rome (+0.5 with Bern)"},
        {"row": "7", "p-value": "0.0051", "log-density": "-12.35",
         "columns": "no single column"},
    ]  # fmt: skip
    assert "p-value" not in anomalies(explained.assign(p_value=np.nan))
    assert anomalies(explained[:0]) is None


@pytest.mark.parametrize(("power", "sentence"), [
    (1.0, "All observed rates are in the ranges of normal images."),
    (0.3, "Fewer test images are flagged than promised at 10%, 5%"),
    (4.0, "More test images are flagged than promised at 10%, 5%, 1%"),
])  # fmt: skip
def test_false_alarms_are_compared_with_those_of_normal_images(power, sentence):
    found = alarms(scored(p_values=np.linspace(0.003, 1, 400) ** power), CALIBRATION)
    assert sentence in found["sentence"]
    assert found["table"]["range if normal"][1] == "2.2% to 8.2%"
    assert list(found["table"]["promised rate"]) == ["10%", "5%", "1%"]
    assert "400 images for validation" in found["sentence"]
    assert alarms(scored(), {"why": "too few"}) is None
    assert alarms(scored().drop(columns="p_value"), CALIBRATION) is None


@pytest.mark.parametrize(("encoder", "nearest", "warns"), [
    (0.5, 0.4, False),
    (3.0, 0.9, False),
    (3.0, 1.5, True),
])  # fmt: skip
def test_errors_above_those_of_pca_are_a_warning(encoder, nearest, warns):
    metrics = {"encoder_mse": {"value": encoder, "n": 512}, "nearest_mse": {"value": nearest},
               "counts": {"test": 512}}  # fmt: skip
    baselines = {"pca": {"mse": {"value": 9.0}}, "pca_subset": {"mse": {"value": 1.0}}}
    sentence, warning = against_pca({**metrics, "baselines": baselines})
    assert f"{encoder:.2g} times that of PCA (encoder projections)" in sentence
    assert f"{nearest:.2g} times that of PCA (nearest projections)" in sentence
    assert (warning is not None) == warns
    assert "512" not in sentence
    more = against_pca({**metrics, "baselines": baselines, "counts": {"test": 776}})
    assert more == (f"{sentence} These errors and those above are of 512 evenly spaced test "
                    "images.", warning)  # fmt: skip
    missing = {"pca_subset": {"why": "too few"}}
    assert against_pca({**metrics, "baselines": missing}) == (None, None)
