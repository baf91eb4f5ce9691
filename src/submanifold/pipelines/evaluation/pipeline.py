"""Data -> baselines; model and data -> metrics, scores, samples, illustrations."""

from kedro.pipeline import Node, Pipeline

from submanifold.config.schema import Experiment
from submanifold.evaluation.attribution import explain_rows
from submanifold.evaluation.baselines import fit_baselines
from submanifold.evaluation.split_scores import score_splits
from submanifold.pipelines.evaluation import nodes

MODEL = {"hierarchy": "hierarchy", "device": "params:device"}
DATA = {"train": "x_train", "test": "x_test"}
SPLITS = DATA | {"valid": "x_valid", "groups": "groups"}
DRAWN = {"evaluation": "params:evaluation", "seed": "params:seed", "test": "x_test"}
MEASURED = {"samples": "samples", "baselines": "baselines", "groups": "groups",
            "evaluation": "params:evaluation", "input_noise": "params:input_noise",
            "schedule": "schedule"}  # fmt: skip
TRUTH = {"test": "x_test", "samples": "samples", "data": "params:data"}
SHOWN = {"samples": "samples", "pca": "pca"}
SCORED = {"split_scores": "split_scores", "rows": "rows"}

SCORES = Node(score_splits, MODEL | SPLITS, "split_scores", name="score_splits", tags="distributed")
BY_KIND = {
    "images": [
        SCORES,
        Node(nodes.illustrate, MODEL | DATA | SHOWN, "illustrations", name="illustrate"),
    ],
    "table": [SCORES, Node(explain_rows, MODEL | DATA | SCORED, "anomalies", name="explain")],
    "synthetic": [
        Node(nodes.compare_with_truth, MODEL | TRUTH, "truth", name="compare_with_truth")
    ],
}


def create_pipeline(experiment: Experiment) -> Pipeline:
    """Build the evaluation of an experiment's model."""
    histories = {name: f"{name}.history" for name in experiment.phases}
    samples = {"samples": "samples", "samples_t07": "samples_t07"}
    metrics = {"metrics": "metrics", "projections": "projections"}
    fitted = {"baselines": "baselines", "pca": "pca"}
    return Pipeline([
        Node(fit_baselines, SPLITS, fitted, name="fit_baselines"),
        Node(nodes.draw_samples, MODEL | DRAWN, samples, name="draw_samples"),
        Node(nodes.evaluate, MODEL | DATA | MEASURED | histories, metrics, name="evaluate",
             tags="distributed"),
        *BY_KIND[experiment.kind],
    ], namespace="evaluation", prefix_datasets_with_namespace=False)  # fmt: skip
