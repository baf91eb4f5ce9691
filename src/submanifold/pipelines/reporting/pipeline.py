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
SHARED = {
    **{name: name for name in ("metrics", "hierarchy", "manifest", "histories", "samples")},
    **{name: f"params:{name}" for name in ("model_file", "method", "seed", "device")},
    "table": "metrics_table",
    "dataset": "params:data_name",
    "test": "x_test",
}
BY_KIND = {
    "images": [
        TABLE,
        Node(
            nodes.report_images,
            inputs=SHARED
            | {
                name: name
                for name in ("samples_t07", "projections", "illustrations", "scored_events")
            },
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
            inputs=SHARED | {"scored_events": "scored_events", "anomalies": "anomalies"},
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
            inputs=SHARED | {"truth": "truth", "data": "params:data"},
            outputs={"report": "report", "curves": "curves_figure", "manifold": "manifold_figure"},
            name="write_report",
        ),
    ],
}


def create_pipeline(experiment: Experiment) -> Pipeline:
    """Build the report of an experiment."""
    nodes_of_kind = BY_KIND[experiment.data.kind]
    return Pipeline(nodes_of_kind, namespace="report", prefix_datasets_with_namespace=False)
