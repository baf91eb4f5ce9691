"""images -> baselines; hierarchy + images -> metrics, samples, projections."""

from collections.abc import Sequence

from kedro.pipeline import Node, Pipeline

from submanifold.pipelines.evaluation.nodes import draw_samples, evaluate, fit_baselines


def create_pipeline(histories: Sequence[str]) -> Pipeline:
    """Build the evaluation of a hierarchy that was trained with these histories."""
    outer = {f"history_{i}": name for i, name in enumerate(histories, start=1)}
    return Pipeline(
        [
            Node(
                fit_baselines,
                inputs=["images_train", "images_valid", "images_test", "baselines_folder"],
                outputs="baselines",
                name="fit_baselines",
            ),
            Node(
                draw_samples,
                inputs=["hierarchy", "params:evaluation", "params:seed", "params:device"],
                outputs=["samples", "samples_cool"],
                name="draw_samples",
            ),
            Node(
                evaluate,
                inputs=[
                    "hierarchy",
                    "images_train",
                    "images_test",
                    "samples",
                    "baselines",
                    "params:evaluation",
                    "params:device",
                    *outer,
                ],
                outputs=["metrics", "projections"],
                name="evaluate",
            ),
        ],
        inputs=outer,
    )
