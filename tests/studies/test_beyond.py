from types import SimpleNamespace

import pandas as pd
import pytest

from submanifold.studies import beyond
from submanifold.studies.targets import TARGETS, Content


def value(number, half=0.01):
    return {"value": number, "low": number - half, "high": number + half}


def measured(dim, bpd, encoder, nearest, pca=0.01, before=None):
    return {
        "dim": dim, "bpd": value(bpd), "pca": value(pca), "seconds": 100.0, "n": 256, "n_test": 799,
        "before": before,
        "encoder": {"mse": value(encoder), "psnr": value(20.0)},
        "nearest": {"mse": value(nearest), "psnr": value(25.0)},
        "precision": value(0.5), "recall": value(0.5), "kid": value(0.1),
    }  # fmt: skip


FIGURES = {
    beyond.OURS: {100: (3.30, 0.012, 0.007), 500: (3.30, 0.020, 0.009), 1000: (3.30, 0.010, 0.011)},
    "Glow-rotated": dict.fromkeys(beyond.DIMS, (3.27, 0.5, 0.1)),
}


@pytest.fixture
def runs(monkeypatch, tmp_path):
    """One seed of two methods on CelebA, measured as FIGURES says; nothing is trained."""

    def measure(experiment, row):
        before = 3.285 if experiment.name == beyond.OURS else None
        found = FIGURES[experiment.name].items()
        return [measured(dim, *each, before=before) for dim, each in found]

    monkeypatch.setattr(beyond, "measure", measure)
    monkeypatch.setattr(beyond, "measure_pca", lambda *_: [measured(100, 5.0, 0.01, 0.01)])
    monkeypatch.setattr(beyond, "_samples", lambda experiment: None)
    return {f"celeba: {name}": [SimpleNamespace(name=name, project=tmp_path)] for name in FIGURES}


def test_each_goal_says_what_was_reached_and_by_how_much_it_is_missed(runs):
    goals = beyond.make(runs, Content).tables["celeba, the goals"].set_index("goal")
    reached = goals["reached"].to_dict()
    assert reached["BPD above the plain Glow's"] == "+0.030"
    assert reached["… before the penalty, for less time of likelihood"] == "+0.015"
    assert reached["MSE of the nearest point, of PCA's, d = 100"] == "0.70"
    verdicts = goals[""].to_dict()
    assert verdicts["BPD above the plain Glow's"] == "missed by +0.020"
    assert verdicts["MSE of the nearest point, of PCA's, d = 100"] == "met"
    assert verdicts["MSE of the nearest point, of PCA's, d = 500"] == "missed by 0.10"
    assert verdicts["MSE of the encoder, of PCA's, d = 500"] == "missed by 0.50"


def test_bits_are_compared_seed_by_seed(runs, tmp_path):
    first = beyond.make(runs, Content).data
    record = tmp_path / beyond.RECORD
    record.parent.mkdir()
    better = first[first["row"].isin([beyond.MAIN, beyond.ROWS[0].name])].copy()
    better["bpd"] += better["row"].map({beyond.MAIN: -0.51}).fillna(-0.5)
    alone = first[first["row"] == beyond.MAIN].assign(seed=2, bpd=9.0)
    pd.concat([better.assign(seed=1), alone]).to_csv(record, index=False)
    goals = beyond.make(runs, Content).tables["celeba, the goals"].set_index("goal")
    above = goals.loc["BPD above the plain Glow's"]
    assert above["seeds"] == 2
    assert above["reached"] == "+0.025 [-0.039, +0.089]"


def test_what_was_measured_before_stands_where_there_is_no_run(runs, tmp_path):
    first = beyond.make(runs, Content)
    record = tmp_path / beyond.RECORD
    record.parent.mkdir()
    first.data.assign(seed=1, bpd=first.data["bpd"] + 0.02).to_csv(record, index=False)
    content = beyond.make(runs, Content)
    table = content.tables["celeba"]
    ours = table[(table["method"] == beyond.MAIN) & (table["d"] == 500)].iloc[0]
    assert ours["seeds"] == 2
    assert ours["BPD"].startswith("3.310 [")
    assert "Not run on photos yet: Glow, by likelihood" in "".join(content.notes)
    assert f"{len(first.data)} lines of the data were measured before" in content.notes[-1]


def test_what_this_machine_has_measured_goes_before_the_record(runs, tmp_path):
    first = beyond.make(runs, Content)
    record = tmp_path / beyond.RECORD
    record.parent.mkdir()
    first.data.assign(bpd=9.9).to_csv(record, index=False)
    content = beyond.make(runs, Content)
    assert content.data["bpd"].max() == 5.0
    assert not any("measured before" in note for note in content.notes)


def test_every_row_of_the_table_has_experiments_on_every_data_set_or_on_celeba():
    labels = set(TARGETS["beyond"].needs)
    for row in (*beyond.ROWS, beyond.PCA_ROW):
        assert f"celeba: {row.run}" in labels
    assert {label.partition(": ")[2] for label in labels} == {row.run for row in beyond.ROWS}
