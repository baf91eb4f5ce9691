"""Model and out-of-distribution data -> anomaly scores, their accuracy, page."""

from kedro.pipeline import Node, Pipeline

from submanifold.config.schema import Experiment
from submanifold.evaluation.ood import measure_ood, score_parts
from submanifold.pipelines.ood import nodes

IMAGES = {"data": "params:ood_data", "folder": "ood_folder", "raw_folder": "raw_folder"}
ROWS = {"data": "params:ood_data", "model": "hierarchy"}
SCORED = {"model": "hierarchy", "train": "x_train", "valid": "x_valid", "test": "x_test",
          "ood": "x_ood", "groups": "groups", "ood_groups": "ood_groups",
          "device": "params:device"}  # fmt: skip
MEASURED = {"scored": "ood_scores", "model": "hierarchy"}
SHOWN = {"scored": "ood_scores", "measured": "ood_metrics", "test": "x_test", "ood": "x_ood",
         "rows": "rows", "dataset": "params:data_name", "ood_name": "params:ood",
         "model": "hierarchy", "model_file": "model_file"}  # fmt: skip
FIGURES = {name: f"ood_{name}_figure" for name in ("scores", "roc", "histograms", "scatter")}


def create_pipeline(experiment: Experiment) -> Pipeline:
    """Build the pipeline that follows the training of a model of images or of a table."""
    gather, inputs = (
        (nodes.gather_rows, ROWS) if experiment.kind == "table" else (nodes.gather_images, IMAGES)
    )
    gathered = {"events": "x_ood", "groups": "ood_groups"}
    return Pipeline(
        [
            Node(gather, inputs, gathered, name="gather_ood"),
            Node(score_parts, SCORED, "ood_scores", name="score_ood"),
            Node(measure_ood, MEASURED, "ood_metrics", name="measure_ood"),
            Node(nodes.write_page, SHOWN, {"page": "ood_report", **FIGURES}, name="report_ood"),
        ],
        namespace="ood",
        prefix_datasets_with_namespace=False,
    )
