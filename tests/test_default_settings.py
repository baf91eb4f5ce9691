"""The default methods in Python."""

import numpy as np
import pandas as pd
import pytest
import yaml

from conftest import REPOSITORY
from submanifold.config.resolve import resolve
from submanifold.training.defaults import image_method, table_method


@pytest.mark.parametrize(("dataset", "method"), [("photos", image_method), ("table", table_method)])
def test_they_are_those_of_the_configuration(dataset, method, tmp_path):
    parameters = yaml.safe_load((REPOSITORY / "conf/base/parameters.yml").read_text())
    rows = np.random.default_rng(0).normal(size=(50, 6))
    pd.DataFrame(rows).to_csv(tmp_path / "rows.csv", index=False)
    data = {"path": str(tmp_path / "rows.csv")} if dataset == "table" else {}
    experiment = resolve({**parameters, "dataset": dataset, "data": data, "stage_1": {"dim": 3}})
    model, phases = method(3)
    assert phases == experiment.phases
    stages = [stage.model_copy(update={"default_dim": False}) for stage in experiment.model.stages]
    assert list(model.stages) == stages
