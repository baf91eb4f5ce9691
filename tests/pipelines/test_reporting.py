"""The report of a model that is only a description."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from submanifold.evaluation import paper
from submanifold.pipelines.reporting.nodes import make_table, report_images
from submanifold.pipelines.reporting.pipeline import create_pipeline

GLOW = {"type": "glow", "shape": [3, 8, 8], "levels": 2, "steps": 2, "width": 8}
CURVE = {"dims": [1, 9], "mse": [0.5, 0.0], "pca_mse": [0.4, None], "smallest": {"20": 3},
         "nearest_dims": [5], "nearest_mse": [0.1], "n": 5, "n_nearest": 2}  # fmt: skip
MANIFEST = {"source": "photos", "counts": {"train": 5, "valid": 5, "test": 5}, "size": 8,
            "channels": 3, "split": "random", "split_note": "", "skipped_count": 0, "skipped": [],
            "hash": "sha256:abc"}  # fmt: skip


def model(*bijections):
    return SimpleNamespace(
        has_density=True,
        describe=lambda: {"stages": [{"bijections": list(bijections), "dim": 500}]},
        calibration={"why": "There were 3 images."},
    )


def metrics(**more):
    names = ("bits_per_dim", "bits_per_dim_importance", "mse", "psnr", "manifold_nll", "kid")
    value = {"value": 1.0, "low": 0.9, "high": 1.1, "n": 9, "n_real": 9, "draws": 2}
    return {
        **dict.fromkeys((*names, "precision", "recall"), value),
        "dims": [3072, 500],
        "fid": {"value": None, "why": "not measured: no network"},
        "features": "inception",
        "curve": CURVE,
        "baselines": {"pca": {"dim": 500, "mse": value}, "gaussian": None},
        "parameters": 7,
        "counts": {"train": 5, "test": 5, "samples": 5},
        "seconds": {"training": 3.0},
        "warnings": [],
        "overflows": 0,
        **more,
    }


def history(name, number):
    entries = [{"step": 1, "loss": 1.0}]
    return {"name": name, "stages": [number], "terms": ["likelihood", f"term_{number}"],
            "steps": 9, "best_step": 4, "seconds": 1.0, "rollbacks": 0, "train": entries,
            "valid": entries}  # fmt: skip


@pytest.fixture(scope="module")
def report():
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)
    flow = model(GLOW, {"type": "rotation", "dim": 192, "seed": None})
    histories = {name: history(name, number) for number, name in enumerate(("stage_1", "code"), 1)}
    return report_images(
        images, images, images, images[:2], metrics(),
        table=make_table(metrics(), flow, "photos", "H-MM"), manifest=MANIFEST, hierarchy=flow,
        dataset="photos", method="H-MM", **histories,
    )  # fmt: skip


def test_each_phase_is_listed_with_its_stages_and_terms(report):
    rows = re.findall(r"<tr><td>(\w+)</td><td>([^<]*)</td><td>([^<]*)</td>", report["report"])
    assert rows == [
        (name, f"{number}", f"likelihood, term_{number}")
        for number, name in enumerate(("stage_1", "code"), 1)
    ]
    titles = [axes.get_title() for axes in report["curves"].axes]
    assert [title for title in titles if title.endswith(": loss")] == [
        *("stage_1: loss", "code: loss")
    ]


def test_a_stage_is_listed_with_all_its_bijections(report):
    (row,) = re.findall(r"<tr><td>1</td><td>(.*?)</td><td>500</td>", report["report"], re.S)
    glow, rotation = row.split("<br>")
    assert glow.startswith("glow <code>shape=[3, 8, 8]</code> <code>levels=2</code>")
    assert rotation.strip() == "rotation <code>dim=192</code>"


def test_missing_values_have_a_reason_and_missing_metrics_no_column(report):
    assert "<code>submanifold score</code>: not available. There were 3 images." in report["report"]
    table = make_table(metrics(bits_per_dim={"value": None}), model(GLOW), "photos", "PR-D")
    row = table.iloc[0]
    assert (row["BPD"], row["FID"]) == ("–", "not measured")
    assert row["precision (Inception)"] == "1.00 [0.90, 1.10]"
    assert "MSE, stage 1 alone" not in table


@pytest.mark.parametrize(
    ("flow", "note"), [(paper.PAPER_FLOW, ""), (GLOW, ", 3 x 32 steps of width 512")]
)
def test_the_results_of_the_paper_name_its_architecture_if_it_differs(flow, note):
    table = make_table(metrics(), model(flow), "celeba", "PR-D").set_index("model")
    row = table.loc[f"paper, table 1{note}"]
    numbers = row["BPD"], row["MSE"], row["parameters"], row["FID"]
    assert numbers == ("3.52 ± 0.04", "0.02 ± 0.001", "44,000,000", "–")


def test_reports_of_points_and_of_images_have_their_own_inputs_and_figures():
    images, points = (create_pipeline({"a": "a.history"}, synthetic) for synthetic in (False, True))
    assert images.inputs() - points.inputs() == {"samples_cool", "projections"}
    assert points.inputs() - images.inputs() == {"truth", "params:data"}
    assert points.outputs() == {"report", "curves_figure", "manifold_figure"}
    assert images.outputs() - points.outputs() == {
        *("samples_figure", "samples_cool_figure", "rejection_figure", "dimensions_figure")
    }
