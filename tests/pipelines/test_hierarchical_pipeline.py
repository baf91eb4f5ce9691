"""One run of the main job, and all that it leaves behind."""

import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from submanifold import Hierarchy
from submanifold.data.batches import Batches
from submanifold.evaluation.intervals import mean_interval
from submanifold.evaluation.likelihood import dequantized_log_probs, to_bits_per_dim
from submanifold.evaluation.reconstruction import squared_errors

FIGURES = ("samples_figure", "samples_cool_figure", "rejection_figure", "curves_figure")
LAYERS = {"primary", "stage_1", "stage_2", "models", "model_output", "reporting"}


@pytest.fixture(scope="module")
def run(project):
    return project.run()


def measured(value):
    return value["low"] < value["value"] < value["high"]


def test_every_output_is_on_disk_in_its_layer(run, project):
    catalog = run.project.catalog()
    pipeline_outputs = [
        *("x_train", "x_valid", "x_test", "manifest"),
        *("stage_1.model", "stage_1.history", "stage_2.u_train", "stage_2.u_valid"),
        *("stage_2.model", "stage_2.history", "hierarchy", "baselines"),
        *("metrics", "samples", "samples_cool", "projections"),
        *("metrics_table", "report", *FIGURES),
    ]
    layers = set()
    for name in pipeline_outputs:
        assert catalog.exists(name), name
        assert run.path(name).is_relative_to(project.path / "data"), name
        layers.add(catalog[name].metadata["kedro-viz"]["layer"])
    assert layers == LAYERS
    left = [path for path in project.path.rglob("data/**/*") if "part" in path.suffix]
    assert left == []


def test_the_stages_lie_one_inside_the_other(run):
    hierarchy = Hierarchy.load(run.path("hierarchy"))
    assert hierarchy.event_shape == (3, 8, 8)
    assert [stage.dim for stage in hierarchy.stages] == [24, 12]
    u_train, u_valid = run.load("stage_2.u_train"), run.load("stage_2.u_valid")
    assert (u_train.shape, u_valid.shape) == ((256, 24), (64, 24))
    assert np.isfinite(u_train).all()


def test_the_metrics_have_counts_and_intervals(run):
    metrics = json.loads(run.path("metrics").read_text())
    assert metrics["dims"] == [192, 24, 12]
    groups = run.load("manifest")["groups"]["test"]
    counts = {"train": 256, "test": 64, "samples": 64, "test_groups": groups}
    assert metrics["counts"] == counts
    for name in ("bits_per_dim", "mse", "psnr", "stage_1_mse"):
        assert metrics[name]["n"] == 64
        assert measured(metrics[name]), name
    assert metrics["stage_1_mse"]["value"] != metrics["mse"]["value"]
    assert measured(metrics["sliced_wasserstein"])
    assert metrics["sliced_wasserstein"]["n_real"] == 64
    floor = metrics["training_images"]
    assert floor["sliced_wasserstein"]["value"] < metrics["sliced_wasserstein"]["value"]
    for name in ("precision", "recall", "kid"):
        assert (floor[name]["n_real"], floor[name]["n_fake"]) == (64, 64)
        assert measured(floor[name]), name
    assert measured(metrics["baselines"]["pca"]["mse"])
    assert metrics["baselines"]["pca"]["dim"] == 12
    assert measured(metrics["baselines"]["gaussian"]["bits_per_dim"])
    assert metrics["parameters"] == sum(p.numel() for p in run.load("hierarchy").parameters())
    assert metrics["seconds"]["training"] > 0


def test_intervals_are_over_the_cells_of_photographs(run):
    metrics, groups = run.load("metrics"), np.array(run.load("groups")["test"])
    batches = Batches(run.load("x_test"), 64)
    errors = squared_errors(run.load("hierarchy").project, batches)
    assert metrics["mse"] == pytest.approx(mean_interval(errors, groups), rel=1e-4)
    (log_prob,) = dequantized_log_probs(run.load("hierarchy"), run.load("x_test"), 1, "cpu")
    bits = mean_interval(to_bits_per_dim(log_prob, run.load("x_test")), groups)
    assert metrics["bits_per_dim"] == pytest.approx(bits, rel=1e-4)
    number = len(set(groups))
    assert 20 < number < 64
    pca = metrics["baselines"]["pca"]["mse"]
    assert {metrics["psnr"]["groups"], metrics["recall"]["groups"], pca["groups"]} == {number}
    text = " ".join(run.load("report").split())
    assert f"Evaluated on 64 test images in {number} groups" in text
    assert f"by the bootstrap over the {number} groups of test images" in text


def test_the_fid_is_not_measured_and_the_reason_is_given(run):
    fid = run.load("metrics")["fid"]
    assert fid["value"] is None
    assert fid["why"].startswith("not measured: ")
    assert "evaluation.inception_weights" in fid["why"]
    table = pd.read_csv(run.path("metrics_table"))
    assert table["FID"][0] == "not measured"
    assert fid["why"].removeprefix("not measured: ") in run.load("report")


def test_precision_recall_and_kernel_distance_are_then_of_pixels(run):
    metrics, report = run.load("metrics"), " ".join(run.load("report").split())
    assert metrics["features"] == "64 principal components of pixels"
    table = pd.read_csv(run.path("metrics_table"))
    names = {"precision": ".2f", "recall": ".2f", "kid": ".4f"}
    for name, form in names.items():
        found = metrics[name]
        assert found["low"] <= found["value"] <= found["high"]
        assert (found["n_real"], found["n_fake"]) == (64, 64)
        column = "KID" if name == "kid" else name
        assert table[f"{column} (pixels)"][0].split(" [")[0] == format(found["value"], form)
    assert "64 test images with as many samples, using 64 principal components of pixels" in report


def test_the_table_has_a_row_for_the_model_and_for_each_baseline(run):
    table = pd.read_csv(run.path("metrics_table")).set_index("model")
    assert list(table.index) == [
        "H-MM, 192 → 24 → 12",
        "PCA, d = 12",
        "Gaussian, full covariance",
        "training images",
    ]
    bpd = run.load("metrics")["bits_per_dim"]
    expected = f"{bpd['value']:.3f} [{bpd['low']:.3f}, {bpd['high']:.3f}]"
    assert table["BPD"].iloc[0] == expected
    assert (table.loc["PCA, d = 12"].drop("MSE") == "–").all()


class Links(HTMLParser):
    """Gathers all that a page would have to fetch, and the tags that are open."""

    VOID = ("meta", "img", "br", "hr", "link", "input")

    def __init__(self):
        super().__init__()
        self.links, self.images, self.open = [], [], []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.links += [given[name] for name in ("src", "href", "srcset") if name in given]
        self.images += [given] if tag == "img" else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_is_one_self_contained_page(run):
    page = run.path("report").read_text(encoding="utf-8")
    links = Links()
    links.feed(page)
    assert links.open == []
    assert len(links.images) == 5
    assert all(link.startswith("data:image/png;base64,") for link in links.links)
    assert all(image["alt"] for image in links.images)
    assert not re.search(r"https?:|url\(|@import|<script", page)
    assert len(page) < 5e6


def test_the_report_shows_the_metrics_the_stages_and_the_data(run):
    page, metrics = run.load("report"), run.load("metrics")
    text = " ".join(re.sub(r"<[^>]*>", " ", page).split())
    assert "H-MM on photos" in text
    assert f"{metrics['bits_per_dim']['value']:.3f} bits per dimension" in text
    assert f"{metrics['mse']['value']:.5f} mean squared error" in text
    assert "192 → 24 → 12" in text
    for cell in run.load("metrics_table").to_numpy().ravel():
        assert cell in text
    assert "256 training, 64 validation and 64 test images of 8 x 8 pixels, 3 channels" in text
    assert f"SHA-256 {run.load('manifest')['hash'].removeprefix('sha256:')[:16]} ." in text
    assert "None" not in text


@pytest.mark.parametrize("name", FIGURES)
def test_the_pictures_are_there(run, name):
    image = Image.open(io.BytesIO(run.path(name).read_bytes()))
    assert image.format == "PNG"
    assert min(image.size) > 100
    assert np.asarray(image.convert("L")).std() > 5


def test_the_mlflow_run_is_complete(run, project):
    info, data = run.mlflow.info, run.mlflow.data
    assert info.run_name == "photos-H-MM"
    assert info.status == "FINISHED"
    expected = {
        "dataset": "photos",
        "stage_1.flow.type": "glow",
        "stage_1.dim": "24",
        "stage_2.training.steps": "12",
        "stage_2.training.learning_rate": "0.0005",
        "keys.stage_1": run.path("stage_1.model").parent.name,
        "data.size": "8",
    }
    assert {name: data.params.get(name) for name in expected} == expected
    assert not any("{" in value for name, value in data.params.items() if "stage" in name)
    metrics = run.load("metrics")
    assert data.metrics["test.bits_per_dim"] == metrics["bits_per_dim"]["value"]
    assert data.metrics["test.mse.high"] == metrics["mse"]["high"]
    assert data.metrics["test.baselines.pca.mse"] == metrics["baselines"]["pca"]["mse"]["value"]
    assert data.metrics["stage_1.seconds"] > 0
    client = project.mlflow_client
    for stage in ("stage_1", "stage_2"):
        history = run.load(f"{stage}.history")
        for kind in ("train", "valid"):
            for name in ("loss", "bits_per_dim", "mse"):
                curve = client.get_metric_history(info.run_id, f"{stage}.{kind}.{name}")
                logged = {point.step: point.value for point in curve}
                assert logged == {row["step"]: row[name] for row in history[kind]}
    artifacts = {artifact.path for artifact in client.list_artifacts(info.run_id)}
    assert artifacts >= {
        *("report.html", "metrics.json", "metrics.csv", "manifest.json", "hierarchy.safetensors"),
        *("samples.png", "samples_cool.png", "rejection.png", "curves.png"),
    }
    assert (project.path / "mlartifacts").is_dir()


def test_what_kedro_skips_is_in_the_mlflow_run_all_the_same(run, project):
    again = project.run(only_missing_outputs=True)
    assert again.mlflow.info.run_id != run.mlflow.info.run_id
    assert again.mlflow.info.status == "FINISHED"
    mine, before = again.mlflow.data, run.mlflow.data
    assert mine.params == before.params
    final = {name for name in before.metrics if name.startswith("test.")}
    final |= {"stage_1.seconds", "stage_2.best_step"}
    assert {n: mine.metrics[n] for n in final} == {n: before.metrics[n] for n in final}
    assert again.steps == {"stage_1": 0, "stage_2": 0}
    listed = []
    for each in (again, run):
        artifacts = project.mlflow_client.list_artifacts(each.mlflow.info.run_id)
        listed.append({artifact.path for artifact in artifacts})
    assert listed[0] == listed[1]


def test_a_third_stage_comes_from_the_command_line(run, project):
    third = project.run(until="metrics", stage_3={"dim": 6})
    assert third.steps == {"stage_1": 0, "stage_2": 0, "stage_3": 12}
    assert [stage.dim for stage in third.load("hierarchy").stages] == [24, 12, 6]
    assert third.load("stage_3.u_train").shape == (256, 12)
    assert third.load("metrics")["dims"] == [192, 24, 12, 6]
    assert "stage_3.valid.loss" in third.mlflow.data.metrics


def test_a_stage_may_be_penalised_in_latent_space(run, project):
    other = project.run(until="hierarchy", stage_2={"reconstruction": {"space": "latent"}})
    assert other.steps == {"stage_1": 0, "stage_2": 12}
    assert other.load("hierarchy").dim == 12


def test_grey_images_and_a_handful_of_them_end_in_a_report_too(project, tmp_path):
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (9, 9), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    data = {"path": str(tmp_path), "size": 8, "channels": 1}
    run = project.run(dataset="folder", data=data)
    metrics = run.load("metrics")
    assert metrics["counts"] == {"train": 10, "test": 1, "samples": 64}
    assert metrics["bits_per_dim"]["n"] == 1
    assert metrics["bits_per_dim"]["low"] is None
    for name in ("fid", "kid", "precision", "recall"):
        assert metrics[name]["why"].startswith("not measured: there are fewer than 4 test images")
    report = run.load("report")
    assert "10 training, 1 validation and 1 test images" in " ".join(report.split())
    assert "not available. Validation images for a calibration: expected at least 20" in report
    assert "got 1 images" in run.load("hierarchy").calibration["why"]
    assert "Precision is quality" not in report
    assert run.mlflow.info.run_name == "folder-H-MM"
