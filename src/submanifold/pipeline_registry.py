"""The project's pipelines."""

from collections.abc import Collection, Sequence

from kedro.pipeline import Pipeline

from submanifold.pipelines import compare, data, dimension, outliers, sweep, training


def register_pipelines(
    trained: Sequence[tuple[int, ...]] = ((1,), (2,)),
    synthetic: bool = False,
    rotations: Collection[int] = (),
    with_outliers: bool = False,
) -> dict[str, Pipeline]:
    """Name the pipelines, for the phases and the kind of data that a hook finds in parameters."""
    phases = training.create_pipeline(trained, synthetic, rotations)
    images = {} if synthetic else {
        "outliers": training.create_training(trained, synthetic, rotations)
        + (outliers.create_pipeline() if with_outliers else Pipeline([])),
        "dimension": phases + dimension.create_pipeline(),
    }  # fmt: skip
    return {
        "data": data.create_pipeline(synthetic),
        "hierarchical": phases,
        "joint": phases,
        "compare": compare.create_pipeline(),
        "sweep": sweep.create_pipeline(),
        **images,
        "__default__": phases,
    }
