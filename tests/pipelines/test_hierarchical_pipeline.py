"""The hierarchical pipeline: outputs of a run, and which phases a changed setting trains again."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from kedro.framework.cli.project import run as kedro_run
from PIL import Image

from submanifold import Hierarchy
from submanifold.data.batches import fixed_batches
from submanifold.evaluation.intervals import mean_interval
from submanifold.evaluation.likelihood import per_event, to_bits_per_dim
from submanifold.evaluation.reconstruction import squared_errors

pytestmark = pytest.mark.pipeline

FIGURES = ("samples_figure", "samples_t07_figure", "rejection_figure", "curves_figure")
STEPS = 12
BOTH, NONE = {"stage_1": STEPS, "stage_2": STEPS}, {"stage_1": 0, "stage_2": 0}


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
        *("baselines", "metrics", "samples", "samples_t07", "projections"),
        *("metrics_table", "report", *FIGURES),
    ]
    for name in outputs:
        assert run.catalog.exists(name), name
        assert run.path(name).is_relative_to(project.path / "data"), name
    assert not [path for path in project.path.rglob("data/**/*") if "part" in path.suffix]
    hierarchy = Hierarchy.load(run.path("hierarchy"))
    assert hierarchy.event_shape == (3, 8, 8)
    assert [stage.dim for stage in hierarchy.stages] == [24, 12]
    assert run.load("stage_2.u_train").x.shape == (256, 24)


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
    for name in ("precision", "recall", "kid", "frechet_distance"):
        assert (floor[name]["n_real"], metrics[name]["n_fake"]) == (64, 64)
    assert metrics["baselines"]["pca"]["dim"] == 12
    assert has_interval(metrics["baselines"]["gaussian"]["bits_per_dim"])
    assert metrics["parameters"] == sum(p.numel() for p in run.load("hierarchy").parameters())


def test_intervals_are_over_groups_of_images(run):
    metrics, test, model = run.load("metrics"), run.load("x_test"), run.load("hierarchy")
    groups = test.groups
    errors = squared_errors(model.encoder_projection, fixed_batches(test, 64))
    assert metrics["mse"] == pytest.approx(mean_interval(errors, groups), rel=1e-4)
    log_prob = per_event(model.log_prob, fixed_batches(test, 64))
    bits = mean_interval(to_bits_per_dim(log_prob, test.x), groups)
    assert metrics["bits_per_dim"] == pytest.approx(bits, rel=1e-4)
    number = len(set(groups))
    assert 20 < number < 64
    assert {metrics["psnr"]["groups"], metrics["recall"]["groups"]} == {number}
    assert f"evaluated on 64 test images in {number} groups" in run.text()


class Tags(HTMLParser):
    """Checks that tags are closed, links are inside of the page, and images have texts."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        assert all(values.get(name, "#").startswith(("data:", "#")) for name in ("src", "href"))
        assert tag != "img" or values["alt"]
        if tag not in ("meta", "img", "br", "hr", "link", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_report_is_self_contained_and_shows_all_results(run):
    page, tags = run.path("report").read_text(encoding="utf-8"), Tags()
    tags.feed(page)
    assert tags.open == []
    assert not re.search(r"https?:|url\(|@import|<script ", page)
    assert len(page) < 5e6
    text = run.text()
    assert f"MLflow run {run.mlflow.info.run_id}" in text
    assert f"submanifold project {run.mlflow.info.run_name} new.jpg" in text
    assert "None" not in text
    assert "not measured" not in text
    for label in ("Fréchet distance", "KID", "precision", "recall"):
        assert text.count(f"{label} (EfficientNet-Lite0)") > 0
    parts = (
        "What it has learned",
        "Is it right?",
        "How good is it?",
        "Use this model",
        "All metrics on the test images",
    )
    places = [page.index(f">{part}</h2>") for part in parts]
    assert places == sorted(places)
    assert "MSE, encoder projection squared pixels in [0, 1]" in text
    assert text.count("error over PCA") >= 1
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
        "data.size": "8",
        "device": "cpu",
    }
    assert {name: data.params.get(name) for name in expected} == expected
    assert len(data.params) <= 22
    metrics = run.load("metrics")
    headlines = {name for name in data.metrics if not name.startswith("detail/")}
    names = {"core/BPD", "core/PSNR", "core/KID", "core/precision", "core/recall"}
    assert headlines == names
    view = project.mlflow_client.get_experiment(info.experiment_id).tags[
        "mlflow.sharedViewState.results"
    ]
    shown = json.loads(json.loads(view)["state"])["selectedColumns"]
    assert {column.split("`")[1] for column in shown} == {*names, "method"}
    assert data.metrics["core/BPD"] == metrics["bits_per_dim"]["value"]
    assert data.metrics["core/PSNR"] == metrics["projection_psnr"]["value"]
    assert data.metrics["detail/mse"] == metrics["mse"]["value"]
    assert data.tags["baselines.pca.mse"] == str(metrics["baselines"]["pca"]["mse"]["value"])
    assert {name: data.tags[name] for name in ("dataset", "method", "seed")} == {
        "dataset": "photos",
        "method": "H-MM",
        "seed": "0",
    }
    for name in ("bits_per_dim", "mse"):  # phases continue one another
        for number, (stage, prefix) in enumerate(zip(BOTH, ("", "code_"), strict=True)):
            history = run.load(f"{stage}.history")["valid"]
            rows = {STEPS * number + row["step"]: row[name] for row in history}
            assert run.curve(f"detail/valid.{prefix}{name}") == rows
    assert run.curve("detail/train.loss")
    assert run.artifacts >= {
        *(
            "report.html",
            "parameters.json",
            "metrics.json",
            "metrics.csv",
            "manifest.json",
            "schedule.json",
        ),
        *("samples.png", "samples_t07.png", "rejection.png", "curves.png", "scored_events.csv"),
        *BOTH,
    }
    assert [each.dataset.name for each in run.mlflow.inputs.dataset_inputs] == ["photos"]
    [model] = run.mlflow.outputs.model_outputs
    assert project.mlflow_client.get_logged_model(model.model_id).name == "model"
    beside = {"conf", "pyproject.toml", "src", ".telemetry", ".viz"}
    assert {path.name for path in project.path.iterdir()} - beside == {"data"}


def test_a_run_with_existing_phases_logs_their_curves(run, project):
    again = project.run(only_missing_outputs=True, evaluation={"dequantizations": 3})
    assert again.steps == {}
    for name in ("detail/train.loss", "detail/valid.bits_per_dim", "detail/valid.code_mse"):
        assert run.curve(name).items() <= again.curve(name).items()
    figure = again.mlflow.data.metrics["core/BPD"]
    assert figure == run.load("metrics")["bits_per_dim"]["value"]
    assert again.mlflow.outputs.model_outputs == [], "the model is in the first run"


@pytest.mark.parametrize(
    ("arguments", "only_missing"),
    [
        (["--pipeline=hierarchical", "--to-outputs=metrics"], True),
        (["--nodes=evaluation.evaluate"], False),
    ],
)
def test_kedro_run_computes_missing_outputs_and_named_nodes(
    project, monkeypatch, arguments, only_missing
):
    given = {}
    monkeypatch.setattr(kedro_run, "callback", lambda **options: given.update(options))
    code, output = project.invoke("run", "--env=test", *arguments)
    assert code == 0, output
    assert given["only_missing_outputs"] is only_missing
    for option in ("--async", "--runner=ThreadRunner"):
        code, output = project.invoke("run", "--env=test", option)
        assert (code, output.count("--runner, --async: expected the default")) == (1, 1)


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
    for name in ("frechet_distance", "kid", "precision", "recall"):
        assert metrics[name]["why"].startswith("not measured: there are fewer than 4 test images")
    assert "no p-values. Validation images for a calibration: expected at least 20" in report
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert from_folder(tmp_path / "there", until="hierarchy").steps == NONE
    write_images(tmp_path / "there", [40])
    assert from_folder(tmp_path / "there", until="hierarchy").steps == BOTH
