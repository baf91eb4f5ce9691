"""Data -> a phase after the other, each in its namespace -> calibrated model."""

from kedro.pipeline import Node, Pipeline

from submanifold.config.schema import Experiment, Source
from submanifold.pipelines.training import nodes


def train(name: str) -> Node:
    """Train the stages of a phase."""
    return Node(
        nodes.train,
        inputs=[
            "train",
            "valid",
            "before",
            "schedule",
            "params:folder",
            "params:name",
            "params:settings",
            "params:model",
            "params:data",
            "params:seed",
            "params:device",
        ],
        outputs=["model", "history"],
        name=f"train_{name}",
        tags="distributed",
    )


def rotate(name: str) -> Node:
    """Rotate the latents of a stage."""
    return Node(
        nodes.rotate,
        inputs=[
            "train",
            "before",
            "schedule",
            "params:folder",
            "params:name",
            "params:settings",
            "params:seed",
            "params:device",
        ],
        outputs=["model", "history"],
        name=f"fit_{name}",
        tags="distributed",
    )


def encode(name: str) -> Node:
    """Encode the data of a phase by the stages before it."""
    return Node(
        nodes.encode,
        inputs=[
            "encoder",
            "x_train",
            "x_valid",
            "params:encoding_stages",
            "params:seed",
            "params:device",
        ],
        outputs=["u_train", "u_valid"],
        name=f"encode_for_{name}",
        tags="distributed",
    )


def calibrate(model: str, is_cross: bool) -> Node:
    """Calibrate the finished model by validation data, or by models of folds of all rows."""
    folds = ["params:phases", "params:model"], ["params:model_file", "params:seed"]
    before, after = folds if is_cross else ([], [])
    return Node(
        nodes.cross_calibrate_model if is_cross else nodes.calibrate_model,
        inputs=[model, *before, "params:data", "x_train", "x_valid", *after, "params:device"],
        outputs="hierarchy",
        name="calibrate",
        tags="distributed",
    )


def create_pipeline(experiment: Experiment) -> Pipeline:
    """Build the phases of an experiment, each in its namespace, and the finished model."""
    pipeline = Pipeline(
        [
            Node(
                nodes.plan_steps,
                inputs=[
                    "params:minutes",
                    "params:phases",
                    "params:model",
                    "params:data",
                    "params:device",
                ],
                outputs="schedule",
                name="plan_steps",
            ),
            Node(
                nodes.collect_histories,
                inputs=[f"{name}.history" for name in experiment.phases],
                outputs="histories",
                name="collect_histories",
            ),
            calibrate(f"{[*experiment.phases][-1]}.model", experiment.calibration == "cross"),
        ]
    )
    arrays: dict[Source | None, str] = {None: "x"}
    before = "params:untrained"
    for name, source in experiment.sources.items():
        if source is not None and source not in arrays:
            arrays[source] = f"{name}.u"
            encoder = {"encoder": f"{source.phase}.model"}
            data = {"x_train": "x_train", "x_valid": "x_valid"}
            pipeline += phase(name, encode(name), encoder | data)
        inputs = {"train": f"{arrays[source]}_train", "before": before, "schedule": "schedule"}
        if name in experiment.trainings:
            pipeline += phase(name, train(name), inputs | {"valid": f"{arrays[source]}_valid"})
        else:
            pipeline += phase(name, rotate(name), inputs)
        before = f"{name}.model"
    return pipeline


def phase(name: str, node: Node, inputs: dict[str, str]) -> Pipeline:
    """Put a node of a phase in its namespace."""
    shared = {f"params:{parameter}" for parameter in ("model", "data", "seed", "device")}
    of_all = {parameter: parameter for parameter in shared if parameter in node.inputs}
    return Pipeline([node], namespace=name, inputs=inputs, parameters=of_all)
