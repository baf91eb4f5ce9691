"""The hierarchical pipeline: outputs of a run, and which phases a changed setting trains again."""

import json
import re
import shutil
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from kedro.framework.cli.project import run as kedro_run
from PIL import Image

from submanifold import Hierarchy
from submanifold.data.batches import Batches
from submanifold.evaluation import paper
from submanifold.evaluation.intervals import mean_interval
from submanifold.evaluation.likelihood import dequantized_log_probs, to_bits_per_dim
from submanifold.evaluation.metrics import METRICS
from submanifold.evaluation.reconstruction import squared_errors
from submanifold.pipelines.reporting.nodes import make_table

FIGURES = ("samples_figure", "samples_cool_figure", "rejection_figure", "curves_figure")
STEPS = 12
BOTH, NONE = {"stage_1": STEPS, "stage_2": STEPS}, {"stage_1": 0, "stage_2": 0}
ONLY_2 = {"stage_1": 0, "stage_2": STEPS}


@pytest.fixture(scope="module")
def run(project):
    return project.run()


def has_interval(value):
    return value["low"] < value["value"] < value["high"]


def test_outputs_are_complete_files_in_data(run, project):
    assert run.steps == BOTH
    outputs = [
        *("x_train", "x_valid", "x_test", "manifest", "stage_1.model", "stage_1.history"),
        *("stage_2.u_train", "stage_2.u_valid", "stage_2.model", "stage_2.history", "hierarchy"),
        *("baselines", "metrics", "samples", "samples_cool", "projections"),
        *("metrics_table", "report", *FIGURES),
    ]
    for name in outputs:
        assert run.catalog.exists(name), name
        assert run.path(name).is_relative_to(project.path / "data"), name
    assert not [path for path in project.path.rglob("data/**/*") if "part" in path.suffix]
    hierarchy = Hierarchy.load(run.path("hierarchy"))
    assert hierarchy.event_shape == (3, 8, 8)
    assert [stage.dim for stage in hierarchy.stages] == [24, 12]
    assert run.load("stage_2.u_train").shape == (256, 24)


def test_metrics_have_counts_and_intervals(run):
    metrics = json.loads(run.path("metrics").read_text())
    assert metrics["dims"] == [192, 24, 12]
    groups = run.load("manifest")["groups"]["test"]
    counts = {"train": 256, "test": 64, "samples": 64, "test_groups": groups}
    assert metrics["counts"] == counts
    for name in ("bits_per_dim", "mse", "psnr", "stage_1_mse"):
        assert metrics[name]["n"] == 64
        assert has_interval(metrics[name]), name
    assert metrics["stage_1_mse"]["value"] != metrics["mse"]["value"]
    floor = metrics["training_images"]
    assert floor["sliced_wasserstein"]["value"] < metrics["sliced_wasserstein"]["value"]
    for name in ("precision", "recall", "kid"):
        assert (floor[name]["n_real"], metrics[name]["n_fake"]) == (64, 64)
        assert has_interval(floor[name]), name
    assert metrics["baselines"]["pca"]["dim"] == 12
    assert has_interval(metrics["baselines"]["gaussian"]["bits_per_dim"])
    assert metrics["parameters"] == sum(p.numel() for p in run.load("hierarchy").parameters())


def test_intervals_are_over_groups_of_images(run):
    metrics, groups = run.load("metrics"), np.array(run.load("groups")["test"])
    errors = squared_errors(
        run.load("hierarchy").encoder_projection, Batches(run.load("x_test"), 64)
    )
    assert metrics["mse"] == pytest.approx(mean_interval(errors, groups), rel=1e-4)
    (log_prob,) = dequantized_log_probs(run.load("hierarchy"), run.load("x_test"), 1, "cpu")
    bits = mean_interval(to_bits_per_dim(log_prob, run.load("x_test")), groups)
    assert metrics["bits_per_dim"] == pytest.approx(bits, rel=1e-4)
    number = len(set(groups))
    assert 20 < number < 64
    assert {metrics["psnr"]["groups"], metrics["recall"]["groups"]} == {number}
    assert f"Evaluated on 64 test images in {number} groups" in " ".join(run.load("report").split())


def test_table_lists_the_model_and_baselines_with_reasons_for_missing_values(run):
    metrics, table = run.load("metrics"), pd.read_csv(run.path("metrics_table")).set_index("model")
    assert list(table.index) == [
        *("H-MM, 192 → 24 → 12", "PCA, d = 12", "Gaussian, full covariance", "training images")
    ]
    first, bpd = table.iloc[0], metrics["bits_per_dim"]
    assert first["BPD"] == METRICS["bits_per_dim"].write(bpd)
    assert first["BPD"].endswith("]")
    pca = table.loc["PCA, d = 12"]
    errors = [f"MSE, {kind} projection" for kind in ("encoder", "default", "nearest")]
    assert pca[errors].nunique() == 1
    assert pca[errors[0]] != "–"
    assert (pca.drop(errors) == "–").all()
    assert first["FID"] == "not measured"
    assert "evaluation.inception_weights" in metrics["fid"]["why"]
    assert metrics["features"] == "64 principal components of pixels"
    assert first["KID (pixels)"] == METRICS["kid"].write(metrics["kid"])


GLOW = {"type": "glow", "shape": [3, 32, 32], "levels": 2, "steps": 2, "width": 8}


@pytest.mark.parametrize(
    ("flow", "note"), [(paper.PAPER_FLOW, ""), (GLOW, ", 3 x 32 steps of width 512")]
)
def test_table_contains_the_results_of_the_paper(run, flow, note):
    model = SimpleNamespace(describe=lambda: {"stages": [{"bijections": [flow]}]})
    metrics = run.load("metrics") | {"dims": [3072, 500], "bits_per_dim": {"value": None}}
    table = make_table(metrics, model, "celeba", "PR-D").set_index("model")
    row = table.loc[f"paper, table 1{note}"]
    numbers = row["BPD"], row["MSE, encoder projection"], row["parameters"], row["FID"]
    assert numbers == ("3.52 ± 0.04", "0.02 ± 0.001", "44,000,000", "–")
    assert table["BPD"].iloc[0] == "–", "a missing value"


class Links(HTMLParser):
    """Collects the links and images of a page, and checks that tags are closed."""

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


def test_report_is_self_contained_and_shows_all_results(run):
    page, metrics = run.path("report").read_text(encoding="utf-8"), run.load("metrics")
    links = Links()
    links.feed(page)
    assert links.open == []
    assert len(links.images) == 24
    assert all(link.startswith(("data:", "#")) for link in links.links)
    assert all(image["alt"] for image in links.images)
    assert not re.search(r"https?:|url\(|@import|<script ", page)
    assert len(page) < 5e6
    text = " ".join(re.sub(r"<[^>]*>", " ", page).split())
    for cell in run.load("metrics_table").to_numpy().ravel():
        assert cell in text
    value = METRICS["mse"].write(metrics["mse"]).partition(" [")[0]
    assert f"{value} mean squared error of encoder projections; PCA:" in text
    folder = run.path("hierarchy").parent
    assert f"model data/06_models/{folder.name}/hierarchy.safetensors" in text
    assert f"MLflow run {run.mlflow.info.run_id}" in text
    assert f"submanifold project {run.mlflow.info.run_name} PICTURES" in text
    for history in ("stage_1", "stage_2"):
        assert f"{history} {run.load(f'{history}.history')['seconds']:,.0f} s" in text
    assert "256 training, 48 validation and 64 test images of 8 x 8 pixels, 3 channels" in text
    assert f"SHA-256 {run.load('manifest')['hash'].removeprefix('sha256:')[:16]} ." in text
    assert "None" not in text
    for name in FIGURES:
        assert Image.open(run.path(name)).format == "PNG"


def test_mlflow_run_has_parameters_metrics_curves_and_artifacts(run, project):
    info, data = run.mlflow.info, run.mlflow.data
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-H-MM", info.run_name)
    assert info.status == "FINISHED"
    expected = {
        "dataset": "photos",
        "stage_1.flow.type": "glow",
        "stage_1.dim": "24",
        "stage_2.training.steps": "12",
        "keys.stage_1": run.path("stage_1.model").parent.name,
        "data.size": "8",
    }
    assert {name: data.params.get(name) for name in expected} == expected
    metrics = run.load("metrics")
    assert data.metrics["test.bits_per_dim"] == metrics["bits_per_dim"]["value"]
    assert data.metrics["test.mse.high"] == metrics["mse"]["high"]
    assert data.metrics["test.baselines.pca.mse"] == metrics["baselines"]["pca"]["mse"]["value"]
    for stage in BOTH:
        history = run.load(f"{stage}.history")
        for kind in ("train", "valid"):
            for name in ("loss", "bits_per_dim", "mse"):
                logged = run.curve(f"{stage}.{kind}.{name}")
                assert logged == {row["step"]: row[name] for row in history[kind]}
    assert run.artifacts >= {
        *("report.html", "metrics.json", "metrics.csv", "manifest.json", "hierarchy.safetensors"),
        *("samples.png", "samples_cool.png", "rejection.png", "curves.png", "split_scores.csv"),
    }
    beside = {"conf", "pyproject.toml", "src", ".telemetry", ".viz"}
    assert {path.name for path in project.path.iterdir()} - beside == {"data"}


def test_repeated_run_trains_nothing_and_logs_everything(run, project):
    again = project.run(only_missing_outputs=True)
    assert again.steps == NONE
    assert again.mlflow.info.run_id != run.mlflow.info.run_id
    assert again.path("hierarchy") == run.path("hierarchy")
    new, old = again.mlflow.data, run.mlflow.data
    assert new.params == old.params
    names = {name for name in old.metrics if name.startswith("test.")}
    names |= {"stage_1.seconds", "stage_2.best_step"}
    assert {name: new.metrics[name] for name in names} == {n: old.metrics[n] for n in names}
    assert again.curve("stage_2.train.loss") == run.curve("stage_2.train.loss") != {}
    assert again.artifacts == run.artifacts


@pytest.mark.parametrize(("arguments", "only_missing"), [
    ([], True),
    (["--pipeline=hierarchical", "--to-outputs=metrics"], True),
    (["--nodes=evaluate"], False),
    (["--pipeline=compare"], False),
])  # fmt: skip
def test_kedro_run_computes_missing_outputs_and_named_nodes(
    project, monkeypatch, arguments, only_missing
):
    given = {}
    monkeypatch.setattr(kedro_run, "callback", lambda **options: given.update(options))
    code, output = project.invoke("run", "--env=test", *arguments)
    assert code == 0, output
    assert given["only_missing_outputs"] is only_missing


def huber(delta):
    return {"stage_1": {"reconstruction": {"penalty": "huber", "delta": delta}}}


@pytest.mark.parametrize(("params", "steps"), [
    ({"stage_2": {"dim": 10}}, ONLY_2),
    ({"stage_2": {"reconstruction": {"space": "latent"}}}, ONLY_2),
    ({"method": "H-MH"}, ONLY_2),
    (huber(0.1), BOTH),
    (huber(0.2), BOTH),
    (huber(0.1), NONE),
    ({"seed": 1}, BOTH),
    ({"device": "auto"}, NONE),
    ({}, NONE),
])  # fmt: skip
def test_only_phases_that_a_setting_changes_are_trained_again(project, run, params, steps):
    other = project.run(until="hierarchy", **params)
    assert other.steps == steps
    assert other.path("x_train") == run.path("x_train")


def test_evaluation_settings_repeat_only_the_evaluation(project, run):
    other = project.run(until="metrics", evaluation={"samples": 32})
    assert other.steps == NONE
    assert other.load("metrics")["counts"]["samples"] == 32
    assert run.load("metrics")["counts"]["samples"] == 64


def test_parameters_can_add_a_stage(run, project):
    third = project.run(until="metrics", stage_3={"dim": 6})
    assert third.steps == {"stage_1": 0, "stage_2": 0, "stage_3": STEPS}
    assert third.load("stage_3.u_train").shape == (256, 12)
    assert third.load("metrics")["dims"] == [192, 24, 12, 6]
    assert "stage_3.valid.loss" in third.mlflow.data.metrics


METHOD = """
  three-phases:
    stage_1: {flow: {type: glow}, dim: 24}
    stage_2: {flow: {type: realnvp}, dim: 12}
    phases:
      density: {stages: 1, reconstruction: {penalty: none}}
      penalty: {stages: 1, reconstruction: {weight: 30.0}}
      code_flow: {stages: 2}
"""


def test_a_method_of_three_phases_trains_changed_phases_and_later_ones(project, run):
    parameters = project.path / "conf" / "test" / "parameters.yml"
    before = parameters.read_text()
    parameters.write_text(before.replace("\nmethods:\n", f"\nmethods:{METHOD}", 1))

    def trained(**params):
        return project.run(until="hierarchy", method="three-phases", **params)

    try:
        run = trained()
        assert list(run.steps.values()) == [STEPS, STEPS, STEPS]
        assert [phase["stages"] for phase in run.load("hierarchy").notes["phases"]] == [
            *([1], [1], [2])
        ]
        assert "penalty.train.reconstruction" in run.mlflow.data.metrics
        assert "density.train.reconstruction" not in run.mlflow.data.metrics
        penalty = {"reconstruction": {"weight": 3.0}}
        assert list(trained(penalty=penalty).steps.values()) == [0, STEPS, STEPS]
    finally:
        parameters.write_text(before)


def write_images(folder, numbers):
    for number in numbers:
        pixels = np.random.default_rng(number).integers(0, 256, (10, 9), dtype=np.uint8)
        (folder / f"{number % 3}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number % 3}" / f"{number}.png")


def test_a_folder_of_few_gray_images_can_be_moved_but_not_changed(project, tmp_path):
    def from_folder(path, **options):
        data = {"path": str(path), "size": 8, "channels": 1}
        return project.run(dataset="folder", data=data, **options)

    write_images(tmp_path / "here", range(12))
    run = from_folder(tmp_path / "here")
    assert run.steps == BOTH
    metrics, report = run.load("metrics"), run.load("report")
    assert metrics["counts"] == {"train": 10, "test": 1, "samples": 64}
    assert metrics["bits_per_dim"]["low"] is None
    for name in ("fid", "kid", "precision", "recall"):
        assert metrics[name]["why"].startswith("not measured: there are fewer than 4 test images")
    assert (
        "The model has no p-values. Validation images for a calibration: expected at least 20"
        in report
    )
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert from_folder(tmp_path / "there", until="hierarchy").steps == NONE
    write_images(tmp_path / "there", [40])
    assert from_folder(tmp_path / "there", until="hierarchy").steps == BOTH
