"""x -> density.train -> rotation.rotate -> ... -> code_flow.encode -> code_flow.train -> model."""

from functools import partial, update_wrapper

from kedro.pipeline import Node, Pipeline

from submanifold.config.schema import Experiment, Source
from submanifold.pipelines.training import nodes

RUN = {"seed": "params:seed", "device": "params:device"}


def create_pipeline(experiment: Experiment) -> Pipeline:
    """Build the phases of an experiment, each in its namespace, and the finished model."""
    settings = ("minutes", "model", "data", "device", "evaluation", *experiment.phases)
    scheduled = {name: f"params:{name}" for name in settings} | {"manifest": "manifest"}
    # Kedro runs nodes in alphabetical order: this one is before the baselines are fitted
    pipeline = Pipeline([Node(nodes.estimate_steps, scheduled, "schedule", name="estimate_steps")])
    arrays: dict[Source | None, str] = {None: "x"}
    before = ""
    for name, source in experiment.sources.items():
        if source is not None and source not in arrays:
            arrays[source] = f"{name}.u"
            pipeline += encoding(name, source)
        pipeline += phase(name, arrays[source], before, trains=name in experiment.trainings)
        before = f"{name}.model"
    inputs = {"model": before, "data": "params:data", "train": "x_train", "valid": "x_valid",
              "groups": "groups", "device": "params:device"}  # fmt: skip
    node = Node(nodes.calibrate_model, inputs, "hierarchy", name="calibrate", tags="distributed")
    return pipeline + Pipeline([node])


def phase(name: str, arrays: str, before: str, trains: bool) -> Pipeline:
    """Build a phase that trains stages on arrays ``<arrays>_train``, or rotates the latents."""
    inputs = RUN | {"phase": f"params:{name}", "train": f"{arrays}_train", "schedule": "schedule",
                    "checkpoints": f"{name}.checkpoints"}  # fmt: skip
    inputs |= {"before": before} if before else {}
    inputs |= {"valid": f"{arrays}_valid", "model": "params:model"} if trains else {}
    outputs = {"model": f"{name}.model", "history": f"{name}.history"}
    function = nodes.train if trains else nodes.rotate
    named = update_wrapper(partial(function, name=name), function)
    node = Node(named, inputs, outputs, name=function.__name__, tags="distributed")
    return Pipeline([node], namespace=name, prefix_datasets_with_namespace=False)


def encoding(name: str, source: Source) -> Pipeline:
    """Build the encoding of a phase's input by the stages before it."""
    inputs = RUN | {"model": f"{source.phase}.model", "train": "x_train", "valid": "x_valid"}
    outputs = {"u_train": f"{name}.u_train", "u_valid": f"{name}.u_valid"}
    function = update_wrapper(partial(nodes.encode, stages=source.through), nodes.encode)
    node = Node(function, inputs, outputs, name="encode", tags="distributed")
    return Pipeline([node], namespace=name, prefix_datasets_with_namespace=False)
