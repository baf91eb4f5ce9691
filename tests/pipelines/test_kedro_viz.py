"""The pipelines as Kedro-Viz shows them: layers, stages, previews."""

import json
import shutil

import pytest

from submanifold.pipeline_registry import register_pipelines

PREVIEWS = {
    "ImagePreview": {
        *("x_train", "x_valid", "x_test", "stage_2.u_train", "stage_2.u_valid"),
        *("samples", "samples_cool", "projections"),
        *("samples_figure", "samples_cool_figure", "rejection_figure", "curves_figure"),
        "dimensions_figure",
    },
    "JSONPreview": {
        *("manifest", "baselines", "metrics", "hierarchy"),
        *("stage_1.model", "stage_1.history", "stage_2.model", "stage_2.history"),
    },
    "TablePreview": {"metrics_table"},
}


@pytest.fixture(scope="module")
def site(new_project):
    """The static site of a project after a run, built without a network."""
    project = new_project()
    # viz build has no --env, so the small sizes become the user's own
    conf = project.path / "conf"
    shutil.copy(conf / "test" / "parameters.yml", conf / "local" / "parameters.yml")
    project.run()
    code, output = project.kedro("viz", "build", "--include-hooks", "--include-previews")
    assert code == 0, output
    return project.path / "build" / "api"


def test_the_layers_stages_and_pipelines_are_there(site):
    shown = json.loads((site / "pipelines" / "hierarchical").read_text())
    layers = ["raw", "primary", "stage_1", "stage_2", "models", "model_output", "reporting"]
    assert shown["layers"] == layers
    assert {each["id"] for each in shown["pipelines"]} == {
        *("__default__", "data", "hierarchical", "joint", "compare", "sweep"),
        *("study", "ood", "dimension"),
    }
    assert set(shown["modular_pipelines"]) == {"__root__", "stage_1", "stage_2"}
    tasks = {node["full_name"] for node in shown["nodes"] if node["type"] == "task"}
    assert {"stage_1.train", "stage_2.train", "finish", "write_report"} <= tasks


def test_the_table_the_pictures_and_the_flows_have_previews(site):
    shown = json.loads((site / "pipelines" / "hierarchical").read_text())
    previews = {}
    for node in shown["nodes"]:
        if node["type"] == "data":
            details = json.loads((site / "nodes" / node["id"]).read_text())
            if details.get("preview"):
                previews.setdefault(details["preview_type"], set()).add(node["name"])
    assert previews == PREVIEWS


def test_without_hooks_the_pipelines_are_those_of_the_configuration(project, monkeypatch):
    monkeypatch.chdir(project.path)
    names = {node.name for node in register_pipelines()["hierarchical"].nodes}
    assert {"density.train", "rotation.rotate", "reconstruction.train", "code_flow.encode"} <= names
    (project.path / "conf" / "local" / "parameters.yml").write_text("method: [\n")
    assert {*register_pipelines()} == {"__default__", "compare", "sweep", "study"}
