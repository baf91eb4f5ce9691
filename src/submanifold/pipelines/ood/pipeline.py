"""Pipeline: model and images -> anomaly scores of each image, their accuracy, page."""

from kedro.pipeline import Node, Pipeline

from submanifold.config.schema import Kind
from submanifold.pipelines.ood.nodes import (
    gather_ood,
    gather_rows,
    measure,
    score_ood,
    write_page,
)


def create_pipeline(kind: Kind = "images") -> Pipeline:
    """Build the pipeline that follows the training of a model of images or of a table."""
    gather = gather_rows if kind == "table" else gather_ood
    gathered = {"data": "params:ood_data"}
    if kind == "table":
        gathered["model"] = "hierarchy"
    else:
        gathered |= {"folder": "ood_folder", "raw_folder": "raw_folder"}
    scored = {"model": "hierarchy", "train": "x_train", "valid": "x_valid", "test": "x_test",
              "ood": "x_ood", "groups": "groups", "ood_groups": "ood_groups",
              "device": "params:device"}  # fmt: skip
    measured = {"scored": "ood_scores", "model": "hierarchy"}
    shown = {"scored": "ood_scores", "measured": "ood_metrics", "test": "x_test", "ood": "x_ood",
             "dataset": "params:data_name", "ood_name": "params:ood", "method": "params:method",
             "model": "hierarchy", "run": "run_information"}  # fmt: skip
    if kind == "table":
        shown["numbers"] = "rows"
    figures = {name: f"ood_{name}_figure" for name in ("scores", "roc", "histograms", "scatter")}
    found = {"images": "x_ood", "groups": "ood_groups"}
    return Pipeline([
        Node(gather, gathered, found, name="gather_ood"),
        Node(score_ood, scored, "ood_scores", name="score_ood"),
        Node(measure, measured, "ood_metrics", name="measure_ood"),
        Node(write_page, shown, {"page": "ood_report", **figures}, name="report_ood"),
    ])  # fmt: skip
