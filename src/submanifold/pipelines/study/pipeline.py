"""Optuna's database -> table, plot and page of a study."""

from kedro.pipeline import Node, Pipeline

from submanifold.pipelines.study.nodes import collect_study, draw_study, write_study


def create_pipeline() -> Pipeline:
    """Build the pipeline that shows the trials of ``kedro sweep --study``."""
    study = {"study": "params:study", "path": "study_trials"}
    drawn = {"table": "study_table", "figure": "study_figure"}
    return Pipeline([
        Node(collect_study, study, "study_table", name="collect_study"),
        Node(draw_study, "study_table", "study_figure", name="draw_study"),
        Node(write_study, study | drawn, "study_page", name="write_study"),
    ])  # fmt: skip
