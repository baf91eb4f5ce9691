import pytest

from submanifold.common.errors import UserError
from submanifold.common.processes import check_memory, cores, free_memory, map_in_threads


@pytest.mark.parametrize(
    ("anon", "shmem", "free"),
    [
        (10**5, 0, 900_000),
        (500_000, 100_000, 400_000),
        (2 * 10**6, 0, 0),
    ],
)
def test_control_group_limits_the_memory(tmp_path, anon, shmem, free):
    (tmp_path / "memory.max").write_text(f"{10**6}\n")
    (tmp_path / "memory.stat").write_text(f"anon {anon}\nfile 700000\nshmem {shmem}\n")
    assert free_memory(tmp_path) == free


def test_too_many_objects_for_the_memory_are_rejected():
    check_memory("count", 1000, 1000)
    with pytest.raises(UserError, match=r"expected at most [\d,]+, got 1,000,000: each takes"):
        check_memory("count", 10**6, 10**12)


def test_results_of_threads_are_in_order_and_items_are_taken_as_needed():
    taken, count = [], 1000 * cores()
    squares = map_in_threads(lambda n: n**2, (taken.append(n) or n for n in range(count)))
    assert [next(squares) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(taken) < count / 10
    assert [*squares] == [n**2 for n in range(5, count)]
