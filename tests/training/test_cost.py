"""Time budgets."""

import json
import time
from threading import Thread
from types import SimpleNamespace

import pytest

from submanifold.config.schema import LaunchSettings
from submanifold.models import ModelSettings
from submanifold.pipelines.training import nodes
from submanifold.training import cost, rotation
from submanifold.training.cost import PhaseCost, fit_budget, phase_cost, with_steps
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


def test_a_short_time_leaves_half_for_the_steps(costs):
    steps = fit_budget(0.4, MODEL, PHASES, (4,), "cpu")
    assert steps == {"density": 1, "rotation": 6, "reconstruction": 1, "rotation_2": 3}


def test_schedules_follow_the_steps():
    short = with_steps(PHASES["density"], 100)
    assert (short.training.steps, short.training.warmup) == (100, 10)
    long = with_steps(PHASES["density"], 4000)
    assert (long.training.steps, long.training.warmup) == (4000, 40)
    assert with_steps(PHASES["rotation"], 77).probes == 77


def test_measured_steps_are_the_steps_that_are_made():
    """Timed on this machine, with the real trainer; the order of magnitude is right."""
    phases = {"density": PHASES["density"]}
    few, many = (fit_budget(s, MODEL, phases, (4,), "cpu")["density"] for s in (1, 1000))
    assert 0 < few < 100_000
    assert many > 20 * few


@pytest.mark.parametrize(("number", "directions"), [(1, 4), (2, 2)])
@pytest.mark.parametrize("probes", [None, 1000])
def test_cost_of_a_rotation_is_that_of_its_probes_and_decomposition(
    number, directions, probes, monkeypatch
):
    """A round of probes takes 0.5 s on a fake clock, and the choice of axes 3 s."""
    now = 100.0
    compute_probes, set_rotation = rotation._probe_function, rotation._set_rotation

    def taking(seconds, function):
        def timed(*arguments):
            nonlocal now
            now += seconds
            return function(*arguments)

        return timed

    monkeypatch.setattr(rotation, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(rotation, "_probe_function", lambda *a: taking(0.5, compute_probes(*a)))
    monkeypatch.setattr(rotation, "_set_rotation", taking(3.0, set_rotation))
    model = ModelSettings(stages=[{"flow": FLOW, "dim": 2}, {"flow": FLOW, "dim": None}])
    found = phase_cost(model, RotationSettings(rotate=number, probes=probes), (4,), "cpu")
    per_round = rotation.PROBES_PER_EVENT * cost.ROTATION_BATCH_SIZE
    assert found.fixed == 3.0
    assert found.per_step == pytest.approx(0.5 / per_round, rel=0.05)  # some may be left out
    assert found.steps == (probes or rotation.PROBES_PER_AXIS * directions)


def test_runs_that_measure_a_budget_at_once_use_the_same_steps(tmp_path, monkeypatch):
    measured, found = [], []

    def slow(*arguments):
        measured.append(len(measured) + 1)
        steps = {"density": 100 * len(measured)}
        time.sleep(0.2)
        return steps

    def run():
        found.append(nodes.measure_budget(
            1.0, MODEL, SimpleNamespace(event_shape=(4,)), "cpu", LaunchSettings(), tmp_path,
            density=PHASES["density"],
        ))  # fmt: skip

    monkeypatch.setattr(nodes, "fit_budget", slow)
    threads = [Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert measured == [1]
    assert found == 2 * [{"minutes": 1.0, "steps": {"density": 100}}]
    assert json.loads((tmp_path / "budget.json").read_text()) == found[0]
