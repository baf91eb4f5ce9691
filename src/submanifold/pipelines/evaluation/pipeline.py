"""Data -> baselines; model and data -> metrics, scores, samples, illustrations."""

from kedro.pipeline import Node, Pipeline

from submanifold.config.schema import Experiment
from submanifold.pipelines.evaluation.nodes import (
    compare_with_truth,
    draw_samples,
    evaluate,
    explain,
    fit_baselines,
    illustrate,
    score_events,
)

MODEL = {"hierarchy": "hierarchy", "device": "params:device"}
DATA = {"train": "x_train", "test": "x_test"}
SPLITS = DATA | {"valid": "x_valid", "groups": "groups"}
DRAWN = {"evaluation": "params:evaluation", "seed": "params:seed", "test": "x_test"}
MEASURED = {"samples": "samples", "baselines": "baselines", "groups": "groups",
            "evaluation": "params:evaluation", "input_noise": "params:input_noise"}  # fmt: skip
TRUTH = {"test": "x_test", "samples": "samples", "data": "params:data"}
SHOWN = {"samples": "samples", "pca": "pca"}
SCORED = {"split_scores": "split_scores", "rows": "rows"}

SCORES = Node(score_events, MODEL | SPLITS, "split_scores", name="score_splits", tags="distributed")
BY_KIND = {
    "images": [SCORES, Node(illustrate, MODEL | DATA | SHOWN, "illustrations", name="illustrate")],
    "table": [SCORES, Node(explain, MODEL | DATA | SCORED, "anomalies", name="explain")],
    "synthetic": [Node(compare_with_truth, MODEL | TRUTH, "truth", name="compare_with_truth")],
}


def create_pipeline(experiment: Experiment) -> Pipeline:
    """Build the evaluation of an experiment's model."""
    histories = {name: f"{name}.history" for name in experiment.phases}
    samples = {"samples": "samples", "samples_t07": "samples_t07"}
    metrics = {"metrics": "metrics", "projections": "projections"}
    nodes = [
        Node(fit_baselines, SPLITS, {"baselines": "baselines", "pca": "pca"}, name="fit_baselines"),
        Node(draw_samples, MODEL | DRAWN, samples, name="draw_samples"),
        Node(evaluate, MODEL | DATA | MEASURED | histories, metrics, name="evaluate",
             tags="distributed"),
        *BY_KIND[experiment.kind],
    ]  # fmt: skip
    return Pipeline(nodes, namespace="evaluation", prefix_datasets_with_namespace=False)
