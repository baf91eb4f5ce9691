"""docs/concepts/metrics.md explains every metric and every anomaly score."""

from pathlib import Path

import pytest

from submanifold.evaluation.calibration import COMBINATION
from submanifold.evaluation.metrics import METRICS
from submanifold.evaluation.ood import LINEAR, LINEAR_COMBINATION
from submanifold.evaluation.scores import SCORES

pytestmark = pytest.mark.docs

PAGE = (Path(__file__).parents[2] / "docs/concepts/metrics.md").read_text()


@pytest.mark.parametrize("name", [*METRICS, *SCORES, *LINEAR, COMBINATION, LINEAR_COMBINATION])
def test_the_page_explains_every_metric_and_score(name):
    assert f"`{name}`" in PAGE
