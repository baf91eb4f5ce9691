"""MLflow's store + baselines -> table and plot of a sweep."""

from kedro.pipeline import Node, Pipeline

from submanifold.pipelines.sweep.nodes import collect_sweep, draw_sweep


def create_pipeline() -> Pipeline:
    """Build the plot of the runs that ``kedro sweep`` has made."""
    return Pipeline(
        [
            Node(
                collect_sweep,
                inputs=["params:dataset", "params:method", "params:sweep"],
                outputs="sweep_table",
                name="collect_sweep",
            ),
            Node(
                draw_sweep,
                inputs=["sweep_table", "params:sweep", "baselines"],
                outputs="sweep_figure",
                name="draw_sweep",
            ),
        ]
    )
