import random
from collections import Counter
from contextlib import suppress

import pytest
import torch

from submanifold.common.threads import (
    ThreadTuner,
    choose_one_or_all,
    choose_threads,
    tuned,
    use_threads,
)

IDLE, BUSY = {1: 0.034, 2: 0.023}, {1: 0.036, 2: 0.15}


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
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


def test_choice_follows_the_load():
    cost, last = simulate(lambda index: IDLE if index < 500 else BUSY, 2000)
    assert cost < 1
    assert last == 1
    cost, last = simulate(lambda index: BUSY if index < 500 else IDLE, 4000, start=1)
    assert cost < 1
    assert last == 2


def test_many_cores_are_climbed():
    durations = {count: 1 / count for count in (1, 4, 8, 12, 15, 16)}
    assert simulate(lambda index: durations, 300, [*durations], 1)[1] == 16


@pytest.mark.parametrize("durations", [IDLE, BUSY])
def test_a_measurement_uses_the_faster_number_of_threads(monkeypatch, durations):
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def work():
        clock[0] += durations[torch.get_num_threads()]

    with use_threads("auto"):
        choose_one_or_all(work)
        assert torch.get_num_threads() == min(durations, key=durations.get)


def work(units=50):
    """Compute units of a duration that makes a tuner try other numbers; count them by number."""
    tuner, used = ThreadTuner(), Counter()
    for _ in range(units):
        with tuner.unit():
            used[torch.get_num_threads()] += 1
    assert {*used} <= {1, 2}
    return used


@pytest.fixture
def clock(monkeypatch):
    times = iter(range(1000))
    monkeypatch.setattr("time.perf_counter", lambda: next(times) * 0.05)


def test_fixed_number_is_never_changed(clock):
    with use_threads(2):
        for _ in tuned([(torch.zeros(1), None)] * 40):
            assert torch.get_num_threads() == 2
        assert work() == {2: 50}


@pytest.mark.parametrize("present", [1, 2])
def test_threads_are_chosen_in_commands_only_and_restored(clock, present):
    torch.set_num_threads(present)
    assert work() == {present: 50}
    for setting in ("auto", 1, 2):
        with suppress(KeyboardInterrupt), use_threads(setting):
            work()
            raise KeyboardInterrupt
        assert torch.get_num_threads() == present
        assert work() == {present: 50}


@pytest.mark.parametrize("durations", [IDLE, BUSY])
def test_batches_are_processed_with_the_faster_number_of_threads(monkeypatch, durations):
    now, used = [0.0], Counter()
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    with use_threads("auto"):
        for _ in tuned([(torch.zeros(1), None)] * 200):
            used[torch.get_num_threads()] += 1
            now[0] += durations[torch.get_num_threads()]
    assert {*used} == {1, 2}, "it tries both"
    assert used[min(durations, key=durations.get)] > 150
