"""Time budgets."""

import pytest
import torch

from submanifold.data.settings import SyntheticSettings
from submanifold.models import ModelSettings
from submanifold.pipelines.training import nodes
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


def test_one_factor_scales_all_phases():
    """53 s vary with the steps and 6 s do not: 85% of 112 - 6 s are 1.7 times the 53 s."""
    costs = {"density": PhaseCost(0.0, 0.1, 400), "rotation": PhaseCost(3.0, 0.001, 2000)}
    costs |= {"reconstruction": PhaseCost(0.0, 0.1, 100), "rotation_2": PhaseCost(3.0, 0.001, 1000)}
    steps = fit_budget(112, costs)
    assert steps == {"density": 680, "rotation": 3400, "reconstruction": 170, "rotation_2": 1700}


def test_measured_costs_leave_the_random_state_and_the_threads():
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    costs = phase_costs(MODEL, PHASES, (4,), torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert [cost.steps for cost in costs.values()] == [400, 32, 100, 1000]
    assert all(cost.per_step > 0 for cost in costs.values())
    assert [cost.fixed > 0 for cost in costs.values()] == [False, True, False, True]


@pytest.mark.parametrize("minutes", [None, 10])
def test_steps_are_scaled_to_a_time(caplog, minutes):
    caplog.set_level("INFO")
    data = SyntheticSettings(source="circle")
    schedule = nodes.plan_steps(minutes, PHASES, MODEL, data, "cpu")
    density, reconstruction = (schedule["steps"][name] for name in ("density", "reconstruction"))
    assert density == pytest.approx(4 * reconstruction, abs=4)
    assert (density == 400) == (minutes is None)
    assert ("Timing" in caplog.text) == (minutes is not None)


@pytest.mark.parametrize(("minutes", "seconds"), [(10, 600 - 45), (1, 30)])
def test_trainings_may_take_what_the_report_leaves_and_at_least_half(minutes, seconds):
    trainings = {name: PHASES[name] for name in ("density", "reconstruction")}
    data = SyntheticSettings(source="circle")
    schedule = nodes.plan_steps(minutes, trainings, MODEL, data, "cpu")
    assert sum(schedule["seconds"].values()) == pytest.approx(seconds, rel=0.01)


def test_schedules_follow_the_steps():
    short = with_steps(PHASES["density"], 100)
    assert (short.training.steps, short.training.warmup) == (100, 10)
    long = with_steps(PHASES["density"], 4000)
    assert (long.training.steps, long.training.warmup) == (4000, 40)
    assert with_steps(PHASES["rotation"], 77).probes == 77
