"""Pipeline: model and data -> restorations of test images, their quality, page."""

from kedro.pipeline import Node, Pipeline

from submanifold.pipelines.restore.nodes import FIGURES, restore_images, write_page


def create_pipeline() -> Pipeline:
    """Build the pipeline that follows the training of a model of images."""
    restored = {"model": "hierarchy", "train": "x_train", "valid": "x_valid", "test": "x_test",
                "groups": "groups", "device": "params:device"}  # fmt: skip
    shown = {"measured": "restore_metrics", "images": "restored", "dataset": "params:dataset",
             "method": "params:method", "run": "run_information"}  # fmt: skip
    found = {"measured": "restore_metrics", "images": "restored"}
    figures = {name: f"restore_{name}_figure" for name in FIGURES}
    return Pipeline([
        Node(restore_images, restored, found, name="restore_images"),
        Node(write_page, shown, {"page": "restore_report", **figures}, name="report_restore"),
    ])  # fmt: skip
