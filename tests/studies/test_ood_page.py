from types import SimpleNamespace

import pytest

from submanifold.evaluation.calibration import COMBINATION
from submanifold.evaluation.ood import LINEAR, LINEAR_COMBINATION, MEASURES
from submanifold.studies import ood
from submanifold.studies.targets import TARGETS, Content


def value(number):
    return {"value": number, "low": number - 0.01, "high": number + 0.01}


def run(artifacts, histories=()):
    return SimpleNamespace(load=artifacts.__getitem__, histories=lambda: list(histories))


def scored(ours, linear):
    aurocs = {"density": 0.3, COMBINATION: ours, **dict.fromkeys(LINEAR, 0.5),
              LINEAR_COMBINATION: linear}  # fmt: skip
    return {
        "counts": {"normal": 1000, "ood": 500},
        "scores": {name: dict.fromkeys(MEASURES, value(found)) for name, found in aurocs.items()},
    }


@pytest.fixture
def content():
    """Two seeds of one pair and one of another; bits of one model, padded."""
    hard, easy, *_ = ood.PAIRS
    runs = {
        hard: [run({"ood_metrics": scored(ours, 0.97)}) for ours in (0.96, 0.98)],
        easy: [run({"ood_metrics": scored(0.999, 0.99)})],
        "mnist, padded to 32 x 32": [
            run({"metrics": {"bits_per_dim": value(1.0), "dims": [1024, 500], "parameters": 12345}},
                [{"seconds": 60.0}, {"seconds": 40.0}])
        ],
    }  # fmt: skip
    return ood.make(runs, Content)


def test_each_goal_is_met_or_missed_by_so_much(content):
    hard, easy = content.tables["Goals"].to_dict("records")
    assert hard[""] == "at least 0.99: missed by 0.0200"
    assert easy[""] == "met"
    assert hard["best linear score"].endswith(f"({LINEAR_COMBINATION})")
    assert hard["combination"].startswith("0.9700 [0.8429")


def test_a_pair_has_every_score_and_says_how_many_images(content):
    (caption,) = [name for name in content.tables if name.startswith("Fashion-MNIST → MNIST")]
    assert "1,000 normal images, 500 others, 2 seeds" in caption
    table = content.tables[caption]
    assert set(table["score"]) == {"density", COMBINATION, *LINEAR, LINEAR_COMBINATION}
    assert set(content.data["seed"]) == {0, 1}


def test_bits_are_given_for_each_pixel_of_the_picture_too(content):
    (row,) = content.tables["Bits per dimension of test images"].to_dict("records")
    assert row["bits per dimension"].startswith("1.000")
    assert row["bits per pixel of 28 x 28"].startswith("1.306")
    assert row["seconds of training"] == "100"


def test_it_stands_beside_what_others_have_published(content):
    published = content.tables["Published: AUROC of outliers"]
    assert {"setting", "model", "value", "source"} <= set(published)
    assert published["source"].str.len().min() > 5


def test_models_are_trained_once_for_their_bits_and_their_scores():
    needs = TARGETS["ood"].needs
    assert set(needs) == {*ood.PAIRS, *ood.DENSITIES}
    scored, evaluated = needs["MNIST → Fashion-MNIST"], needs["mnist, padded to 32 x 32"]
    assert scored.recipe == evaluated.recipe
    assert scored.changes == (("ood", "fashion_mnist"),)
    assert evaluated.changes == ()


def test_no_interval_leaves_the_shares_there_are(content):
    hard = content.tables["Goals"].iloc[0]
    assert hard["combination"] == "0.9700 [0.8429, 1.0000]"
    assert hard["best single score, picked with the labels"] == "0.3000 [0.2900, 0.3100] (density)"


@pytest.mark.parametrize(("linear", "said"), [
    (0.9999, "makes next to no mistake"),
    (0.97, "of the model's scores density alone has 0.9600"),
    (0.91, None),
])  # fmt: skip
def test_where_a_linear_score_is_better_the_page_says_why(linear, said):
    hard, *_ = ood.PAIRS
    measured = scored(0.92, linear)
    measured["scores"]["density"] = dict.fromkeys(MEASURES, value(0.96))
    notes = ood.make({hard: [run({"ood_metrics": measured})]}, Content).notes
    reasons = [note for note in notes if note.startswith(hard)]
    assert [said in reason for reason in reasons] == ([True] if said else [])
