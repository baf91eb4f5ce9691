import random

import pytest
import torch

from submanifold.common import threads
from submanifold.common.threads import ThreadTuner, choose_threads, tuned, use_threads
from submanifold.data.batches import Batches

IDLE, BUSY = {1: 0.034, 2: 0.023}, {1: 0.036, 2: 0.15}


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(threads, "_most", lambda: 2)
    monkeypatch.setattr(threads, "_started", None)
    yield
    use_threads("auto")
    torch.set_num_threads(before)


def simulate(durations, units, counts=(1, 2), start=2):
    """Total duration, relative to the best fixed number, where units take ``durations(index)``."""
    rng = random.Random(0)
    choice = choose_threads(counts, start)
    count, total = next(choice), 0.0
    for index in range(units):
        seconds = durations(index)[count] * rng.uniform(0.85, 1.15)
        total += seconds
        count = choice.send((seconds, 1))
    return total / min(sum(durations(i)[each] for i in range(units)) for each in counts), count


@pytest.mark.parametrize("start", [1, 2])
@pytest.mark.parametrize(("durations", "best"), [(IDLE, 2), (BUSY, 1), ({1: 0.05, 2: 0.4}, 1)])
def test_chosen_threads_cost_little_more_than_the_best_number(durations, best, start):
    assert simulate(lambda index: durations, 1500, start=start) == (pytest.approx(1, abs=0.1), best)


def test_units_of_seconds_are_tried_once():
    assert simulate(lambda index: {1: 3.4, 2: 2.3}, 30)[0] < 1.15


def test_choice_follows_the_load():
    cost, last = simulate(lambda index: IDLE if index < 500 else BUSY, 2000)
    assert cost < 1 and last == 1
    cost, last = simulate(lambda index: BUSY if index < 500 else IDLE, 4000, start=1)
    assert cost < 1 and last == 2


def test_many_cores_are_climbed():
    durations = {count: 1 / count for count in (1, 4, 8, 12, 15, 16)}
    assert simulate(lambda index: durations, 300, [*durations], 1)[1] == 16


def test_tuner_sets_the_number_and_counts_units(monkeypatch):
    times = iter(range(1000))
    monkeypatch.setattr(threads.time, "perf_counter", lambda: next(times) * 0.05)
    tuner = ThreadTuner()
    for _ in range(50):
        with tuner.unit():
            assert torch.get_num_threads() in (1, 2)
    assert set(tuner.used) == {"1", "2"} and tuner.used.total() == 50


def test_fixed_number_is_never_changed():
    use_threads(2)
    tuner = ThreadTuner()
    for _ in tuned(torch.zeros(40, 1)):
        assert torch.get_num_threads() == 2
    for _ in range(40):
        with tuner.unit():
            assert torch.get_num_threads() == 2
    assert tuner.used == {"2": 40}


def test_another_device_is_not_measured():
    torch.set_num_threads(2)
    tuner = ThreadTuner("meta")
    for _ in range(40):
        with tuner.unit():
            pass
    assert tuner.used == {"2": 40}


def test_first_tuner_starts_with_the_idle_cores(monkeypatch):
    monkeypatch.setattr(threads, "cores", lambda: 2)
    monkeypatch.setattr(threads, "_busy_seconds", lambda: 11.0)
    monkeypatch.setattr(threads, "_own_seconds", lambda: 4.0)
    monkeypatch.setattr(threads.time, "monotonic", lambda: 10.0)
    torch.set_num_threads(2)
    for others, expected in ((0.0, 2), (1.0, 1), (2.0, 1)):
        # within ten seconds this process worked for one
        monkeypatch.setattr(threads, "_started", (11.0 - 1.0 - 10 * others, 3.0, 0.0))
        assert threads._first_count() == expected
    assert threads._first_count() == 2  # later tuners start with the present number


def test_batches_are_tuned(monkeypatch):
    monkeypatch.setattr(threads, "tuned", lambda batches: iter(["tuned"]))
    monkeypatch.setattr("submanifold.data.batches.tuned", threads.tuned)
    assert [*Batches(torch.zeros(3, 2).numpy(), 2)] == ["tuned"]
