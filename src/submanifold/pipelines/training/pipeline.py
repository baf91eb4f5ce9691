"""x -> density.train -> rotation.rotate -> ... -> code_flow.encode -> code_flow.train -> finish."""

from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any

from kedro.pipeline import Node, Pipeline

from submanifold.config.schema import Experiment, Source
from submanifold.pipelines import data
from submanifold.pipelines.training.nodes import (
    encode,
    finish_images,
    finish_points,
    rotate,
    train,
)

LAUNCHED = {"device": "params:device", "launch": "params:launch"}
SHARED = {"seed": "params:seed", **LAUNCHED}


def create_pipeline(experiment: Experiment) -> Pipeline:
    """Build the pipeline from the source of the data to the trained model."""
    inputs: dict[Source | None, str] = {None: "x"}
    phases = Pipeline([])
    before: str | None = None
    for name, source in experiment.sources.items():
        if source is not None and source not in inputs:
            phases += _encoding(name, source)
            inputs[source] = f"{name}.u"
        phases += _training(name, inputs[source], before, name in experiment.trainings)
        before = name
    model = {"model": f"{before}.model", "data": "params:data"}
    images = {"valid": "x_valid", "folder": f"{before}.folder", "groups": "groups", **LAUNCHED}
    finish = Node(
        finish_points if experiment.synthetic else finish_images,
        inputs=model if experiment.synthetic else {**model, **images},
        outputs="hierarchy",
        name="finish",
    )
    return data.create_pipeline(experiment.synthetic) + phases + Pipeline([finish])


def _training(name: str, source: str, before: str | None, trains: bool) -> Pipeline:
    """Build a phase: a training on the data or on coordinates u, or a rotation of latents."""
    inputs = {"train": f"{source}_train"}
    parameters = {"phase": f"params:{name}", **SHARED}
    if trains:
        inputs["valid"], parameters["model"] = f"{source}_valid", "params:model"
    if before is not None:
        inputs["before"] = f"{before}.model"
    node = Node(
        _named(train if trains else rotate, name),
        inputs={**{each: each for each in (*inputs, "folder")}, **parameters},
        outputs={"model": "model", "history": "history"},
        name="train" if trains else "rotate",
    )
    return _phase(name, node, inputs, parameters)


def _encoding(name: str, source: Source) -> Pipeline:
    """Build the encoding of a phase's input by the stages before it."""
    inputs = {"model": f"{source.phase}.model", "train": "x_train", "valid": "x_valid"}
    paths = {"train_path": "u_train_path", "valid_path": "u_valid_path"}
    parameters = {"phase": f"params:{name}", **SHARED}
    node = Node(
        encode,
        inputs={**{each: each for each in inputs}, **paths, **parameters},
        outputs={"u_train": "u_train", "u_valid": "u_valid"},
        name="encode",
    )
    return _phase(name, node, inputs, parameters)


def _phase(name: str, node: Node, inputs: dict[str, str], parameters: dict[str, str]) -> Pipeline:
    """Put a node into the namespace of its phase."""
    return Pipeline([node], namespace=name, inputs=inputs, parameters=set(parameters.values()))


def _named(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    return update_wrapper(partial(function, name=name), function)
