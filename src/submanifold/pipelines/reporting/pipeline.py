"""Metrics, histories, samples and projections -> table, figures and report."""

from kedro.pipeline import Node, Pipeline

from submanifold.config.schema import Experiment
from submanifold.pipelines.reporting import nodes

TABLE = Node(
    nodes.make_table,
    inputs=["metrics", "hierarchy", "params:method"],
    outputs="metrics_table",
    name="make_table",
)
BY_KIND = {
    "images": [
        TABLE,
        Node(
            nodes.report_images,
            inputs=["metrics", "metrics_table", "hierarchy", "params:model_file", "manifest",
                    "histories", "params:data_name", "params:method", "params:seed",
                    "params:device", "x_test",
                    "samples", "samples_t07", "projections", "illustrations", "split_scores"],
            outputs={
                "report": "report",
                "curves": "curves_figure",
                "samples": "samples_figure",
                "samples_t07": "samples_t07_figure",
                "rejection": "rejection_figure",
                "dimensions": "dimensions_figure",
            },
            name="write_report",
        ),
    ],
    "table": [
        TABLE,
        Node(
            nodes.report_table,
            inputs=["metrics", "metrics_table", "hierarchy", "params:model_file", "manifest",
                    "histories", "params:data_name", "params:method", "params:seed",
                    "params:device", "x_test",
                    "samples", "split_scores", "anomalies"],
            outputs={
                "report": "report",
                "curves": "curves_figure",
                "marginals": "marginals_figure",
                "pairs": "pairs_figure",
                "dimensions": "dimensions_figure",
            },
            name="write_report",
        ),
    ],
    "synthetic": [
        Node(
            nodes.make_table,
            inputs=["metrics", "hierarchy", "params:method", "truth"],
            outputs="metrics_table",
            name="make_table",
        ),
        Node(
            nodes.report_synthetic,
            inputs=["metrics", "metrics_table", "hierarchy", "params:model_file", "manifest",
                    "histories", "params:data_name", "params:method", "params:seed",
                    "params:device", "x_test",
                    "samples", "truth", "params:data"],
            outputs={"report": "report", "curves": "curves_figure", "manifold": "manifold_figure"},
            name="write_report",
        ),
    ],
}  # fmt: skip


def create_pipeline(experiment: Experiment) -> Pipeline:
    """Build the report of an experiment."""
    nodes_of_kind = BY_KIND[experiment.data.kind]
    return Pipeline(nodes_of_kind, namespace="report", prefix_datasets_with_namespace=False)
