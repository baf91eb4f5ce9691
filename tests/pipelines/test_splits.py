"""Which images the nodes read: the pixels tell the split, and the first one is the group."""

import zlib
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from calibrated import smooth_images
from strategies import initialized_glow
from submanifold.config.schema import EvaluationSettings
from submanifold.data import Events
from submanifold.data.batches import Batches, as_input
from submanifold.data.settings import ImageSettings
from submanifold.evaluation import illustrations
from submanifold.evaluation.baselines import PCA, fit_baselines
from submanifold.evaluation.calibration import calibrate
from submanifold.evaluation.defensive import with_defensive_component
from submanifold.evaluation.events import generalization_gap, measure_events
from submanifold.evaluation.intervals import (
    false_alarm_range,
    mean_interval,
    proportion_interval,
)
from submanifold.evaluation.reconstruction import error_curve
from submanifold.evaluation.sample_quality import sample_quality
from submanifold.evaluation.samples import stored
from submanifold.pipelines.evaluation import nodes
from submanifold.pipelines.ood.nodes import gather_images
from submanifold.pipelines.reporting import sections
from submanifold.pipelines.training.nodes import calibrate_model
from submanifold.plots.sheets import sheet

RNG = np.random.default_rng(0)
LEVELS = {"train": (0, 60), "valid": (60, 110), "test": (110, 160)}
COUNTS = {"train": 600, "valid": 560, "test": 530}  # more than the 512 that are measured
SPLITS = {
    name: RNG.integers(*levels, (COUNTS[name], 1, 8, 8), np.uint8)
    for name, levels in LEVELS.items()
}
TRAIN, VALID, TEST = SPLITS.values()
MEASURED_NUMBERS = np.linspace(0, 529, 512).round().astype(int)
CPU = torch.device("cpu")
SAMPLES = RNG.integers(0, 256, (20, 1, 8, 8), np.uint8)


def groups_of_images(images):
    return np.asarray(images)[:, 0, 0, 0].tolist()


GROUPS = {split: groups_of_images(images) for split, images in SPLITS.items()}
EVENTS = {split: Events(images, groups=np.array(GROUPS[split])) for split, images in SPLITS.items()}


@pytest.fixture(scope="module")
def model():
    return initialized_glow(TRAIN, 6, steps=1)


def test_validation_images_and_their_groups_calibrate(model):
    data = SimpleNamespace(facts={"value_range": [-0.5, 0.5]})
    calibrated = calibrate_model(model, data, EVENTS["train"], EVENTS["valid"], "cpu")
    bounded = with_defensive_component(
        model.with_facts(data=data.facts), EVENTS["train"], EVENTS["valid"], CPU
    )
    expected = calibrate(bounded, EVENTS["valid"], CPU)
    hashes = sorted({zlib.crc32(image.tobytes()) for image in TRAIN})
    assert calibrated.calibration == expected | {"training": hashes}


def test_baselines_are_fitted_to_training_images_and_measured_on_test_images():
    baselines, axes = fit_baselines(**EVENTS)
    flat = {split: images.reshape(len(images), -1) / 256.0 for split, images in SPLITS.items()}
    for rows, errors in ((slice(None), baselines), (MEASURED_NUMBERS, baselines["measured"])):
        error = np.square(flat["test"][rows] - flat["train"].mean(0)).mean()
        assert errors["pca_mse"][0] == pytest.approx(error, rel=1e-2)
        assert errors["groups"] == len({*np.array(GROUPS["test"])[rows]})
    assert baselines["gaussian"]["bits_per_dim"]["groups"] == len({*GROUPS["test"]})
    assert baselines["n_train"] == len(TRAIN)
    np.testing.assert_allclose(axes[0] + 0.5, flat["train"].mean(0), atol=5e-3)


def test_validation_images_choose_the_shrinkage():
    train, valid = smooth_images(90, 0), smooth_images(60, 1)
    test = RNG.integers(0, 256, (60, 3, 8, 8), np.uint8)
    by_split = [PCA.fit(train).shrink(images).shrinkage for images in (train, valid, test)]
    assert len({*by_split}) == 3
    assert (
        fit_baselines(Events(train), Events(valid), Events(test))[0]["gaussian"]["shrinkage"]
        == by_split[1]
    )


@pytest.mark.parametrize("is_brief", [False, True])
def test_metrics_are_of_test_images_and_their_groups(model, is_brief):
    baselines = fit_baselines(**EVENTS)[0]
    settings = EvaluationSettings(samples=20, brief=is_brief)
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
    numbers = MEASURED_NUMBERS if is_brief else np.arange(len(TEST))
    groups = np.array(GROUPS["test"])[numbers]
    counts = {"train": 600, "test": len(numbers), "samples": 20, "test_groups": len({*groups})}
    assert metrics["counts"] == counts
    of_test = scored[scored["split"] == "test"]
    for name, column in (("bits_per_dim", "bits_per_dim"), ("mse", "encoder_distance")):
        expected = mean_interval(of_test[column].to_numpy(), groups)
        assert {end: metrics[name][end] for end in expected} == expected
    assert (
        metrics["curve"]["mse"]
        == error_curve(model, EVENTS["test"][numbers], baselines, CPU)["mse"]
    )
    quality = sample_quality(EVENTS["train"], EVENTS["test"], SAMPLES, None, CPU)
    assert {name: metrics[name] for name in quality} == quality
    with torch.no_grad():
        expected = stored(model.encoder_projection(*next(iter(Batches(TEST[:16], 16)))))
    np.testing.assert_array_equal(projections, expected)


def test_events_are_those_of_each_split_with_their_groups(model):
    scored = measure_events(model, EVENTS, most=20)
    for split, table in scored.groupby("split"):
        images = SPLITS[split][table["number"]]
        assert len(table) == (20 if split == "test" else 512)
        assert table["group"].tolist() == groups_of_images(images)
        with torch.no_grad():
            bits = model.bits_per_dim(as_input(images)).numpy()
        # the noise differs; means of the splits differ by 0.02 to 0.11
        np.testing.assert_allclose(table["bits_per_dim"], bits, atol=2e-3)


def test_reports_read_the_scores_and_groups_of_each_split():
    numbers = RNG.permutation(48)  # of a random subset of each split
    values = dict(zip(SPLITS, (-100 - numbers, 200 - numbers, numbers), strict=True))
    groups = {split: np.array(GROUPS[split])[numbers] for split in SPLITS}
    scored = pd.concat(
        [
            pd.DataFrame(
                {"split": split, "number": numbers, "bits_per_dim": bits, "group": groups[split]}
            )
            for split, bits in values.items()
        ]
    )
    scored["p_value"] = np.where(scored["split"] == "test", scored["number"] / 48, np.nan)
    means = {split: mean_interval(values[split], groups[split]) for split in SPLITS}
    likelihood = sections.likelihood(scored)
    assert likelihood["gap"] == generalization_gap(means)
    assert likelihood["means"] == {
        split: sections.written("bits_per_dim", mean) for split, mean in means.items()
    }
    fitted = SimpleNamespace(count=999, groups=99, smallest_p_value=0.01)
    rows = sections.alarms(scored, fitted)["rows"]
    assert [row["flagged"] for row in rows] == [5, 3, 1]  # numbers below 48 times 10%, 5% and 1%
    for row in rows:  # numbers of groups, not of images
        is_flagged = numbers / 48 <= row["rate"]
        assert row["observed"] == proportion_interval(is_flagged, groups["test"])
        low, high = false_alarm_range(row["rate"], len({*groups["test"]}), 99)
        assert row["expected"] == {"low": low, "high": high}
    most, least = sections.extremes(scored, TEST)
    assert most["image"] == sheet(TEST[:16], sections.COLUMNS)
    assert least["image"] == sheet(TEST[47:31:-1], sections.COLUMNS)


def test_neighbors_are_training_images_and_other_pictures_test_images(model):
    _, pca = fit_baselines(**EVENTS)
    pictures = nodes.illustrate(model, EVENTS["train"], EVENTS["test"], Events(SAMPLES), pca, "cpu")
    for name, images in (("sample_neighbors", SAMPLES[:16]), ("test_neighbors", TEST[:16])):
        distances = np.square(images[:, None].astype(float) - TRAIN).sum((2, 3, 4))
        np.testing.assert_array_equal(pictures[name], TRAIN[distances.argmin(1)])
    np.testing.assert_array_equal(pictures["originals"], TEST[8:16])
    expected = {
        **illustrations.project_all(model, TEST[8:16], pca),
        "interpolation": illustrations.interpolate(model, TEST[[0, 15]], 9),
        "traversal": illustrations.traverse(model, TEST),
    }
    for name, images in expected.items():
        np.testing.assert_array_equal(pictures[name], images)


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
