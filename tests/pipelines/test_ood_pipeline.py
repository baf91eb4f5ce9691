"""The ood pipeline: scores of a trained model, their accuracy and the page."""

import shutil

import numpy as np
import pytest
from click import ClickException
from PIL import Image

from submanifold.data.prepare import read_groups
from submanifold.data.settings import ImageSettings
from submanifold.evaluation.ood import measure_ood
from submanifold.models import Model
from submanifold.pipelines.ood.nodes import gather_ood


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Images of noise."""
    folder = tmp_path_factory.mktemp("ood") / "my noise"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(40):
        pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def run(project, pictures):
    return project.run("ood", method="nested", ood=str(pictures))


def test_images_have_the_shape_of_the_models_images(run):
    assert run.load("x_ood").shape == (40, 3, 8, 8)


def test_every_image_is_scored_and_every_score_is_measured(run):
    scores, measured = run.load("ood_scores"), run.load("ood_metrics")
    assert scores["part"].value_counts().to_dict() == {"normal": 64, "ood": 40}
    for each in measured["scores"].values():
        assert 0 <= each["auroc"]["low"] <= each["auroc"]["value"] <= each["auroc"]["high"] <= 1


def test_intervals_are_over_groups_of_both_parts(run):
    scores, measured = run.load("ood_scores"), run.load("ood_metrics")
    test = run.load("groups")["test"]
    assert scores["group"].tolist() == [*test, *range(40)]
    assert measured["groups"] == {"normal": len(set(test)), "ood": 40}
    assert measure_ood(scores) == measured
    page = " ".join(run.load("ood_report").split())
    assert f"over groups of images ({len(set(test))} of photos and 40 of" in page


def test_ood_images_have_the_groups_of_their_source(pictures, tmp_path):
    for number, path in enumerate(sorted(pictures.glob("*.png"))):
        folder = tmp_path / "pictures" / f"{number % 9}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    data = ImageSettings(source="folder", path=str(tmp_path / "pictures"), size=8, groups="folder")
    found = gather_ood(data, tmp_path / "out", tmp_path / "raw")
    known = read_groups(tmp_path / "out")
    expected = [*known["test"], *known["valid"], *known["train"]]
    assert len(found["images"]) == 40
    assert found["groups"] == {"ood": expected}


def test_metrics_are_logged_and_the_page_has_its_figures(run):
    measured = run.load("ood_metrics")["scores"]["combination"]["auroc"]["value"]
    assert run.mlflow.data.metrics["test.scores.combination.auroc"] == pytest.approx(measured)
    page = run.path("ood_report").read_text()
    assert "my noise" in page
    assert page.count("data:image/png") == 6


def test_model_file_contains_the_calibration(run):
    model = Model.load(run.path("hierarchy"))
    groups = len(set(run.load("groups")["valid"]))
    assert 20 < groups < 64
    assert (model.calibration["count"], model.calibration["groups"]) == (64, groups)
    assert set(model.calibration["combined"]) <= model.calibration["quantiles"].keys()


def test_repeated_run_uses_the_cache(project, run, pictures):
    before = run.path("ood_scores").stat().st_mtime_ns
    again = project.run("ood", method="nested", ood=str(pictures), only_missing_outputs=True)
    assert set(again.steps.values()) == {0}
    assert run.path("ood_scores").stat().st_mtime_ns == before


@pytest.mark.parametrize(("pipeline", "params", "message"), [
    ("ood", {}, "needs --params=ood="),
    ("ood", {"ood": "moons"}, "ood: expected a dataset"),
    ("ood", {"ood": "circle"}, "ood: expected images, got the points circle"),
    ("ood", {"ood": "photos"}, "ood: expected another dataset"),
    ("hierarchical", {"ood": "celeba"}, "ood=celeba would have no effect"),
    ("hierarchical", {"dataset": "circle", "register_as": "x"}, "register_as: expected null"),
])  # fmt: skip
def test_mistakes_are_reported(project, pipeline, params, message):
    with pytest.raises(ClickException, match=message):
        project.run(pipeline, **params)


@pytest.mark.slow
def test_model_without_a_density_detects_by_distance(project, pictures):
    stages = {"stage_1": {"dim": 24}, "stage_2": {"dim": 24}}
    run = project.run("ood", method="autoencoder", ood=str(pictures), **stages)
    scores = run.load("ood_metrics")["scores"]
    assert "density" not in scores
    assert 0 <= scores["encoder_distance"]["auroc"]["value"] <= 1
    assert run.path("ood_report").is_file()
