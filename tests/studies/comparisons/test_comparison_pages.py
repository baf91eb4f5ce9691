from types import SimpleNamespace

import pandas as pd
import pytest

from submanifold.data.synthetic import MANIFOLDS
from submanifold.evaluation.calibration import COMBINATION
from submanifold.evaluation.ood import LINEAR, LINEAR_COMBINATION, MEASURES
from submanifold.studies import pages
from submanifold.studies.comparisons import beyond, ood, pca_flow, related
from submanifold.studies.reproduce import TARGETS, plan


def interval(value, half=0.01):
    return {"value": value, "low": value - half, "high": value + half}


def beyond_measures(bpd, encoder, nearest, **more):
    values = {"bits_per_dim": bpd, "encoder": encoder, "nearest": nearest, "pca": 0.01}
    found = {name: interval(value) for name, value in values.items()}
    return found | more | {"seconds": {"value": 100.0}}


BEYOND = {
    beyond.OURS: {
        dim: beyond_measures(3.30, *errors, before={"value": 3.285})
        for dim, errors in {100: (0.012, 0.007), 500: (0.02, 0.009), 1000: (0.01, 0.011)}.items()
    },
    "Glow-rotated": {dim: beyond_measures(3.27, 0.5, 0.1) for dim in beyond.DIMS},
}


def point_measures(nearest=None, divergence=None):
    values = {"divergence": divergence, "nearest_distance": nearest, "data_distance": 0.1}
    found = {name: interval(value, 0.001) for name, value in values.items() if value is not None}
    return found | {"seconds": {"value": 10.0}}


RELATED = {
    "circle: nested (ours)": point_measures(0.06, 0.09),
    "circle: density-first (ours)": point_measures(0.05, 0.08),
    "circle: two charts": point_measures(0.01, 0.02),
    "circle: Trumpet": point_measures(0.02),
    "circle: SoftFlow": point_measures(None, 0.01),
    "paraboloid: nested (ours)": point_measures(0.01, 0.02),
    "paraboloid: density-first (ours)": point_measures(0.015, 0.03),
    "paraboloid: two charts": point_measures(0.02, 0.01),
}


def scored(ours, linear, density=0.3):
    aurocs = {"density": density, COMBINATION: ours, **dict.fromkeys(LINEAR, 0.5),
              LINEAR_COMBINATION: linear}  # fmt: skip
    return {
        "counts": {"normal": 1000, "ood": 500},
        "scores": {name: dict.fromkeys(MEASURES, interval(v) | {"n": 1500})
                   for name, v in aurocs.items()},
    }  # fmt: skip


def run(name="", histories=(), **artifacts):
    return SimpleNamespace(name=name, load=artifacts.get, histories=lambda: list(histories))


HARD, EASY, *_ = ood.PAIRS
METRICS = {"bits_per_dim": interval(1.0), "dims": [1024, 500], "parameters": 12345}
OOD_RUNS = {
    HARD: [run(ood_metrics=scored(ours, 0.97)) for ours in (0.96, 0.98)],
    EASY: [run(ood_metrics=scored(0.999, 0.99))],
    "mnist, padded to 32 x 32": [
        run(metrics=METRICS, histories=[{"seconds": 60.0}, {"seconds": 40.0}])
    ],
}
BEYOND_RUNS = {f"celeba: {name}": [run(name, x_test=range(799))] for name in BEYOND}
RELATED_RUNS = {name: [run(name)] for name in RELATED}
RUNS = {"beyond": BEYOND_RUNS, "related": RELATED_RUNS, "ood": OOD_RUNS}


@pytest.fixture(autouse=True)
def nothing_is_trained(monkeypatch):
    flow = beyond_measures(5.0, 0.01, 0.01)
    monkeypatch.setattr(beyond, "measure", lambda run, row: BEYOND[run.name])
    monkeypatch.setattr(pca_flow, "measure_pca_flow", lambda *_: flow)
    monkeypatch.setattr(beyond, "_samples", lambda run: None)
    monkeypatch.setattr(related, "measure_one", lambda run, images: RELATED[run.name])


def content(name, record=None):
    return TARGETS[name].make(RUNS[name], record)


@pytest.mark.parametrize("name", RUNS)
def test_records_fill_in_for_missing_runs_only(name, tmp_path):
    measured = content(name).data
    measured.to_csv(tmp_path / "record.csv", index=False)
    record = pd.read_csv(tmp_path / "record.csv")
    again = content(name, record.assign(value=9.9))
    pd.testing.assert_frame_equal(again.data, measured, check_dtype=False)
    assert not any("measured earlier" in note for note in again.notes)
    more = content(name, record.assign(seed=record["seed"] + 5))
    assert len(more.data) == 2 * len(measured)
    assert f"{len(measured)} results were measured earlier" in more.notes[-1]


@pytest.mark.parametrize("name", RUNS)
def test_pages_are_made_from_the_record_alone(name):
    first = content(name)
    recorded = TARGETS[name].make({}, first.data)
    for caption, table in recorded.tables.items():
        if caption in first.tables:
            pd.testing.assert_frame_equal(table, first.tables[caption])
    assert len(recorded.data) == len(first.data)


@pytest.mark.parametrize(("name", "note"), [
    ("beyond", "Not run on photos: Glow, coarsest"),
    ("related", "Not run on circle: PCA, then a flow"),
    ("ood", "Not run on CelebA → rooms"),
])  # fmt: skip
def test_missing_systems_are_noted(name, note):
    assert any(each.startswith(note) for each in content(name).notes)


def test_beyond_compares_the_main_method_with_each_goal():
    goals = content("beyond").tables["celeba, the goals"].set_index("goal")
    found = goals[["reached", ""]].apply(tuple, axis=1).to_dict()
    assert found == {
        "BPD above the plain Glow's": ("+0.030", "missed by +0.020"),
        "… before the penalty, after less likelihood training": ("+0.015", ""),
        "MSE / MSE of PCA, nearest projection, d = 100": ("0.70", "met"),
        "MSE / MSE of PCA, encoder projection, d = 100": ("1.20", "met"),
        "MSE / MSE of PCA, nearest projection, d = 500": ("0.90", "missed by 0.10"),
        "MSE / MSE of PCA, encoder projection, d = 500": ("2.00", "missed by 0.50"),
        "MSE / MSE of PCA, nearest projection, d = 1000": ("1.10", "missed by 0.10"),
        "MSE / MSE of PCA, encoder projection, d = 1000": ("1.00", "met"),
    }


def test_beyond_compares_and_averages_over_seeds():
    first = content("beyond").data
    other = first.copy()
    is_bits = other["measure"] == "bits_per_dim"
    shift = other["row"].map({beyond.MAIN: -0.01}).fillna(0.0) - 0.5
    other["value"] += shift.where(is_bits, 0.0)
    alone = first[first["row"] == beyond.MAIN].assign(seed=2)
    tables = content("beyond", pd.concat([other.assign(seed=1), alone])).tables
    above = tables["celeba, the goals"].set_index("goal").loc["BPD above the plain Glow's"]
    assert above["seeds"] == 2, "the seeds of both methods"
    assert above["reached"] == "+0.025 [-0.039, +0.089]"
    ours = tables["celeba"].set_index(["method", "d"]).loc[(beyond.MAIN, 500)]
    assert ours["seeds"] == "3"
    assert ours["BPD"].startswith("3.13 [")


def test_related_counts_manifolds_and_densities_below_the_thresholds():
    tables = content("related").tables
    rows = tables["What each system finds, and its cost"].set_index("system").to_dict("index")
    ours, charts = rows["nested (ours)"], rows["two charts"]
    assert (ours["manifolds found"], ours["not found"]) == ("1 of 2", "circle")
    assert ours["densities found"] == "2 of 2"
    assert (charts["manifolds found"], charts["not found"]) == ("2 of 2", "")
    assert rows["Trumpet"]["densities found"] == "not available"
    assert rows["SoftFlow"]["manifolds found"] == "not available"
    circle = tables["circle"].set_index("system")
    assert circle.loc["SoftFlow", "nearest projection to the true one"] == "–"
    assert circle.loc["Trumpet", "nats above the truth"] == "–"


def test_what_has_no_measurement_is_not_found(monkeypatch):
    monkeypatch.setitem(RELATED, "circle: PIE", point_measures())
    runs = RELATED_RUNS | {"circle: PIE": [run("circle: PIE")]}
    table = TARGETS["related"].make(runs).tables["What each system finds, and its cost"]
    counts = table.set_index("system").loc["PIE", ["manifolds found", "densities found"]]
    assert counts.tolist() == ["0 of 1", "0 of 1"]


def test_related_notes_the_systems_that_dominate_ours():
    notes = content("related").notes
    assert "circle: nested (ours) is not on the frontier; better in both: two charts." in notes
    on = [note for note in notes if "is on the frontier" in note]
    assert on == ["paraboloid: nested (ours) is on the frontier of density and manifold."]


def test_related_shows_the_smallest_seconds():
    first = content("related").data
    slower = first.assign(seed=1, value=3 * first["value"])
    row = content("related", slower).tables["circle"].set_index("system").loc["two charts"]
    assert (row["seeds"], row["seconds"]) == ("2", "10")


def test_related_trains_every_system_on_every_manifold_where_it_differs():
    labels = set(TARGETS["related"].needs)
    for manifold, kind in MANIFOLDS.items():
        absent = [name for name in related.SYSTEMS if f"{manifold}: {name}" not in labels]
        assert absent == (["principal flow", "canonical flow"] if kind.dim == 1 else [])
    assert "CelebA, d = 500: rectangular flow" not in labels
    assert "Fashion-MNIST, d = 20: rectangular flow" in labels


@pytest.mark.parametrize("data", ["circle", "linear_gaussian", "Fashion-MNIST, d = 64"])
def test_the_settings_of_every_related_system_are_valid(project, data):
    dim = related.IMAGES[data]["dim"] if data in related.IMAGES else MANIFOLDS[data].dim
    for label, (each,) in plan(["related"], project.path)["related"].items():
        name, _, system = label.partition(": ")
        if name == data:
            stages = each.settings.model.stages
            assert stages[-1].dim == dim or system == "SoftFlow"


def test_ood_compares_the_combination_with_its_goal_and_linear_scores():
    tables = content("ood").tables
    assert any("1,000 normal images, 500 others, 2 seeds" in caption for caption in tables)
    hard, easy = tables["Goals"].to_dict("records")
    assert hard[""] == "at least 0.99: missed by 0.0200"
    assert hard["best linear score"].endswith(f"({LINEAR_COMBINATION})")
    assert hard["combination"] == "0.970 [0.843, 1.000]", "clipped at 1"
    assert hard["best single score, picked with the labels"] == "0.300 [0.290, 0.310] (density)"
    assert easy[""] == "met"


def test_ood_computes_bits_per_pixel_of_padded_images():
    (row,) = content("ood").tables["Bits per dimension of test images"].to_dict("records")
    assert row["bits per dimension"].startswith("1.000")
    assert row["bits per pixel of 28 x 28"].startswith("1.306")
    assert row["seconds of training"] == "100"


@pytest.mark.parametrize(("linear", "reason"), [
    (0.9999, "is nearly perfect"),
    (0.97, "of the model's scores density alone has 0.9600"),
    (0.91, None),
])  # fmt: skip
def test_ood_explains_better_linear_scores(linear, reason):
    notes = ood.make({HARD: [run(ood_metrics=scored(0.92, linear, density=0.96))]}).notes
    reasons = [note for note in notes if note.startswith(HARD)]
    assert [reason in each for each in reasons] == ([True] if reason else [])


@pytest.mark.parametrize("name", ["beyond", "ood", "related"])
def test_pages_of_recorded_results_open_with_conclusions(name, tmp_path):
    target = TARGETS[name]
    recorded = target.make({}, content(name).data)
    page = pages.write(name, target.title, recorded, tmp_path)
    lines = page.with_suffix(".md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == f"# {target.title}"
    assert [line[:2] for line in lines[2:5]] == ["- "] * 3
    assert lines[6].startswith("Measured on ")
    assert "{term}" not in page.read_text(encoding="utf-8")
    assert content(name).conclusions == []
