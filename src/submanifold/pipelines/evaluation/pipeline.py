"""x -> baselines; hierarchy + x -> metrics, samples, projections."""

from collections.abc import Sequence

from kedro.pipeline import Node, Pipeline

from submanifold.pipelines.evaluation.nodes import compare, draw_samples, evaluate, fit_baselines


def create_pipeline(histories: Sequence[str], synthetic: bool = False) -> Pipeline:
    """Build the evaluation of a hierarchy that was trained with these histories.

    Data that are synthetic have a true density to compare with.
    """
    outer = {f"history_{i}": name for i, name in enumerate(histories, start=1)}
    truth = Node(
        compare,
        inputs=["hierarchy", "x_test", "samples", "params:data", "params:device"],
        outputs="truth",
        name="compare",
    )
    return Pipeline(
        [
            *([truth] if synthetic else []),
            Node(
                fit_baselines,
                inputs=["x_train", "x_valid", "x_test", "baselines_folder"],
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
                    "x_train",
                    "x_test",
                    "samples",
                    "baselines",
                    "params:evaluation",
                    "params:stage_1.input_noise",
                    "params:device",
                    *outer,
                ],
                outputs=["metrics", "projections"],
                name="evaluate",
            ),
        ],
        inputs=outer,
    )
