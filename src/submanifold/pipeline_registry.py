"""The project's pipelines."""

from kedro.pipeline import Pipeline

from submanifold.pipelines import data, hierarchical, joint


def register_pipelines(n_stages: int = 2) -> dict[str, Pipeline]:
    """Name the pipelines, for a number of stages that a hook takes from the parameters."""
    pipelines = {
        "data": data.create_pipeline(),
        "hierarchical": hierarchical.create_pipeline(n_stages),
        "joint": joint.create_pipeline(n_stages),
    }
    return {**pipelines, "__default__": pipelines["hierarchical"]}
