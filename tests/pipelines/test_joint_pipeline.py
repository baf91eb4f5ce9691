import pytest
from click import ClickException

from submanifold.config.loader import LOADER_ARGS, ExperimentConfigLoader, current_experiment
from submanifold.pipeline_registry import register_pipelines


def registered_for(project, **params):
    """The pipelines of an experiment."""
    conf = str(project.path / "conf")
    loader = ExperimentConfigLoader(conf, env="test", runtime_params=params, **LOADER_ARGS)
    token = current_experiment.set(loader.experiment)
    try:
        return register_pipelines()
    finally:
        current_experiment.reset(token)


def test_the_pipelines_have_names_and_a_namespace_for_each_phase(project):
    registered = registered_for(project, method="H-MM", stage_3={"dim": 6})
    names = {"__default__", "data", "hierarchical", "joint", "compare", "sweep"}
    assert set(registered) == names | {"study", "ood", "dimension"}
    assert registered["__default__"] is registered["hierarchical"]
    namespaces = {node.namespace for node in registered["hierarchical"].nodes}
    assert namespaces == {None, "stage_1", "stage_2", "stage_3"}
    names = [node.name for node in registered["hierarchical"].nodes]
    assert [n for n in names if n.startswith("stage_")] == [
        *("stage_1.train", "stage_2.encode", "stage_2.train", "stage_3.encode", "stage_3.train"),
    ]
    joint = registered_for(project, method="EE-M")["joint"]
    trainings = [node for node in joint.nodes if "train" in node.name]
    assert [node.name for node in trainings] == ["joint.train"]


def test_every_dataset_between_nodes_is_in_the_catalog(project):
    catalog = project.catalog(stage_3={"dim": 6})
    for name, pipeline in registered_for(project, stage_3={"dim": 6}).items():
        for dataset in pipeline.datasets():
            if not dataset.startswith("param"):
                assert dataset in catalog, f"{dataset} of {name}"


def test_a_joint_method_of_one_stage_trains_once_and_reports(project):
    run = project.run("joint", method="PR-D")
    assert run.steps == {"stage_1": 12}
    assert run.mlflow.info.run_name == "photos-PR-D"
    metrics = run.load("metrics")
    assert metrics["dims"] == [192, 24]
    assert metrics["stage_1_mse"] == metrics["mse"]
    assert "PR-D, 192 → 24" in run.load("report")
    assert run.mlflow.data.metrics["test.bits_per_dim"] == metrics["bits_per_dim"]["value"]
    assert run.mlflow.data.metrics["stage_1.best_step"] == run.load("stage_1.history")["best_step"]
    assert project.run("joint", until="hierarchy", method="PR-D").steps == {"stage_1": 0}
    assert project.run("joint", until="hierarchy", method="PR-D", seed=1).steps == {"stage_1": 12}


def test_a_joint_method_of_two_stages_trains_them_together(project):
    run = project.run("joint", until="metrics", method="EE-M")
    assert run.steps == {"joint": 12}
    hierarchy = run.load("hierarchy")
    assert [stage.dim for stage in hierarchy.stages] == [24, 12]
    metrics = run.load("metrics")
    assert metrics["stage_1_mse"]["value"] != metrics["mse"]["value"]


def test_joint_and_hierarchical_models_of_the_same_settings_are_kept_apart(project):
    dims = {"stage_1": {"dim": 24}, "stage_2": {"dim": 12}}
    paths = [
        project.catalog(method=method, **dims)["hierarchy"]._filepath.parent.name[-10:]
        for method in ("H-MM", "EE-M")
    ]
    assert paths[0] != paths[1]


@pytest.mark.parametrize(
    ("pipeline", "method", "right"),
    [
        ("hierarchical", "PR-D", "joint"),
        (None, "PR-D", "joint"),
        ("__default__", "PR-D", "joint"),
        ("joint", "H-MM", "hierarchical"),
    ],
)
def test_a_method_of_the_other_schedule_ends_in_a_message(project, pipeline, method, right):
    with pytest.raises(
        ClickException, match=f"does not train method={method}. Use --pipeline={right}"
    ):
        project.run(pipeline, method=method)


def test_the_data_pipeline_serves_every_method(project):
    assert project.run("data", method="PR-D").load("manifest")["counts"]["train"] == 256
