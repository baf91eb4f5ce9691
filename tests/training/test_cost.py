"""Time budgets."""

import pytest

from submanifold.models import ModelSettings
from submanifold.training import cost
from submanifold.training.cost import PhaseCost, fit_budget, with_steps
from submanifold.training.phases import PhaseSettings
from submanifold.training.rotation import RotationSettings

FLOW = {"type": "realnvp", "couplings": 2, "hidden": 4, "mixing": False}
MODEL = ModelSettings(stages=[{"flow": FLOW, "dim": 2}])
TRAINING = {"steps": 400, "batch_size": 4, "learning_rate": 1e-3, "warmup": 40,
            "cooldown_fraction": 0.5, "ema": 0.9, "validate_every": 100,
            "precision": "float32"}  # fmt: skip
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
    steps = fit_budget(112, MODEL, PHASES, (4,), "cpu")
    assert steps == {"density": 680, "rotation": 3400, "reconstruction": 170, "rotation_2": 1700}


def test_schedules_follow_the_steps():
    short = with_steps(PHASES["density"], 100)
    assert (short.training.steps, short.training.warmup) == (100, 10)
    long = with_steps(PHASES["density"], 4000)
    assert (long.training.steps, long.training.warmup) == (4000, 40)
    assert with_steps(PHASES["rotation"], 77).probes == 77
