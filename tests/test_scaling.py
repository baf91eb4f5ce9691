"""Slow tests of size: ``pytest -m slow -n 0`` rewrites docs/evidence/scaling.md."""

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["processes", "million", "names", "sizes"])
def test_it_scales(part):
    from benchmarks.scaling.__main__ import FOLDER, PARTS, measure  # which takes seconds

    found = measure(part, REPOSITORY / FOLDER)
    assert PARTS[part].broken(found) == []
