"""Which images the nodes read: the pixels tell the split, and the first one is the group."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from splits import recorded
from strategies import initialized_glow
from submanifold.config.schema import EvaluationSettings
from submanifold.data import Events
from submanifold.data.batches import Batches, as_input
from submanifold.data.settings import ImageSettings
from submanifold.evaluation import baselines as baselines_module
from submanifold.evaluation import events as events_module
from submanifold.evaluation import illustrations
from submanifold.evaluation.baselines import PCA, fit_baselines
from submanifold.evaluation.calibration import calibrate
from submanifold.evaluation.intervals import (
    false_alarm_range,
    mean_interval,
    proportion_interval,
)
from submanifold.evaluation.samples import stored
from submanifold.inference.training_events import training_hashes
from submanifold.pipelines.evaluation import nodes
from submanifold.pipelines.ood.nodes import gather_images
from submanifold.pipelines.reporting import sections
from submanifold.pipelines.training.nodes import calibrate_model
from submanifold.plots.sheets import sheet

RNG = np.random.default_rng(0)
LEVELS = {"train": (0, 60), "valid": (60, 110), "test": (110, 160)}
COUNTS = {"train": 90, "valid": 60, "test": 48}
SPLITS = {
    name: RNG.integers(*levels, (COUNTS[name], 1, 8, 8), np.uint8)
    for name, levels in LEVELS.items()
}
TRAIN, VALID, TEST = SPLITS.values()
SAMPLES = RNG.integers(0, 256, (20, 1, 8, 8), np.uint8)


def groups_of_images(images):
    return np.asarray(images)[:, 0, 0, 0].tolist()


GROUPS = {split: groups_of_images(images) for split, images in SPLITS.items()}
EVENTS = {split: Events(images, groups=np.array(GROUPS[split])) for split, images in SPLITS.items()}


def assert_are(split, *arrays):
    low, high = LEVELS[split]
    for array in arrays:
        assert low <= np.min(array) <= np.max(array) < high


@pytest.fixture(scope="module")
def model():
    return initialized_glow(TRAIN, 6, steps=1)


def test_validation_images_and_their_groups_calibrate(model):
    data = SimpleNamespace(facts={})
    with recorded(calibrate, training_hashes) as calls:
        calibrate_model(model, data, EVENTS["train"], EVENTS["valid"], "cpu")
    for call in calls["calibrate"]:
        assert_are("valid", call["events"].x)
        assert call["events"].groups.tolist() == groups_of_images(call["events"].x)
    for call in calls["training_hashes"]:
        assert_are("train", call["train"].x)
        assert_are("valid", call["valid"].x)
    assert all(calls.values())


@pytest.mark.parametrize("is_brief", [False, True])
def test_metrics_are_of_test_images_and_their_groups(model, monkeypatch, is_brief):
    for module in (baselines_module, nodes):
        monkeypatch.setattr(module, "MEASURED", 20)
    with recorded(PCA.fit, PCA.shrink, PCA.error_curve, mean_interval) as calls:
        baselines = fit_baselines(**EVENTS)[0]
    assert_are("train", *(call["events"] for call in calls["fit"]))
    assert_are("valid", *(call["valid"] for call in calls["shrink"]))
    for call in calls["mean_interval"]:
        assert call["groups"].tolist() == GROUPS["test"]
    for call in calls["error_curve"]:
        assert_are("test", call["groups"])
    assert all(calls.values())
    arguments = {}
    for name in ("measure", "sample_quality"):
        monkeypatch.setattr(
            nodes, name, lambda *a, n=name: arguments.update({n: a}) or {"inverse_error": 0}
        )
    settings = EvaluationSettings(samples=20, volumes=2, brief=is_brief)
    scored = nodes.measure_events(model, **EVENTS, evaluation=settings, device="cpu")
    metrics, projections = nodes.evaluate(
        model,
        scored,
        EVENTS["train"],
        EVENTS["test"],
        Events(SAMPLES),
        baselines,
        {},
        0.0,
        settings,
        "cpu",
    )
    _, rows, test, *_ = arguments["measure"]
    assert_are("test", test.x)
    assert len(test) == (20 if is_brief else 48)
    of_test = rows["group"].tolist()
    assert of_test == groups_of_images(test.x)
    compared = arguments["sample_quality"]
    expected = EVENTS["train"], EVENTS["test"], SAMPLES
    assert all(a is b for a, b in zip(compared, expected, strict=False))
    counts = {"train": 90, "test": len(test), "samples": 20, "test_groups": len({*of_test})}
    assert metrics["counts"] == counts
    with torch.no_grad():
        expected = stored(model.encoder_projection(*next(iter(Batches(TEST[:16], 16)))))
    np.testing.assert_array_equal(projections, expected)


def test_events_are_those_of_each_split_with_their_groups(model, monkeypatch):
    monkeypatch.setattr(events_module, "MEASURED", 40)
    scored = events_module.measure_events(model, EVENTS, most=20)
    for split, table in scored.groupby("split"):
        images = SPLITS[split][table["number"]]
        assert len(table) == (20 if split == "test" else 40)
        assert table["group"].tolist() == groups_of_images(images)
        with torch.no_grad():
            bits = model.bits_per_dim(as_input(images)).numpy()
        # the noise differs; means of the splits differ by 0.02 to 0.11
        np.testing.assert_allclose(table["bits_per_dim"], bits, atol=1e-3)


def test_reports_read_the_scores_and_groups_of_each_split():
    numbers = RNG.permutation(48)  # of a random subset of each split
    scored = pd.concat(
        [
            pd.DataFrame(
                {
                    "split": split,
                    "number": numbers,
                    "bits_per_dim": bits,
                    "group": np.array(GROUPS[split])[numbers],
                }
            )
            for split, bits in zip(SPLITS, (-100 - numbers, 200 - numbers, numbers), strict=True)
        ]
    )
    scored["p_value"] = np.where(scored["split"] == "test", scored["number"] / 48, np.nan)
    with recorded(mean_interval, proportion_interval) as calls:
        assert sections.likelihood(scored)["means"].keys() == SPLITS.keys()
        fitted = SimpleNamespace(count=999, groups=99, smallest_p_value=0.01)
        rows = sections.alarms(scored, fitted)["rows"]
    for call, split in zip(calls["mean_interval"], SPLITS, strict=True):
        assert call["groups"].tolist() == groups_of_images(SPLITS[split][numbers])
    for call in calls["proportion_interval"]:
        assert call["groups"].tolist() == groups_of_images(TEST[numbers])
    assert [row["flagged"] for row in rows] == [5, 3, 1]  # numbers below 48 times 10%, 5% and 1%
    test_groups = len({*groups_of_images(TEST[numbers])})
    for row in rows:  # numbers of groups, not of images
        low, high = false_alarm_range(row["rate"], test_groups, 99)
        assert row["expected"] == {"low": low, "high": high}
    most, least = sections.extremes(scored, TEST)
    assert most["image"] == sheet(TEST[:16], sections.COLUMNS)
    assert least["image"] == sheet(TEST[:31:-1], sections.COLUMNS)


def test_neighbors_are_training_images_and_other_pictures_test_images(model, monkeypatch):
    shown = []
    for name in ("project_all", "project_by_dim", "interpolate", "traverse"):
        monkeypatch.setattr(
            illustrations, name, lambda _, images, *rest: shown.append(images.x) or {}
        )
    pictures = nodes.illustrate(
        model, EVENTS["train"], EVENTS["test"], Events(SAMPLES), np.empty(0), "cpu"
    )
    assert_are("test", pictures["originals"], *shown)
    for name, images in (("sample_neighbors", SAMPLES[:16]), ("test_neighbors", TEST[:16])):
        distances = np.square(images[:, None].astype(float) - TRAIN).sum((2, 3, 4))
        np.testing.assert_array_equal(pictures[name], TRAIN[distances.argmin(1)])


def test_ood_images_are_in_the_order_of_their_groups(tmp_path):
    """All pixels are the number of the folder."""
    for number in range(40):
        path = tmp_path / "in" / f"{number % 10:02d}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 20 * (number % 10), np.uint8)).save(path)
    data = ImageSettings(source="folder", path=str(tmp_path / "in"), size=8, groups="folder")
    ood = gather_images(data, tmp_path / "out", tmp_path / "raw")
    folders = [pixel // 20 for pixel in groups_of_images(ood.x)]
    assert len(folders) == 40
    assert ood.groups.tolist() == folders
