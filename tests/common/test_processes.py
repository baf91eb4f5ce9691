import pytest

from submanifold.common import processes
from submanifold.common.errors import UserError
from submanifold.common.processes import check_memory, free_memory, map_in_threads


@pytest.mark.parametrize(
    ("anon", "shmem", "free"),
    [
        (10**5, 0, 900_000),
        (500_000, 100_000, 400_000),
        (2 * 10**6, 0, 0),
    ],
)
def test_control_group_limits_the_memory(tmp_path, monkeypatch, anon, shmem, free):
    monkeypatch.setattr(processes, "CONTROL_GROUP", tmp_path)
    (tmp_path / "memory.max").write_text(f"{10**6}\n")
    (tmp_path / "memory.stat").write_text(f"anon {anon}\nfile 700000\nshmem {shmem}\n")
    assert free_memory() == free


def test_too_many_objects_for_the_memory_are_rejected(monkeypatch):
    monkeypatch.setattr(processes, "free_memory", lambda: 10**6)
    check_memory("count", 1000, 1000)
    with pytest.raises(UserError, match=r"count: expected at most 1,000, got 1,001: each takes"):
        check_memory("count", 1001, 1000)


def test_results_of_threads_are_in_order_and_items_are_taken_as_needed(monkeypatch):
    monkeypatch.setattr(processes, "cores", lambda: 3)
    monkeypatch.setattr(processes, "CHUNK", 4)
    taken = []
    squares = map_in_threads(lambda n: n**2, (taken.append(n) or n for n in range(1000)))
    assert [next(squares) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(taken) == 4 * (2 * 3 + 1)
    assert [*squares] == [n**2 for n in range(5, 1000)]
