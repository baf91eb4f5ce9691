"""Time budgets."""

import pytest
import torch

from submanifold.data.settings import SyntheticSettings
from submanifold.models import ModelSettings
from submanifold.pipelines.training import nodes
from submanifold.training import cost
from submanifold.training.cost import (
    PhaseCost,
    fit_budget,
    phase_costs,
    with_steps,
)
from submanifold.training.phases import PhaseSettings
from submanifold.training.rotation import RotationSettings

FLOW = {"type": "realnvp", "couplings": 2, "hidden": 4, "mixing": False}
MODEL = ModelSettings(stages=[{"flow": FLOW, "dim": 2}])
TRAINING = {"steps": 400, "batch_size": 4, "warmup": 40, "validate_every": 100}
PHASES = {
    "density": PhaseSettings(stages=(1,), training=TRAINING),
    "rotation": RotationSettings(rotate=1),
    "reconstruction": PhaseSettings(stages=(1,), training={**TRAINING, "steps": 100}),
    "rotation_2": RotationSettings(rotate=1, probes=1000),
}


@pytest.fixture
def costs(monkeypatch):
    """Steps of 0.1 s; rotations of 3 s and 0.001 s per probe, by default of 2,000 probes."""

    def phase_cost(model, phase, shape, device):
        if isinstance(phase, RotationSettings):
            return PhaseCost(3.0, 0.001, phase.probes or 2000)
        return PhaseCost(0.0, 0.1, phase.training.steps)

    monkeypatch.setattr(cost, "phase_cost", phase_cost)


def test_one_factor_scales_all_phases(costs):
    """53 s vary with the steps and 6 s do not: 85% of 112 - 6 s are 1.7 times the 53 s."""
    found = phase_costs(MODEL, PHASES, (4,), "cpu")
    steps = fit_budget(112, found)
    assert steps == {"density": 680, "rotation": 3400, "reconstruction": 170, "rotation_2": 1700}


def test_a_measurement_that_fails_leaves_the_number_of_threads(monkeypatch):
    def fail(*_):
        torch.set_num_threads(threads + 1)
        raise RuntimeError("out of memory")

    threads = torch.get_num_threads()
    monkeypatch.setattr(cost, "phase_cost", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        phase_costs(MODEL, PHASES, (4,), "cpu")
    assert torch.get_num_threads() == threads


def test_measured_costs_leave_the_random_state():
    state = torch.get_rng_state()
    costs = phase_costs(MODEL, PHASES, (4,), torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)
    assert [cost.steps for cost in costs.values()] == [400, 32, 100, 1000]
    assert all(cost.per_step > 0 for cost in costs.values())
    assert [cost.fixed > 0 for cost in costs.values()] == [False, True, False, True]


@pytest.mark.parametrize(
    ("minutes", "density"),
    [
        (None, 400),
        (10, 400 * 0.85 * (600 - 45 - 6) / 53),  # 45 s for start, evaluation and report
        (1, 400 * 0.85 * (30 - 6) / 53),  # at least half of the budget
    ],
)
def test_steps_are_scaled_to_a_time(costs, caplog, minutes, density):
    caplog.set_level("INFO")
    data = SyntheticSettings(source="circle")
    schedule = nodes.plan_steps(minutes, PHASES, MODEL, data, "cpu")
    assert schedule["steps"]["density"] == pytest.approx(density, abs=1)
    assert ("Timing" in caplog.text) == (minutes is not None)


def test_schedules_follow_the_steps():
    short = with_steps(PHASES["density"], 100)
    assert (short.training.steps, short.training.warmup) == (100, 10)
    long = with_steps(PHASES["density"], 4000)
    assert (long.training.steps, long.training.warmup) == (4000, 40)
    assert with_steps(PHASES["rotation"], 77).probes == 77
