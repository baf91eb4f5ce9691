"""The project's pipelines."""

from kedro.pipeline import Pipeline

from submanifold.pipelines import compare, data, hierarchical, joint, sweep


def register_pipelines(n_stages: int = 2, synthetic: bool = False) -> dict[str, Pipeline]:
    """Name the pipelines, for the stages and the kind of data that a hook finds in parameters."""
    pipelines = {
        "data": data.create_pipeline(),
        "hierarchical": hierarchical.create_pipeline(n_stages, synthetic),
        "joint": joint.create_pipeline(n_stages, synthetic),
        "compare": compare.create_pipeline(),
        "sweep": sweep.create_pipeline(),
    }
    return {**pipelines, "__default__": pipelines["hierarchical"]}
