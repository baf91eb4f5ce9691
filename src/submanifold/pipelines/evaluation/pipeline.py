"""Data -> baselines; model and data -> metrics, scores, samples, illustrations."""

from kedro.pipeline import Node, Pipeline

from submanifold.config.schema import Experiment
from submanifold.evaluation.attribution import explain_rows
from submanifold.evaluation.baselines import fit_baselines
from submanifold.pipelines.evaluation import nodes

BY_KIND = {
    "images": [
        Node(
            nodes.illustrate,
            inputs=["hierarchy", "x_train", "x_test", "samples", "pca", "params:device"],
            outputs="illustrations",
            name="illustrate",
        ),
    ],
    "table": [
        Node(
            explain_rows,
            inputs=["hierarchy", "x_train", "x_test", "scored_events", "params:device"],
            outputs="anomalies",
            name="explain",
        ),
    ],
    "synthetic": [
        Node(
            nodes.compare_with_truth,
            inputs=["hierarchy", "x_test", "samples", "params:data", "params:device"],
            outputs="truth",
            name="compare_with_truth",
        )
    ],
}


def create_pipeline(experiment: Experiment) -> Pipeline:
    """Build the evaluation of an experiment's model."""
    return Pipeline(
        [
            Node(
                fit_baselines,
                inputs=["x_train", "x_valid", "x_test"],
                outputs=["baselines", "pca"],
                name="fit_baselines",
            ),
            Node(
                nodes.draw_samples,
                inputs=["hierarchy", "x_test", "params:evaluation", "params:seed", "params:device"],
                outputs={"samples": "samples", "samples_t07": "samples_t07"},
                name="draw_samples",
            ),
            Node(
                nodes.measure_events,
                inputs=[
                    "hierarchy",
                    "x_train",
                    "x_valid",
                    "x_test",
                    "params:evaluation",
                    "params:device",
                ],
                outputs="scored_events",
                name="measure_events",
                tags="distributed",
            ),
            Node(
                nodes.evaluate,
                inputs=[
                    "hierarchy",
                    "scored_events",
                    "x_train",
                    "x_test",
                    "samples",
                    "baselines",
                    "histories",
                    "params:input_noise",
                    "params:evaluation",
                    "params:device",
                ],
                outputs=["metrics", "projections"],
                name="evaluate",
                tags="distributed",
            ),
            *BY_KIND[experiment.data.kind],
        ],
        namespace="evaluation",
        prefix_datasets_with_namespace=False,
    )
