"""The sentences of reports that draw conclusions from numbers, and the code of the report."""

import re
from functools import partial, reduce

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from calibrated import calibrated_model, conditional_rows, conditional_table_model
from pages import cells
from pages import pictures as rows_of_images
from submanifold.data.events import Events
from submanifold.evaluation.calibration import Calibration
from submanifold.evaluation.intervals import plus_minus
from submanifold.evaluation.metrics import METRICS, NONE, SUBSET, format_value
from submanifold.evaluation.ood import ANOMALY, LINEAR, LINEAR_COMBINATION, MEASURES, NORMAL, OOD
from submanifold.flows import RealNVP, context_of
from submanifold.models import Hierarchy, Stage
from submanifold.pipelines.ood.nodes import write_page
from submanifold.pipelines.ood.sections import score_rows, thresholds
from submanifold.pipelines.reporting import nodes
from submanifold.pipelines.reporting.sections import (
    alarms,
    extremes,
    likelihood,
    quality,
    warnings,
)
from submanifold.plots.pages import render
from submanifold.plots.sheets import sheet

RNG = np.random.default_rng(0)
SCORES = {"density": RNG.standard_normal(400)}
CALIBRATION = Calibration.fit(SCORES, ("density",))


def scored(shift=0.0, count=400, p_values=None):
    tables = [
        pd.DataFrame(
            {
                "split": split,
                "group": range(count),
                "bits_per_dim": 3 + offset + 0.2 * RNG.standard_normal(count),
            }
        )
        for split, offset in (("train", 0.0), ("valid", shift), ("test", shift))
    ]
    tables[2]["p_value"] = np.linspace(0, 1, count) if p_values is None else p_values
    return pd.concat(tables)


@pytest.mark.parametrize(
    ("shift", "count", "conclusion"),
    [
        (0.3, 400, "it overfits"),
        (-0.3, 400, "the splits differ"),
        (0.3, 1, "too few images"),
    ],
)
def test_overfitting_is_concluded_from_the_interval(shift, count, conclusion):
    about = {"likelihood": likelihood(scored(shift, count)), "metrics": {"counts": {}}}
    assert conclusion in render("gap.html", **about)


def test_extreme_images_are_the_most_and_the_least_likely_ones():
    table = pd.DataFrame({"split": "test", "number": [0, 1, 2, 3], "bits_per_dim": [4.0, 2, 3, 5]})
    test = RNG.integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)
    most, least = extremes(table, test)
    for entry, *expected, numbers in (
        (most, "Most likely test images", "2.00 to 3.00 bits per dimension", [1, 2]),
        (least, "Least likely test images", "4.00 to 5.00 bits per dimension", [3, 0]),
    ):
        assert [entry["name"], entry["text"]] == expected
        assert entry["image"] == sheet(test[numbers], 8)


def test_anomalous_rows_are_listed_with_their_columns():
    about = {"row": 1234, "p_value": 0.0051, "nll": 12.3456}
    explained = pd.DataFrame(
        [
            {**about, "column": "age", "value": "93", "contribution": 12.34, "usual": "41"},
            {**about, "column": "city", "value": "Rome", "contribution": 0.5, "usual": "Bern"},
            {**about, "column": "x", "value": "1", "contribution": 0.0, "usual": "1"},
            {**about, "row": 7, "column": "age", "value": "30", "contribution": 0.0, "usual": "30"},
        ]
    )
    assert cells(render("anomalies.html", anomalies=explained, number=format_value)) == [
        ["row", "p-value", "log-density", "columns"],
        ["1234", "0.0051", "-12.35", "age = 93 (+12.3 with 41); city = Rome (+0.5 with Bern)"],
        ["7", "0.0051", "-12.35", "no single column"],
    ]
    explained = explained.assign(p_value=np.nan)
    without = cells(render("anomalies.html", anomalies=explained, number=format_value))
    assert without[0] == ["row", "log-density", "columns"]


@pytest.mark.parametrize(
    ("power", "sentence"),
    [
        (1.0, "All rates of false alarms are in the ranges of normal images."),
        (0.3, "Fewer test images are flagged than promised at 10%, 5%"),
        (4.0, "More test images are flagged than promised at 10%, 5%, 1%"),
    ],
)
def test_false_alarms_are_compared_with_those_of_normal_images(power, sentence):
    about = {
        "calibration": {},
        "fitted": CALIBRATION,
        "metrics": {"counts": {}},
        "events": "images",
    }

    def section(p_values):
        found = alarms(scored(p_values=p_values), CALIBRATION)
        return render("false_alarms.html", alarms=found, **about)

    page = section(np.linspace(0.003, 1, 400) ** power)
    assert sentence in page
    assert cells(page)[2][3] == "2.2% to 8.2%"
    assert [row[0] for row in cells(page)[1:]] == ["10%", "5%", "1%"]
    at_most = cells(section(np.arange(1, 401) / 400))[1:]
    assert [row[1] for row in at_most] == ["40 of 400", "20 of 400", "4 of 400"]
    assert [row[2] for row in at_most] == ["10.0%", "5.0%", "1.0%"]
    assert "400 images for validation" in page
    assert alarms(scored(), None) is None
    assert alarms(scored().drop(columns="p_value"), CALIBRATION) is None


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("images", calibrated_model),
        ("table", conditional_table_model),
        ("synthetic", lambda: Hierarchy([Stage(RealNVP(2), dim=1)]).eval()),
    ],
)
def test_the_code_of_the_report_runs(tmp_path, monkeypatch, kind, make):
    monkeypatch.chdir(tmp_path)
    model, scope = make(), {}
    model.save("model.safetensors")
    Image.fromarray(np.zeros((9, 12, 3), np.uint8)).save("a.jpg")
    conditional_rows(20, 0).to_csv("table.csv", index=False)
    np.save("points.npy", np.zeros((3, 2), np.float32))
    about = {"run": {"model": "model.safetensors"}, "kind": kind, "context": context_of(model)}
    about |= {"has_density": True, "is_calibrated": Calibration.of(model) is not None}
    about["has_condition"] = "condition" in model.data
    exec(render("python.html", **about), scope)
    assert len(scope["u"]) == len(scope["projections"]) == len(scope["x"])
    assert len(scope["samples"]) == (20 if kind == "table" else 64)


@pytest.mark.parametrize(
    ("encoder", "nearest", "warns"),
    [
        (0.8, 0.5, False),
        (2.5, 0.9, False),
        (1.9, 1.5, False),
        (2.1, 1.01, True),
    ],
)
def test_errors_above_those_of_pca_are_a_warning(encoder, nearest, warns):
    metrics = {"encoder_mse": {"value": encoder}, "nearest_mse": {"value": nearest}}
    pca = {"mse": {"value": 1.0}}
    found = warnings(metrics | {"baselines": {"pca_subset": pca}})
    assert len(found) == warns
    assert not warnings(metrics | {"baselines": {"pca_subset": {"why": "too few"}}})


def test_the_table_of_quality_compares_with_references():
    curve = {
        "dims": [2, 5, 8],
        "pca_mse": [0.4, 0.3, 0.2],
        "n": 32,
        "variance": None,
        "nearest_dims": [2, 5, 8],
        "nearest_mse": [0.2, None, 0.01],
    }
    metrics = {
        "bits_per_dim": plus_minus(1.3, 0.01),
        "nearest_psnr": plus_minus(20.0, 0.1),
        "kid": plus_minus(0.5, 0.1),
        "training_images": {"kid": plus_minus(0.1, 0.01)},
        "recall": plus_minus(0.6, 0.1),
        "dims": [64, 8],
        "curve": curve,
        "baselines": {"gaussian": {"bits_per_dim": plus_minus(5.4, 0.01)}},
        "seconds": {"training": 61.0, "evaluation": 12.0},
    }
    rows = {row["name"]: (row["value"], row["reference"]) for row in quality(metrics)}
    assert rows == {
        "BPD": ("1.300 [1.290, 1.310]", "Gaussian: 5.400"),
        "error over PCA's": ("0.5 at d = 2, 0.05 at d = 8", "PCA: 1"),
        "PSNR, nearest projection, dB": ("20.00 [19.90, 20.10]", NONE),
        "KID": ("0.50 [0.40, 0.60]", "training images: 0.100"),
        "recall": ("0.60 [0.50, 0.70]", NONE),
        "training (s)": ("61", "evaluation: 12"),
    }
    assert all(row["help"] for row in quality(metrics))


def measured(auroc, linear=0.5, false_alarms=0.05, detected=0.9, expected=0.02):
    """Measures of scores with an interval of +- 0.05."""
    linears = dict.fromkeys((*LINEAR, LINEAR_COMBINATION), linear)
    values = {"density": 0.4, ANOMALY: auroc, **linears}
    scores = {
        name: dict.fromkeys(MEASURES, plus_minus(value, 0.05)) for name, value in values.items()
    }
    rates = {"false_alarms": plus_minus(false_alarms, 0.02), "detected": plus_minus(detected, 0.03)}
    rates["expected"] = plus_minus(0.05, expected)
    return {"scores": scores, "alarms": [{"rate": rate, **rates} for rate in (0.1, 0.05)]}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (measured(0.52), ["includes 0.5"]),
        (measured(0.3, linear=0.6), ["have lower anomaly scores", "A linear score is better"]),
        (
            measured(0.8, linear=0.95),
            ["A linear score is better: pca_distance has an AUROC of 0.95"],
        ),
        (measured(0.9, detected=0.3), ["70% of the “noise” images are missed at --alpha=5%."]),
        (measured(0.9, false_alarms=0.08), ["more false alarms than promised at 10%, 5%"]),
        (measured(0.9, false_alarms=0.08, expected=0.04), []),
    ],
)
def test_warnings_follow_from_the_intervals(given, expected):
    about = {"alarms": given["alarms"], "dataset": "mnist", "ood": "noise"}
    page = render("ood_warnings.html", rows=score_rows(given), events="images", **about)
    found = re.findall(r'<p class="warning">(.*?)</p>', page)
    assert len(found) == len(expected)
    assert all(text in warning for text, warning in zip(expected, found, strict=True))


def test_the_ood_page_has_numbers_and_images_under_their_names(tmp_path):
    """All numbers and images are distinct."""
    pictures = {part: RNG.integers(0, 256, (20, 3, 8, 8), dtype=np.uint8) for part in (NORMAL, OOD)}
    about = measured(0.9, false_alarms=0.08, detected=0.7)
    about["counts"] = {NORMAL: 31, OOD: 32}
    about["alarms"][1]["detected"] = plus_minus(0.6, 0.03)
    about["scores"]["encoder_distance"] = {}
    for number, values in enumerate(about["scores"].values()):
        values |= {
            key: plus_minus(0.1 * (n + 1) + 0.01 * number, 0.005) for n, key in enumerate(MEASURES)
        }
    order = {part: RNG.permutation(20) for part in pictures}  # the most anomalous first
    tables = []
    for part, shift in ((NORMAL, 0), (OOD, 5)):
        anomaly = np.zeros(20)
        anomaly[order[part]] = np.arange(20, 0, -1) + shift
        table = pd.DataFrame(dict.fromkeys(about["scores"], anomaly))
        tables.append(table.assign(part=part, **{f"p_{ANOMALY}": (21 + shift - anomaly) / 100}))
    scored = pd.concat(tables, ignore_index=True)
    assert thresholds(scored, about) == {"10%": 11.0, "5%": 16.0}
    page = write_page(
        scored,
        about,
        Events(pictures[NORMAL]),
        Events(pictures[OOD]),
        "in",
        "out",
        calibrated_model(),
        tmp_path / "model",
    )["page"]
    assert "31 in-distribution (in, test) and 32 out-of-distribution (out) images" in page
    rates = [row for row in cells(page) if len(row) == 3]
    assert rates == [
        ["promised rate", "false alarms", "detected"],
        ["10%", "8.0%", "70.0%"],
        ["5%", "8.0%", "60.0%"],
    ]
    head, *table = [row for row in cells(page) if len(row) == 4]
    assert head == ["score", *MEASURES.values()]
    assert [name.split()[0] for name, *_ in table] == [*about["scores"]][::-1]
    for name, *numbers in table:
        values = [value["value"] for value in about["scores"][name.split()[0]].values()]
        assert [float(number) for number in numbers] == pytest.approx(values)
    first, last = "0.01 to 0.16; 5", "0.05 to 0.2; 15"
    expected = [
        ("“in”, most anomalous", first, "false alarms", pictures[NORMAL][order[NORMAL]]),
        ("“out”, least anomalous", last, "missed", pictures[OOD][order[OOD][::-1]]),
        ("“out”, most anomalous", first, "detected", pictures[OOD][order[OOD]]),
    ]
    for row, (label, numbers, word, images) in zip(rows_of_images(page), expected, strict=True):
        assert row[:2] == (label, f"p-values {numbers} of these 16 are {word} at 5%")
        assert np.array_equal(*row[2], sheet(images[:16], 8))


def nested(values):
    """A mapping of names with dots as nested mappings."""
    tree = {}
    for name, value in values.items():
        *parents, last = name.split(".")
        reduce(lambda branch, parent: branch.setdefault(parent, {}), parents, tree)[last] = value
    return tree


def test_pca_is_compared_on_the_images_of_the_projections():
    """The table has PCA's error of all test images only below that of all encoder projections."""
    metrics = nested(
        {name: plus_minus(1 + 0.01 * n, 0.001) | {"n": 18} for n, name in enumerate(METRICS)}
    )
    metrics["baselines"] |= {
        "gaussian": {},
        "pca": {"mse": {"value": 0.25}},
        "pca_subset": {"mse": {"value": 0.5}},
    }
    metrics |= {"dims": [192, 16], "counts": {"test": 20}, "features": "pixels"}
    table = nodes.make_table(metrics, calibrated_model(), "Glow").set_index("model")
    of_pca = table.loc["PCA, d = 16"]
    assert of_pca[METRICS["mse"].label] == "0.25000"
    for name in ("encoder_mse", "projection_mse", "nearest_mse"):
        assert of_pca[METRICS[name].label.replace(SUBSET, " (18 images)")] == "0.50000"


def test_the_report_has_numbers_and_images_under_their_names(tmp_path):
    """All numbers and images are distinct."""
    shape, count = (3, 8, 8), {"train": 30, "valid": 10, "test": 20}
    noise = partial(RNG.integers, 128, dtype=np.uint8)
    originals, *pairs = (noise(size=(n, *shape)) for n in (8, 20, 20, 20, 16))
    test, samples, cool, encoded = pairs
    kinds = {
        name: originals + 8 * n
        for n, name in enumerate(("originals", "default", "encoder", "nearest", "pca"))
    }
    illustrations = kinds | {
        "sample_neighbors": samples[:16] + 16,
        "test_neighbors": test[:16] + 64,
        "by_dim_dims": np.array([2]),
        "by_dim_nearest": originals[None] + 2,
        "by_dim_pca": originals[None] + 4,
        "interpolation": noise(size=(9, *shape)),
        "traversal": noise(size=(2, 7, *shape)),
        "by_class": noise(size=(2, 8, *shape)),
    }
    numbers = {split: RNG.permutation(n) for split, n in count.items()}
    scored = pd.concat(
        [
            pd.DataFrame(
                {
                    "split": split,
                    "number": number,
                    "group": number,
                    "bits_per_dim": start + number / 100,
                    "encoder_mse": 1.0,
                    "p_value": 0.5,
                }
            )
            for start, (split, number) in enumerate(numbers.items(), 1)
        ],
        ignore_index=True,
    )
    extra = {"n": 18, "n_real": 18, "draws": 19}
    metrics = nested(
        {name: plus_minus(1 + 0.01 * n, 0.001) | extra for n, name in enumerate(METRICS)}
    )
    metrics["baselines"]["gaussian"] = {"bits_per_dim": plus_minus(7.0, 0.01), "shrinkage": 0.1}
    curve = {
        "dims": [2, 16],
        "mse": [0.2, 0.1],
        "pca_mse": [0.3, 0.2],
        "nearest_dims": [2, 16],
        "nearest_mse": [0.15, 0.05],
        "variance": None,
        "n": 5,
        "smallest": {"20 dB": 2},
    }
    metrics |= {
        "dims": [192, 16],
        "parameters": 77,
        "warnings": [],
        "curve": curve,
        "counts": count,
        "features": "inception",
        "seconds": {"training": 61.0, "evaluation": 62.0},
    }
    losses = [{"step": step, "loss": 1.0} for step in (1, 2)]
    history = {
        "name": "density",
        "stages": [1],
        "terms": ["likelihood"],
        "steps": 51,
        "best_step": 52,
        "seconds": 53,
        "rollbacks": 54,
        "train": losses,
        "valid": losses,
    }
    manifest = {
        "source": "photos",
        "counts": {"train": 31, "valid": 32, "test": 33},
        "size": 8,
        "groups": {"train": 11, "valid": 12, "test": 13},
        "channels": 3,
        "split": "random",
        "skipped_count": 14,
        "hash": "",
        "split_note": "",
        "skipped": [],
    }
    model = calibrated_model()
    table = nodes.make_table(metrics, model, "Glow")
    page = nodes.report_images(
        metrics,
        model,
        {"density": history},
        Events(test),
        Events(samples),
        Events(cool),
        encoded,
        illustrations,
        scored,
        table=table,
        model_file=str(tmp_path / "model"),
        manifest=manifest,
        dataset="photos",
        method="Glow",
        seed=0,
        device="cpu",
    )["report"]
    text = " ".join(re.sub(r"<[^>]*>", " ", page).split())
    for sentence in (
        "evaluated on 20 test images",
        "BPD 1.0000 [0.9990, 1.0010] Gaussian: 7.000",
        "0.5 at d = 2, 0.25 at d = 16 PCA: 1",
        "durations density 53 s, evaluation 62 s",
        "0.06 for these samples and 0.25 for as many test images",
        "Training images have 1.145, validation images 2.045 and test images 3.095 bits per "
        "dimension on average; a Gaussian with full covariance has 7.000 on test images. Test "
        "minus training: +1.950",
        "density 1 likelihood 51 52 53 54",
        "31 training, 32 validation and 33 test images",
        "11 training, 12 validation and 13 test groups",
        "14 files skipped",
    ):
        assert sentence in text
    by_name = {row[0]: row[1:] for row in cells(page)}
    assert by_name["phase"][2:] == ["steps", "best step", "seconds", "rollbacks"]
    for name in table.columns[1:]:
        assert by_name[name] == [text.partition(" [")[0] for text in table[name]]
    errors = [f"MSE {(n / 32) ** 2:.2g}, PSNR {-20 * np.log10(n / 32):.1f} dB" for n in range(1, 5)]
    names = ("original", "default projection", "encoder projection", "nearest projection", "PCA")
    changed = illustrations["traversal"][:, ::2].reshape(-1, *shape)
    expected = {name: (images, 8) for name, images in zip(names, kinds.values(), strict=True)} | {
        "Temperature 0.7": (cool, 16),
        "Temperature 1": (samples, 16),
        "Label 0": (illustrations["by_class"][0], 8),
        "Label 1": (illustrations["by_class"][1], 8),
        "Interpolation": (illustrations["interpolation"], 9),
        "Traversal": (changed, 4),
        "Most likely test images": (test[:10], 8),
        "Least likely test images": (test[:9:-1], 8),
    }
    shown = {label: (text, pictures) for label, text, pictures in rows_of_images(page)}
    assert [shown[name][0] for name in names] == ["", *errors]
    for label, (images, columns) in expected.items():
        assert np.array_equal(shown[label][1][0], sheet(images, columns)), label
    for label, images in (("samples", samples), ("nearest training images", samples + 16)):
        blocks = [sheet(images[:8], 8), sheet(images[8:16], 8)]
        assert all(map(np.array_equal, shown[label][1], blocks)), label
    residuals = shown["original, projection, difference, edges"][1]
    for number, images in ((0, test), (1, encoded)):  # in rows of 16 images, four of each
        left = 9 * number
        np.testing.assert_array_equal(
            residuals[0][:8, left : left + 8], images[0].transpose(1, 2, 0)
        )
