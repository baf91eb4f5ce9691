"""The project's pipelines, for the dataset and the method that the parameters select."""

from kedro.pipeline import Pipeline

from submanifold.config.loader import session_experiment
from submanifold.pipelines.data import pipeline as data
from submanifold.pipelines.evaluation import pipeline as evaluation
from submanifold.pipelines.ood import pipeline as ood
from submanifold.pipelines.reporting import pipeline as reporting
from submanifold.pipelines.training import pipeline as training


def register_pipelines() -> dict[str, Pipeline]:
    """Build the pipelines: all phases of a method are one pipeline, ``hierarchical``."""
    experiment = session_experiment()
    trained = data.create_pipeline() + training.create_pipeline(experiment)
    full = trained + evaluation.create_pipeline(experiment) + reporting.create_pipeline(experiment)
    return {
        "data": data.create_pipeline(),
        "hierarchical": full,
        "ood": trained + ood.create_pipeline(experiment),
        "__default__": full,
    }
