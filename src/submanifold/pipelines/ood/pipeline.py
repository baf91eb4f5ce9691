"""hierarchy, x_valid, x_test, ood -> scores of each image, how well they tell, the page."""

from kedro.pipeline import Node, Pipeline

from submanifold.pipelines.ood.nodes import (
    gather_ood,
    measure,
    score_ood,
    write_page,
)


def create_pipeline() -> Pipeline:
    """Build what comes after a model is trained."""
    gathered = {"data": "params:ood_data", "folder": "ood_folder",
                "raw_folder": "raw_folder"}  # fmt: skip
    arrays = {"train": "x_train", "valid": "x_valid", "test": "x_test", "ood": "x_ood"}
    scored = {"model": "hierarchy", **arrays, "device": "params:device"}
    scored |= {name: name for name in ("groups", "ood_groups")}
    found = {"images": "x_ood", "groups": "ood_groups"}
    about = {"dataset": "params:dataset", "ood_name": "params:ood",
             "method": "params:method"}  # fmt: skip
    shown = {"scored": "ood_scores", "measured": "ood_metrics", "test": "x_test",
             "ood": "x_ood", **about}  # fmt: skip
    figures = {name: f"outlier_{name}_figure" for name in ("roc", "histograms", "scatter")}
    return Pipeline(
        [
            Node(gather_ood, gathered, found, name="gather_ood"),
            Node(score_ood, scored, "ood_scores", name="score_ood"),
            Node(measure, "ood_scores", "ood_metrics", name="measure_ood"),
            Node(write_page, shown, {"page": "ood_report", **figures}, name="report_ood"),
        ]
    )
