"""metrics, histories, samples, projections -> table, pictures, report."""

from collections.abc import Sequence

from kedro.pipeline import Node, Pipeline

from submanifold.pipelines.reporting.nodes import (
    make_table,
    make_truth_table,
    write_report,
    write_truth_report,
)

NAMES = ["params:dataset", "params:method"]
CONTENT = ["metrics_table", "manifest", "hierarchy"]


def create_pipeline(histories: Sequence[str], synthetic: bool = False) -> Pipeline:
    """Build the report of a hierarchy that was trained with these histories.

    It is about images, or about a learned manifold and density beside true ones.
    """
    outer = {f"history_{i}": name for i, name in enumerate(histories, start=1)}
    nodes = _about_truth(list(outer)) if synthetic else _about_images(list(outer))
    return Pipeline(nodes, inputs=outer)


def _about_images(histories: list[str]) -> list[Node]:
    figures = ["curves_figure", "samples_figure", "samples_cool_figure", "rejection_figure"]
    shown = ["samples", "samples_cool", "x_test", "projections"]
    return [
        Node(
            make_table,
            inputs=["metrics", "hierarchy", *NAMES],
            outputs="metrics_table",
            name="make_table",
        ),
        Node(
            write_report,
            inputs=["metrics", *CONTENT, *shown, *NAMES, *histories],
            outputs=["report", *figures],
            name="write_report",
        ),
    ]


def _about_truth(histories: list[str]) -> list[Node]:
    return [
        Node(
            make_truth_table,
            inputs=["metrics", "truth", "params:method"],
            outputs="metrics_table",
            name="make_table",
        ),
        Node(
            write_truth_report,
            inputs=[
                "metrics",
                "truth",
                *CONTENT,
                "samples",
                "x_test",
                "params:data",
                *NAMES,
                *histories,
            ],
            outputs=["report", "curves_figure", "manifold_figure"],
            name="write_report",
        ),
    ]
