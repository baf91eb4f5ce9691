"""x -> density.train -> rotation.rotate -> ... -> code_flow.encode -> code_flow.train -> finish."""

from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any

from kedro.pipeline import Node, Pipeline

from submanifold.config.schema import Experiment, Source
from submanifold.pipelines import data
from submanifold.pipelines.training.nodes import (
    encode,
    finish,
    measure_budget,
    rotate,
    train,
)

LAUNCHED = {"device": "params:device", "launch": "params:launch"}
SHARED = {"seed": "params:seed", **LAUNCHED}


def create_pipeline(experiment: Experiment) -> Pipeline:
    """Build the pipeline from the source of the data to the trained model."""
    inputs: dict[Source | None, str] = {None: "x"}
    budgeted = experiment.minutes is not None
    phases = _budget(experiment) if budgeted else Pipeline([])
    before: str | None = None
    for name, source in experiment.sources.items():
        if source is not None and source not in inputs:
            phases += _encoding(name, source)
            inputs[source] = f"{name}.u"
        trains = name in experiment.trainings
        phases += _training(name, inputs[source], before, trains, budgeted)
        before = name
    finished = {"model": f"{before}.model", "data": "params:data", "train": "x_train"}
    finished |= {"valid": "x_valid", "folder": f"{before}.folder", **LAUNCHED}
    if experiment.kind != "points":
        finished["groups"] = "groups"
    finishing = Pipeline([Node(finish, finished, "hierarchy", name="finish")])
    return data.create_pipeline(experiment.kind) + phases + finishing


def _budget(experiment: Experiment) -> Pipeline:
    """Build the measurement of the steps that fit a time budget."""
    shared = {name: f"params:{name}" for name in ("minutes", "model", "data")} | LAUNCHED
    phases = {name: f"params:{name}" for name in experiment.phases}
    inputs = shared | {"folder": "budget_folder"} | phases
    return Pipeline([Node(measure_budget, inputs, "budget", name="measure_budget")])


def _training(name: str, source: str, before: str | None, trains: bool, budgeted: bool) -> Pipeline:
    """Build a phase: a training on the data or on coordinates u, or a rotation of latents."""
    inputs, parameters = {"train": f"{source}_train"}, {"phase": f"params:{name}", **SHARED}
    if trains:
        inputs["valid"], parameters["model"] = f"{source}_valid", "params:model"
    if before is not None:
        inputs["before"] = f"{before}.model"
    if budgeted:
        inputs["budget"] = "budget"
    function = train if trains else rotate
    named = update_wrapper(partial(function, name=name), function)
    return _phase(name, named, inputs, parameters, ["folder"], ["model", "history"])


def _encoding(name: str, source: Source) -> Pipeline:
    """Build the encoding of a phase's input by the stages before it."""
    inputs = {"model": f"{source.phase}.model", "train": "x_train", "valid": "x_valid"}
    parameters = {"phase": f"params:{name}", **SHARED}
    return _phase(
        name, encode, inputs, parameters, ["u_train_path", "u_valid_path"], ["u_train", "u_valid"]
    )


def _phase(
    name: str,
    function: Callable[..., Any],
    inputs: dict[str, str],
    parameters: dict[str, str],
    paths: list[str],
    outputs: list[str],
) -> Pipeline:
    """Put a node into the namespace of its phase; its paths and outputs have the same names."""
    arguments = {each: each for each in (*inputs, *paths)} | parameters
    names = {each: each for each in outputs}
    node = Node(function, arguments, names, name=function.__name__)
    return Pipeline([node], namespace=name, inputs=inputs, parameters=set(parameters.values()))
