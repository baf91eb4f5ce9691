"""Runs of a scheduler, with one command for each task."""

from itertools import pairwise

import pytest
from kedro.io import MemoryDataset

pytestmark = pytest.mark.pipeline

AROUND = {"data", "plan_steps", "collect_histories", "calibrate", "evaluation", "report"}


@pytest.mark.parametrize(
    ("params", "phases"),
    [
        (
            {"method": "density-first"},
            ["density", "rotation", "reconstruction", "rotation_2", "code_flow"],
        ),
        ({"dataset": "circle"}, ["stage_1", "stage_2"]),
    ],
)
def test_each_phase_is_a_task_and_all_intermediate_outputs_are_files(project, params, phases):
    from kedro.framework.project import pipelines

    with project.session(**params) as session:
        catalog = session.load_context().catalog
        pipeline = pipelines["hierarchical"]
    groups = {group.name: group for group in pipeline.group_nodes_by("namespace")}
    assert groups.keys() == AROUND | set(phases)
    for before, after in pairwise(phases):
        assert before in groups[after].dependencies
    passed = pipeline.all_inputs() & pipeline.all_outputs()
    assert passed
    assert not [name for name in passed if isinstance(catalog.get(name), MemoryDataset | None)]
