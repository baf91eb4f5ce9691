"""x -> train -> evaluate -> report, with one training for all stages."""

from kedro.pipeline import Node, Pipeline

from submanifold.pipelines import data, evaluation, reporting
from submanifold.pipelines.joint.nodes import train_jointly


def create_pipeline(n_stages: int = 1, synthetic: bool = False) -> Pipeline:
    """Build the pipeline of a joint method with any number of stages."""
    train = Node(
        train_jointly,
        inputs=[
            "x_train",
            "x_valid",
            "params:seed",
            "params:device",
            "joint_folder",
            *(f"params:stage_{n}" for n in range(1, n_stages + 1)),
        ],
        outputs=["hierarchy", "joint_history"],
        name="train_jointly",
    )
    return (
        data.create_pipeline()
        + Pipeline([train])
        + evaluation.create_pipeline(["joint_history"], synthetic)
        + reporting.create_pipeline(["joint_history"], synthetic)
    )
