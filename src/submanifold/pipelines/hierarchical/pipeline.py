"""x -> stage_1.train -> stage_1.project -> stage_2.train -> ... -> assemble -> report."""

from kedro.pipeline import Node, Pipeline

from submanifold.pipelines import data, evaluation, reporting
from submanifold.pipelines.hierarchical.nodes import assemble, project_stage, train_stage


def create_pipeline(n_stages: int = 2, synthetic: bool = False) -> Pipeline:
    """Build Algorithm 2 for any number of stages, from the source to the report."""
    numbers = range(1, n_stages + 1)
    together = Pipeline(
        [Node(assemble, [f"flow_{n}" for n in numbers], "hierarchy", name="assemble")],
        inputs={f"flow_{n}": f"stage_{n}.flow" for n in numbers},
    )
    histories = [f"stage_{n}.history" for n in numbers]
    return (
        data.create_pipeline()
        + sum((stage(n, last=n == n_stages) for n in numbers), together)
        + evaluation.create_pipeline(histories, synthetic)
        + reporting.create_pipeline(histories, synthetic)
    )


def stage(n: int, last: bool) -> Pipeline:
    """Build stage n: training, and, for the stage that follows, the projection of its input."""
    before = f"stage_{n - 1}.u" if n > 1 else "x"
    outer = {f"flow_{m}": f"stage_{m}.flow" for m in range(1, n)}
    train = Node(
        train_stage,
        inputs=["train", "valid", "params:seed", "params:device", "folder", "params:stage", *outer],
        outputs=["flow", "history"],
        name="train",
    )
    project = Node(
        project_stage,
        inputs=["flow", "train", "valid", "params:seed", "params:device", "u_folder"],
        outputs=["u_train", "u_valid"],
        name="project",
    )
    return Pipeline(
        [train] if last else [train, project],
        namespace=f"stage_{n}",
        inputs={"train": f"{before}_train", "valid": f"{before}_valid", **outer},
        parameters={
            "params:stage": f"params:stage_{n}",
            "params:seed": "params:seed",
            "params:device": "params:device",
        },
    )
