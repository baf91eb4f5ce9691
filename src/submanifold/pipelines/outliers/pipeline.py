"""hierarchy, x_valid, x_test, outliers -> scores of each image, how well they tell, the page."""

from kedro.pipeline import Node, Pipeline

from submanifold.pipelines.outliers.nodes import (
    gather_outliers,
    measure,
    score_outliers,
    write_page,
)


def create_pipeline() -> Pipeline:
    """Build what comes after a model is trained."""
    gathered = {"data": "params:outlier_data", "folder": "outliers_folder",
                "raw_folder": "raw_folder"}  # fmt: skip
    arrays = {"train": "x_train", "valid": "x_valid", "test": "x_test", "outliers": "x_outliers"}
    scored = {"model": "hierarchy", **arrays, "device": "params:device"}
    scored |= {name: name for name in ("groups", "outlier_groups")}
    found = {"images": "x_outliers", "groups": "outlier_groups"}
    about = {"dataset": "params:dataset", "outlier_name": "params:outliers",
             "method": "params:method"}  # fmt: skip
    shown = {"scored": "outlier_scores", "measured": "outlier_metrics", "test": "x_test",
             "outliers": "x_outliers", **about}  # fmt: skip
    figures = {name: f"outlier_{name}_figure" for name in ("roc", "histograms", "scatter")}
    return Pipeline(
        [
            Node(gather_outliers, gathered, found, name="gather_outliers"),
            Node(score_outliers, scored, "outlier_scores", name="score_outliers"),
            Node(measure, "outlier_scores", "outlier_metrics", name="measure_outliers"),
            Node(write_page, shown, {"page": "outlier_report", **figures}, name="report_outliers"),
        ]
    )
