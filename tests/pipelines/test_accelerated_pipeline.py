"""The whole program on a device of its own kind: what would fail on a GPU fails here."""

import numpy as np
import pytest
import torch

from submanifold.evaluation import sample_quality
from submanifold.evaluation.frechet import MissingWeightsError
from submanifold.flows.fast import kernels
from submanifold.models import Hierarchy

FLOAT32 = {"training": {"precision": "float32"}}


@pytest.fixture(autouse=True)
def no_inception(monkeypatch):
    def missing(*arguments):
        raise MissingWeightsError("no network in tests")

    monkeypatch.setattr(sample_quality, "inception_features", missing)


@pytest.fixture
def computed_on(monkeypatch):
    """Kinds of the devices on which models encode and decode."""
    kinds = set()
    for name in ("trace", "decode"):
        method = getattr(Hierarchy, name)

        def seen(self, *args, method=method, **kwargs):
            kinds.add(next(self.parameters()).device.type)
            return method(self, *args, **kwargs)

        monkeypatch.setattr(Hierarchy, name, seen)
    return kinds


@pytest.fixture(scope="module")
def on_cpu(project):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "library", lambda: None)  # the CPU's own round otherwise
        return project.run(**FLOAT32)


def close(mine, other, path=()):
    """Compare metrics: equal names, numbers equal up to rounding, whatever the clock says."""
    if isinstance(mine, dict):
        assert mine.keys() == other.keys()
        for name in mine.keys() - {"seconds", "rows_per_second", "why"}:
            close(mine[name], other[name], (*path, name))
    elif isinstance(mine, list):
        assert len(mine) == len(other)
        for index, pair in enumerate(zip(mine, other, strict=True)):
            close(*pair, (*path, index))
    elif isinstance(mine, float):
        assert mine == pytest.approx(other, rel=1e-3, abs=1e-5), path
    else:
        assert mine == other, path


@pytest.mark.slow
def test_from_data_to_report_it_is_the_same_on_an_accelerator(
    on_cpu, new_project, accelerator, computed_on, monkeypatch
):
    monkeypatch.setattr("accelerator.SEED_OFFSET", 0)  # its generators draw the CPU's numbers
    run = new_project().run(**{**FLOAT32, "device": str(accelerator)})
    assert computed_on == {"sim"}, "nothing was left to the CPU"
    assert run.steps == {"stage_1": 12, "stage_2": 12}
    for name in ("stage_1.model", "stage_2.model", "hierarchy"):
        mine, other = (each.load(name).state_dict() for each in (run, on_cpu))
        assert mine.keys() == other.keys()
        for key in mine:
            torch.testing.assert_close(mine[key], other[key], rtol=1e-4, atol=1e-5)
    mine, other = (each.load("stage_2.u_train") for each in (run, on_cpu))
    np.testing.assert_allclose(mine, other, atol=1e-3)
    for name in ("stage_1.history", "stage_2.history", "metrics"):
        close(run.load(name), on_cpu.load(name))
    assert run.mlflow.info.status == "FINISHED"
    assert "H-MM, 192 → 24 → 12" in run.load("report")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pipeline", "until", "params"),
    [
        ("joint", "metrics", {"method": "DNF"}),
        ("hierarchical", "truth", {"dataset": "circle"}),
    ],
    ids=["joint", "points"],
)
def test_other_experiments_run_on_an_accelerator_too(
    new_project, accelerator, computed_on, pipeline, until, params
):
    run = new_project().run(pipeline, until=until, device=str(accelerator), **params)
    assert computed_on == {"sim"}
    assert run.mlflow.info.status == "FINISHED"
    assert run.load(until)


def test_a_training_goes_on_where_another_device_left_it(new_project, accelerator):
    project = new_project()
    project.run(until="stage_1.model", **FLOAT32)
    run = project.run(until="hierarchy", **{**FLOAT32, "device": str(accelerator)})
    assert run.steps == {"stage_1": 0, "stage_2": 12}
