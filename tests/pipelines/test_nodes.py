"""Nodes as functions, without a pipeline."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from calibrated import table_model
from calibrated import table_rows as rows
from submanifold import Predictor
from submanifold.data.tables import Preprocessor
from submanifold.evaluation.calibration import COMBINATION, Calibration
from submanifold.evaluation.scores import score
from submanifold.flows import RealNVP
from submanifold.inference.training_events import hash_events, training_share
from submanifold.models import Hierarchy, Stage
from submanifold.pipelines.ood.nodes import gather_rows
from submanifold.pipelines.training.nodes import calibrate_model


@pytest.fixture
def model():
    torch.manual_seed(0)
    return table_model(RealNVP(4), 3, rows(500, 0), rows(200, 1))


def test_training_rows_of_tables_are_recognized():
    """A model gets its data with its calibration."""
    train, valid = rows(400, 0), rows(100, 1)
    preprocessor = Preprocessor.fit(train)
    data = SimpleNamespace(facts={"table": preprocessor.to_dict()})
    arrays = (preprocessor.transform(part, np.arange(len(part))) for part in (train, valid))
    trained = calibrate_model(Hierarchy([Stage(RealNVP(4), 3)]), data, *arrays, "cpu")
    known = trained.calibration["training"]
    for table, share in ((train, 1.0), (valid, 0.0)):
        hashes = hash_events(trained, Predictor(trained).events(table))
        assert training_share(known, hashes) == share


def test_rows_of_unseen_categories_are_the_most_anomalous(model, tmp_path):
    table = rows(60, 2)
    table.loc[10:19, "city"] = "Oslo"
    table.to_csv(tmp_path / "other.csv", index=False)
    events = gather_rows(SimpleNamespace(path=[tmp_path / "other.csv"]), model)
    calibration = Calibration.from_dict(model.calibration)
    combination = calibration.complete(score(model, events))[COMBINATION]
    p_values = calibration.p_values(COMBINATION, combination)
    assert (p_values[10:20] == calibration.smallest_p_value).all()
    assert (np.delete(p_values, range(10, 20)) > calibration.smallest_p_value).mean() > 0.8
