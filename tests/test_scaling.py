"""What takes too long for every day: ``pytest -m slow -n 0``, which writes docs/evidence/scaling.md anew."""

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["processes", "million", "names", "sizes"])
def test_it_scales(part):
    from benchmarks.scaling.__main__ import FOLDER, PARTS, measure  # which takes seconds

    found = measure(part, REPOSITORY / FOLDER)
    assert PARTS[part].broken(found) == []
