"""metrics, histories, samples, projections -> table, pictures, report."""

from collections.abc import Sequence

from kedro.pipeline import Node, Pipeline

from submanifold.pipelines.reporting.nodes import make_table, write_report

FIGURES = ["samples_figure", "samples_cool_figure", "rejection_figure", "curves_figure"]


def create_pipeline(histories: Sequence[str]) -> Pipeline:
    """Build the report of a hierarchy that was trained with these histories."""
    outer = {f"history_{i}": name for i, name in enumerate(histories, start=1)}
    return Pipeline(
        [
            Node(
                make_table,
                inputs=["metrics", "hierarchy", "params:dataset", "params:method"],
                outputs="metrics_table",
                name="make_table",
            ),
            Node(
                write_report,
                inputs=[
                    "metrics",
                    "metrics_table",
                    "manifest",
                    "hierarchy",
                    "samples",
                    "samples_cool",
                    "images_test",
                    "projections",
                    "params:dataset",
                    "params:method",
                    *outer,
                ],
                outputs=["report", *FIGURES],
                name="write_report",
            ),
        ],
        inputs=outer,
    )
