"""The pipeline that restores test images."""

from functools import partial

import numpy as np
import pytest

from data.source_files import write_idx
from submanifold.inverse import baselines, comparison, restore, sampler
from submanifold.inverse.comparison import MODE, OURS
from submanifold.pipelines.restore import nodes


@pytest.fixture(scope="module", autouse=True)
def short():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "ITERATIONS", 2)
        patch.setattr(baselines, "WEIGHTS", (0.5, 1.0))
        patch.setattr(comparison, "VALID", 4)
        patch.setattr(comparison, "restore", partial(restore, iterations=6))
        patch.setattr(nodes, "IMAGES", 8)
        patch.setattr(sampler, "LEAPFROG_STEPS", 2)
        yield


@pytest.fixture(scope="module")
def run(project):
    return project.run("restore")


def test_all_methods_restore_the_same_observations(run):
    found = run.load("restore_metrics")
    assert {each["task"] for each in found.values()} == {
        *("denoise:0.1", "inpaint:3", "superresolve:4", "sense:37"),
    }
    for kind, each in found.items():
        assert {OURS, "lmmse", "pca", "total_variation", "lasso"} <= {*each["psnr"]}
        assert (MODE in each["psnr"]) == (kind != "denoise")
        assert each["psnr"][OURS]["n"] == 8
        assert each["gain"][OURS]["value"] == pytest.approx(
            each["psnr"][OURS]["value"] - each["psnr"][each["best"]]["value"]
        )
        assert 0 <= each["acceptance"] <= 1
        assert each["r_hat"] >= 1
        shares = [each["coverage"][level]["value"] for level in ("0.5", "0.8", "0.9", "0.95")]
        assert shares == sorted(shares)
    logged = run.mlflow.data.metrics["test.superresolve.psnr.lmmse"]
    assert logged == pytest.approx(found["superresolve"]["psnr"]["lmmse"]["value"])


def test_page_shows_the_images_and_commands(run):
    page, images = run.path("restore_report").read_text(), run.load("restored")
    assert images["inpaint/original"].dtype == np.uint8
    np.testing.assert_array_equal(images["inpaint/observation"][0, :, 3:5, 3:5], 0)
    for text in ("PICTURES --simulate --task=inpaint:3", "LMMSE", "error map", "Coverage"):
        assert text in page
    assert page.count("<img") == 2 + 4 * 5


def test_images_of_a_conditional_model_are_restored_given_their_labels(project, tmp_path):
    labels = [number % 3 for number in range(60)]
    folder = write_idx(tmp_path / "idx", train=labels, test=labels)
    data = {"path": str(folder), "size": 8, "margin": 0, "condition": "label",
            "counts": {"valid": 24}}  # fmt: skip
    found = project.run("restore", dataset="mnist", method="H-MM", data=data)
    assert found.load("restore_metrics")["denoise"]["psnr"][OURS]["n"] == 8
