"""The pipelines in Kedro-Viz: layers, namespaces, previews."""

import json
import shutil

import pytest
from click import ClickException

from submanifold.config.loader import ExperimentConfigLoader
from submanifold.pipeline_registry import register_pipelines

pytestmark = pytest.mark.pipeline

PREVIEWS = {
    "ImagePreview": """x_train x_valid x_test stage_2.u_train stage_2.u_valid samples samples_t07
        projections samples_figure samples_t07_figure rejection_figure curves_figure
        dimensions_figure""",
    "JSONPreview": """manifest schedule baselines metrics hierarchy stage_1.model stage_1.history
        stage_2.model stage_2.history""",
    "TablePreview": "metrics_table split_scores",
}


def test_static_site_has_layers_namespaces_and_previews(project):
    conf = project.path / "conf"  # viz build has no --env
    shutil.copy(conf / "test" / "parameters.yml", conf / "local" / "parameters.yml")
    project.run()
    code, output = project.kedro("viz", "build", "--include-previews")
    assert code == 0, output
    site = project.path / "build" / "api"
    shown = json.loads((site / "pipelines" / "hierarchical").read_text())
    layers = ["raw", "primary", "stage_1", "stage_2", "models", "model_output", "reporting"]
    assert shown["layers"] == layers
    assert {each["id"] for each in shown["pipelines"]} >= {"__default__", "joint", "ood"}
    namespaces = {"__root__", "data", "stage_1", "stage_2", "evaluation", "report"}
    assert set(shown["modular_pipelines"]) == namespaces
    tasks = {node["full_name"] for node in shown["nodes"] if node["type"] == "task"}
    assert {"stage_1.train", "stage_2.train", "calibrate", "report.write_report"} <= tasks
    previews = {}
    for node in shown["nodes"]:
        if node["type"] == "data":
            details = json.loads((site / "nodes" / node["id"]).read_text())
            if details.get("preview"):
                previews.setdefault(details["preview_type"], set()).add(node["name"])
    assert previews == {kind: set(names.split()) for kind, names in PREVIEWS.items()}


def test_pipelines_without_a_session_are_those_of_the_configuration(new_project, monkeypatch):
    project = new_project()
    monkeypatch.chdir(project.path)
    monkeypatch.setattr(ExperimentConfigLoader, "latest", None)
    names = {node.name for node in register_pipelines()["hierarchical"].nodes}
    assert {"density.train", "rotation.rotate", "reconstruction.train", "code_flow.encode"} <= names
    (project.path / "conf" / "local" / "parameters.yml").write_text("method: [\n")
    monkeypatch.setattr(ExperimentConfigLoader, "latest", None)
    with pytest.raises(ClickException, match="expected YAML files"):
        register_pipelines()
