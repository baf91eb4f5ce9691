"""The pipelines in Kedro-Viz: layers, namespaces, previews."""

import json
import shutil

import pytest
from click import ClickException

from submanifold.config.loader import ExperimentConfigLoader
from submanifold.pipeline_registry import register_pipelines

pytestmark = pytest.mark.pipeline


def test_static_site_has_layers_namespaces_and_previews(project):
    conf = project.path / "conf"  # viz build has no --env
    shutil.copy(conf / "test" / "parameters.yml", conf / "local" / "parameters.yml")
    project.run()
    code, output = project.kedro("viz", "build", "--include-previews")
    assert code == 0, output
    site = project.path / "build" / "api"
    shown = json.loads((site / "pipelines" / "hierarchical").read_text())
    layers = ["raw", "primary", "models", "model_output", "reporting"]
    assert shown["layers"] == layers
    assert {pipeline["id"] for pipeline in shown["pipelines"]} >= {
        "__default__",
        "hierarchical",
        "ood",
    }
    namespaces = {"__root__", "data", "stage_1", "stage_2", "evaluation", "report"}
    assert set(shown["modular_pipelines"]) == namespaces
    tasks = {node["full_name"] for node in shown["nodes"] if node["type"] == "task"}
    assert {
        "stage_1.train_stage_1",
        "stage_2.train_stage_2",
        "calibrate",
        "report.write_report",
    } <= tasks
    kinds = {
        "x_train": "ImagePreview",
        "stage_2.u_train": None,
        "hierarchy": "JSONPreview",
        "metrics_table": "TablePreview",
    }
    shown_kinds = {}
    for node in (node for node in shown["nodes"] if node["name"] in kinds):
        details = json.loads((site / "nodes" / node["id"]).read_text())
        shown_kinds[node["name"]] = details.get("preview_type")
    assert shown_kinds == kinds


def test_pipelines_without_a_session_are_those_of_the_configuration(new_project, monkeypatch):
    project = new_project()
    monkeypatch.chdir(project.path)
    monkeypatch.setattr(ExperimentConfigLoader, "latest", None)
    names = {node.name for node in register_pipelines()["hierarchical"].nodes}
    assert {
        "density.train_density",
        "rotation.fit_rotation",
        "code_flow.encode_for_code_flow",
    } <= names
    (project.path / "conf" / "local" / "parameters.yml").write_text("method: [\n")
    monkeypatch.setattr(ExperimentConfigLoader, "latest", None)
    with pytest.raises(ClickException, match="expected YAML files"):
        register_pipelines()
