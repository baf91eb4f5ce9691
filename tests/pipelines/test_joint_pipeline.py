"""Joint methods, and the pipelines that are registered for an experiment."""

import inspect
import re

import pytest

from submanifold.config.loader import LOADER_ARGS, ExperimentConfigLoader
from submanifold.pipeline_registry import register_pipelines

pytestmark = pytest.mark.pipeline


def registered(project, **params):
    """The pipelines of an experiment."""
    conf = str(project.path / "conf")
    ExperimentConfigLoader(conf, env="test", runtime_params=params, **LOADER_ARGS)
    return register_pipelines()


def test_pipelines_have_a_namespace_for_each_phase_and_catalog_entries(project):
    params = {"method": "H-MM", "stage_3": {"dim": 6}}
    pipelines, catalog = registered(project, **params), project.catalog(**params)
    assert set(pipelines) == {"__default__", "data", "hierarchical", "ood"}
    assert [n.name for n in pipelines["__default__"].nodes if n.name.startswith("stage_")] == [
        *(
            "stage_1.train_stage_1",
            "stage_2.encode_for_stage_2",
            "stage_2.train_stage_2",
            "stage_3.encode_for_stage_3",
            "stage_3.train_stage_3",
        )
    ]
    for name, pipeline in pipelines.items():
        for dataset in pipeline.datasets():
            assert dataset.startswith("param") or dataset in catalog, f"{dataset} of {name}"


@pytest.mark.parametrize(
    "params",
    [
        {"method": "density-first", "ood": "mnist", "training": {"minutes": 1}},
        {"dataset": "mnist", "data": {"condition": "label"}, "method": "H-MM"},
        {"dataset": "wine", "ood": __file__},
        {"dataset": "circle"},
    ],
)
def test_arguments_receive_the_split_that_they_are_named_after(project, params):
    """And outputs are written to the dataset of their split."""
    split, checked = re.compile(r"(?:.*[._])?(train|valid|test)"), set()
    nodes = [node for pipeline in registered(project, **params).values() for node in pipeline.nodes]
    for node in nodes:
        for datasets in (node._inputs, node._outputs):
            named = datasets if isinstance(datasets, dict) else {str(datasets): str(datasets)}
            for argument, dataset in named.items():
                first, second = (split.fullmatch(name) for name in (argument, dataset))
                if first or second:
                    message = f"{argument} of {node.name} is {dataset}"
                    assert (first and first[1]) == (second and second[1]), message
                    checked.add(argument)
    assert checked >= {"train", "valid", "test"}


def test_joint_method_of_two_stages_trains_them_together(project):
    run = project.run(until="metrics", method="EE-M")
    assert run.steps == {"joint": 12}
    assert [stage.dim for stage in run.load("hierarchy").stages] == [24, 12]
    metrics = run.load("metrics")
    assert metrics["stage_1_mse"]["value"] != metrics["mse"]["value"]
    hierarchical = project.catalog(method="H-MM", stage_1={"dim": 24}, stage_2={"dim": 12})
    paths = run.path("hierarchy"), hierarchical["hierarchy"]._filepath
    joint_key, key = (path.parent.name[-10:] for path in paths)
    assert joint_key != key, "keys of equal settings differ by the phases"


@pytest.mark.parametrize("name", ["hierarchical", "ood"])
def test_nodes_get_the_data_of_the_split_that_their_argument_names(project, name):
    splits = set()
    for node in registered(project, method="H-MM")[name].nodes:
        for argument, dataset in zip(
            inspect.signature(node.func).parameters, node.inputs, strict=False
        ):
            if argument in ("train", "valid", "test"):
                assert re.search(rf"(^|[_.]){argument}$", dataset.split("@")[0]), node.name
                splits.add(argument)
    assert splits == {"train", "valid", "test"}
