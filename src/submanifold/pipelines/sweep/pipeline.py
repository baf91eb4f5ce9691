"""MLflow runs and baselines -> table, plot and page of a sweep."""

from kedro.pipeline import Node, Pipeline

from submanifold.pipelines.sweep.nodes import collect_sweep, draw_sweep, write_sweep


def create_pipeline() -> Pipeline:
    """Build the pipeline that shows the runs of ``kedro sweep``."""
    parameter = {"parameter": "params:sweep"}
    key = {"data_key": "params:comparison_key"}
    swept = {"dataset": "params:dataset", "method": "params:method"}
    drawn = {"table": "sweep_table", "baselines": "baselines"}
    shown = {"table": "sweep_table", "figure": "sweep_figure", "reporting": "reporting_folder"}
    return Pipeline([
        Node(collect_sweep, parameter | key | swept, "sweep_table", name="collect_sweep"),
        Node(draw_sweep, parameter | drawn, "sweep_figure", name="draw_sweep"),
        Node(write_sweep, parameter | swept | shown, "sweep_page", name="write_sweep"),
    ])  # fmt: skip
