"""The report, of a model that is nothing but a description."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from submanifold.pipelines.reporting.nodes import make_table, report_images
from submanifold.pipelines.reporting.pipeline import create_pipeline
from submanifold.studies import paper

GLOW = {"type": "glow", "shape": [3, 8, 8], "levels": 2, "steps": 2, "width": 8}


def model(*bijections):
    stages = [{"bijections": list(bijections), "dim": 500, "off_manifold_scale": 1.0}]
    return SimpleNamespace(
        has_density=True,
        describe=lambda: {"model": "hierarchy", "stages": stages},
        calibration={"why": "There were 3 images."},
    )


def measured(value):
    return {
        "value": value,
        "low": value - 0.1,
        "high": value + 0.1,
        "n": 9,
        "n_real": 9,
        "draws": 2,
    }


def metrics(**more):
    names = ("bits_per_dim", "bits_per_dim_importance", "mse", "psnr", "manifold_nll", "kid")
    return {
        **{name: measured(1.0) for name in (*names, "precision", "recall")},
        "dims": [3072, 500],
        "fid": {"value": None, "why": "not measured: no network"},
        "features": "inception",
        "training_images": None,
        "curve": {
            "dims": [1, 9],
            "mse": [0.5, 0.0],
            "pca_mse": [0.4, None],
            "smallest": {"20": 3},
            "nearest_dims": [5],
            "nearest_mse": [0.1],
            "n": 5,
            "n_nearest": 2,
        },
        "baselines": {"pca": {"dim": 500, "mse": measured(0.5)}, "gaussian": None},
        "parameters": 7,
        "counts": {"train": 5, "test": 5, "samples": 5},
        "seconds": {"training": 3.0},
        "warnings": [],
        "overflows": 0,
        **more,
    }


def history(number):
    return {
        "name": f"phase_{number}",
        "stages": [number, number + 1],
        "terms": ["likelihood", f"reconstruction_{number}"],
        "steps": 9,
        "best_step": 4,
        "seconds": 1.0,
        "rollbacks": 0,
        "train": [{"step": 1, "loss": 1.0}],
        "valid": [{"step": 1, "loss": 1.0}],
    }


@pytest.fixture(scope="module")
def report():
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)
    flow = model(GLOW, {"type": "rotation", "dim": 192, "seed": None})
    return report_images(
        samples=images,
        samples_cool=images,
        test=images,
        projections=images[:2],
        metrics=metrics(),
        table=make_table(metrics(), flow, "photos", "H-MM"),
        manifest={
            "source": "photos",
            "counts": {"train": 5, "valid": 5, "test": 5},
            "size": 8,
            "channels": 3,
            "split": "random",
            "split_note": "",
            "skipped_count": 0,
            "skipped": [],
            "hash": "sha256:abc",
        },
        hierarchy=flow,
        dataset="photos",
        method="H-MM",
        **{f"phase_{number}": history(number) for number in (10, 2, 1)},
    )


def test_every_phase_is_shown_with_its_stages_and_terms_in_the_order_of_the_numbers(report):
    rows = re.findall(r"<tr><td>(phase_\d+)</td><td>([^<]*)</td><td>([^<]*)</td>", report["report"])
    assert rows == [
        (f"phase_{n}", f"{n}, {n + 1}", f"likelihood, reconstruction_{n}") for n in (1, 2, 10)
    ]
    titles = [axes.get_title() for axes in report["curves"].axes]
    assert [title for title in titles if title.endswith(": loss")] == [
        *("phase_1: loss", "phase_2: loss", "phase_10: loss")
    ]


def test_a_stage_is_shown_with_all_its_bijections(report):
    (row,) = re.findall(r"<tr><td>1</td><td>(.*?)</td><td>500</td>", report["report"], re.S)
    glow, rotation = row.split("<br>")
    assert glow.startswith("glow <code>shape=[3, 8, 8]</code> <code>levels=2</code>")
    assert rotation.strip() == "rotation <code>dim=192</code>"


def test_a_model_without_a_calibration_has_its_reason(report):
    assert "<code>submanifold score</code>: not available. There were 3 images." in report["report"]


def test_a_metric_without_a_value_has_its_reason_and_one_that_nothing_has_no_column():
    table = make_table(metrics(bits_per_dim={"value": None}), model(GLOW), "photos", "PR-D")
    row = table.iloc[0]
    assert (row["BPD"], row["FID"]) == ("–", "not measured")
    assert row["precision (Inception)"] == "1.00 [0.90, 1.10]"
    assert "MSE, stage 1 alone" not in table


@pytest.mark.parametrize(
    ("flow", "note"), [(paper.PAPER_FLOW, ""), (GLOW, ", 3 x 32 steps of width 512")]
)
def test_the_papers_row_says_whether_its_network_is_another(flow, note):
    table = make_table(metrics(), model(flow), "celeba", "PR-D").set_index("model")
    row = table.loc[f"paper, table 1{note}"]
    assert (row["BPD"], row["MSE"], row["parameters"]) == (
        "3.52 ± 0.04",
        "0.02 ± 0.001",
        "44,000,000",
    )
    assert row["FID"] == row["training (s)"] == "–"


def test_points_and_images_share_the_table_and_the_page():
    histories = {"phase_1": "phase_1.history"}
    images, points = (create_pipeline(histories, synthetic) for synthetic in (False, True))
    assert images.inputs() - points.inputs() == {"samples_cool", "projections"}
    assert points.inputs() - images.inputs() == {"truth", "params:data"}
    assert points.outputs() == {"report", "curves_figure", "manifold_figure"}
    assert images.outputs() == {
        *("report", "curves_figure", "samples_figure", "samples_cool_figure", "rejection_figure"),
        "dimensions_figure",
    }
