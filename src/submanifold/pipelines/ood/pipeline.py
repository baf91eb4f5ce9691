"""Model and out-of-distribution data -> anomaly scores, their accuracy, page."""

from kedro.pipeline import Node, Pipeline

from submanifold.config.schema import Experiment
from submanifold.evaluation.ood import measure_ood, score_parts
from submanifold.pipelines.ood import nodes

GATHER_IMAGES = Node(
    nodes.gather_images,
    inputs=["params:ood_data", "ood_folder", "raw_folder"],
    outputs="x_ood",
    name="gather_ood",
)
GATHER_ROWS = Node(
    nodes.gather_rows,
    inputs=["params:ood_data", "hierarchy"],
    outputs="x_ood",
    name="gather_ood",
)


def create_pipeline(experiment: Experiment) -> Pipeline:
    """Build the pipeline that follows the training of a model of images or of a table."""
    return Pipeline(
        [
            GATHER_ROWS if experiment.data.kind == "table" else GATHER_IMAGES,
            Node(
                score_parts,
                inputs={
                    "model": "hierarchy",
                    "train": "x_train",
                    "valid": "x_valid",
                    "test": "x_test",
                    "ood": "x_ood",
                    "device": "params:device",
                },
                outputs="ood_scores",
                name="score_ood",
            ),
            Node(
                measure_ood,
                inputs=["ood_scores", "hierarchy"],
                outputs="ood_metrics",
                name="measure_ood",
            ),
            Node(
                nodes.write_page,
                inputs=[
                    "ood_scores",
                    "ood_metrics",
                    "x_test",
                    "x_ood",
                    "params:data_name",
                    "params:ood",
                    "hierarchy",
                    "params:model_file",
                ],
                outputs={
                    "page": "ood_report",
                    "scores": "ood_scores_figure",
                    "roc": "ood_roc_figure",
                    "histograms": "ood_histograms_figure",
                    "scatter": "ood_scatter_figure",
                },
                name="report_ood",
            ),
        ],
        namespace="ood",
        prefix_datasets_with_namespace=False,
    )
