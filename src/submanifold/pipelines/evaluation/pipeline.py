"""Pipeline: data -> baselines; model and data -> metrics, scores, samples, illustrations."""

from collections.abc import Mapping

from kedro.pipeline import Node, Pipeline

from submanifold.config.schema import Kind
from submanifold.pipelines.evaluation.nodes import (
    compare_with_truth,
    draw_samples,
    evaluate,
    explain,
    fit_baselines,
    illustrate,
    score_events,
)

DATA = {"train": "x_train", "test": "x_test"}
MODEL = {"hierarchy": "hierarchy", "device": "params:device"}


def create_pipeline(
    histories: Mapping[str, str], kind: Kind = "images", conditional: bool = False
) -> Pipeline:
    """Build the evaluation pipeline.

    Args:
        histories: Datasets of the training histories by phase, ``{"density": "density.history"}``.
        kind: Kind of the data.
        conditional: Whether the model is conditional; samples then have contexts of test data.
    """
    fitted = DATA | {"valid": "x_valid"}
    drawn = MODEL | {"count": "params:evaluation.samples", "seed": "params:seed"}
    if conditional:
        drawn["test"] = "x_test"
    measured = MODEL | DATA | dict(histories) | {"samples": "samples", "baselines": "baselines"}
    measured |= {"launch": "params:launch", "folder": f"{list(histories)[-1]}.folder"}
    measured["input_noise"] = "params:input_noise"
    compared = MODEL | {"test": "x_test", "samples": "samples", "data": "params:data"}
    if kind != "points":
        fitted["groups"] = measured["groups"] = "groups"
    if kind == "images":
        names = ("dequantizations", "inception_weights")
        measured |= {name: f"params:evaluation.{name}" for name in names}
    samples = {name: name for name in ("samples", "samples_cool")}
    found = {name: name for name in ("metrics", "projections")}
    fits = {name: name for name in ("baselines", "pca")}
    nodes = [
        Node(fit_baselines, fitted, fits, name="fit_baselines"),
        Node(draw_samples, drawn, samples, name="draw_samples"),
        Node(evaluate, measured, found, name="evaluate"),
    ]
    if kind == "points":
        nodes.append(Node(compare_with_truth, compared, "truth", name="compare_with_truth"))
    else:
        scored = MODEL | fitted | {name: measured[name] for name in ("launch", "folder")}
        nodes.append(Node(score_events, scored, "split_scores", name="score_splits"))
    if kind == "images":
        illustrated = MODEL | DATA | {"samples": "samples", "pca": "pca"}
        nodes.append(Node(illustrate, illustrated, "illustrations", name="illustrate"))
    if kind == "table":
        explained = MODEL | DATA | {"split_scores": "split_scores", "rows": "rows"}
        nodes.append(Node(explain, explained, "anomalies", name="explain"))
    return Pipeline(nodes)
