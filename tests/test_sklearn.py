"""The estimator as scikit-learn's users use it."""

import copy
import pickle
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from scipy.stats import false_discovery_control
from sklearn.datasets import load_digits, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from commands import run, succeed
from submanifold import Predictor, sklearn
from submanifold.common import threads
from submanifold.common.errors import UserError
from submanifold.common.threads import use_threads
from submanifold.config.resolve import default_method
from submanifold.evaluation.calibration import SUMMED, Calibration
from submanifold.evaluation.intervals import false_alarm_range
from submanifold.evaluation.scores import score
from submanifold.models import Model
from submanifold.models.neighbors import normal_scores
from submanifold.sklearn import ManifoldFlow
from submanifold.training import RotationSettings, Trainer

FEW = {"steps": 6, "random_state": 0}
# On some processors float32 results depend on a row's position in the batch, by their rounding.
SINGLE_PRECISION = {
    "check_methods_sample_order_invariance": "scikit-learn tolerates 1e-7",
    "check_methods_subset_invariance": "scikit-learn tolerates 1e-7",
}


@pytest.fixture(scope="module", autouse=True)
def few_probes():
    """Rotations of few probes, which otherwise take half of the time of these short trainings."""

    def short_method(dataset, dim):
        model, phases = default_method(dataset, dim)
        for name in ("rotation", "rotation_2"):
            phases[name] = RotationSettings(rotate=1, probes=100)
        return model, phases

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sklearn, "default_method", short_method)
        yield


@pytest.mark.pipeline
@parametrize_with_checks(
    [ManifoldFlow(steps=FEW["steps"], calibration=kind) for kind in ("auto", "split")],
    expected_failed_checks=lambda flow: (
        SINGLE_PRECISION
        | (
            {"check_outliers_train": "scores are means over folds, and score_samples a mixture"}
            if flow.calibration == "auto"
            else {}
        )
    ),
)
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


def normal(count, *scales, seed=0):
    return np.random.default_rng(seed).normal(size=(count, len(scales))) * scales


def of_plane(count, seed=0):
    return normal(count, 1.0, 100.0, seed=seed) + 7


@pytest.fixture(scope="module")
def plane():
    return ManifoldFlow(n_components=1, steps=60, random_state=0).fit(of_plane(400))


@pytest.fixture
def pipeline_model(plane, tmp_path):
    """The model of plane, as if a pipeline had trained it."""
    plane.save(tmp_path / "plane")
    model = Model.load(tmp_path / "plane")
    return model.with_facts(notes={})


@pytest.fixture(scope="module")
def flowers():
    return load_iris(as_frame=True).data


@pytest.fixture(scope="module")
def of_flowers(flowers):
    return ManifoldFlow(n_components=2, **FEW).fit(flowers)


@pytest.fixture(scope="module")
def digits():
    return (15 * load_digits().images[:220, None]).astype(np.uint8)


@pytest.fixture(scope="module")
def of_digits(digits):
    return ManifoldFlow(n_components=5, **FEW).fit(digits)


@pytest.mark.parametrize(
    "method", ["transform", "project", "score_samples", "decision_function", "predict"]
)
def test_results_do_not_depend_on_other_rows(plane, method):
    rows, apply = of_plane(60, seed=1), getattr(plane, method)
    together, order = apply(rows), np.random.default_rng(0).permutation(60)
    np.testing.assert_allclose(apply(rows[order]), together[order], 1e-4, 1e-4)
    alone = np.concatenate([apply(row[None]) for row in rows[:5]])
    np.testing.assert_allclose(alone, together[:5], 1e-4, 1e-4)


def test_densities_in_the_units_of_the_data_integrate_to_one(plane):
    x, y = np.meshgrid(7 + np.linspace(-12, 12, 241), 7 + np.linspace(-1200, 1200, 241))
    density = np.exp(plane.score_samples(np.column_stack([x.ravel(), y.ravel()])))
    assert density.sum() * 0.1 * 10 == pytest.approx(1, abs=0.01)


def test_log_densities_of_normal_rows_are_near_the_truth(plane):
    truth = -np.log(2 * np.pi) - np.log(100) - 1
    assert plane.score(of_plane(2000, seed=1)) == pytest.approx(truth, abs=0.2)


def test_projections_are_nearest_points_of_the_manifold(plane):
    rows = of_plane(50)
    projected = plane.project(rows)
    assert projected.shape == rows.shape
    assert np.array_equal(plane.inverse_transform(plane.transform(rows)), projected)
    scale = rows.std(0)
    others = [plane.project(rows, nearest=False), plane.sample(50), projected[::-1]]
    error, *errors = (np.square((each - rows) / scale).sum(1) for each in (projected, *others))
    for other in errors:
        assert (error <= other + 1e-2).mean() > 0.9  # the others are local minima
    samples = plane.sample(30, random_state=1)
    np.testing.assert_allclose(plane.project(samples), samples, atol=1e-2, rtol=1e-3)
    assert np.array_equal(samples, plane.sample(30, random_state=1))


def test_samples_depend_on_the_random_state(plane):
    first, other = (plane.sample(5, random_state=seed) for seed in (1, 2))
    assert not np.isclose(first, other).any()
    state = np.random.RandomState(1)
    assert not np.array_equal(plane.sample(5, random_state=state), plane.sample(5, state))
    assert not np.array_equal(plane.sample(5), plane.sample(5)), "None is another state each time"


def test_densities_are_those_at_the_noise_scale(plane):
    assert plane.noise_scale_ == plane.model_.calibration["noise_scale"]
    rows = of_plane(50)
    expected = Predictor(plane.model_).log_prob(rows, plane.noise_scale_)
    np.testing.assert_allclose(plane.score_samples(rows), expected, rtol=1e-3, atol=1e-3)


def test_equal_training_rows_have_different_noise(monkeypatch):
    trained = []

    def record(phases, model, train, *rest):
        trained.append(train.x)
        raise KeyboardInterrupt

    monkeypatch.setattr(sklearn, "train_phases", record)
    with pytest.raises(KeyboardInterrupt):
        ManifoldFlow(**FEW).fit(np.repeat([[0, 1], [1, 0], [1, 1]], 20, axis=0))
    assert len(np.unique(trained[0], axis=0)) == len(trained[0])


@pytest.mark.parametrize("count", [12, 400])  # of few rows all train and calibrate
def test_outliers_have_p_values_of_at_most_alpha(plane, count):
    flow = plane if count == 400 else ManifoldFlow(1, **FEW).fit(of_plane(count))
    rows = of_plane(2000, seed=1)
    scores = flow._predictor.score(rows)
    p_values = flow.p_values(rows)
    np.testing.assert_array_equal(p_values, scores["p_value"])
    for alpha in (0.05, 0.2, p_values[0]):
        flow.set_params(alpha=alpha)
        np.testing.assert_array_equal(flow.predict(rows) == -1, p_values <= alpha)
        np.testing.assert_array_equal(flow.decision_function(rows[1:]) < 0, p_values[1:] <= alpha)
    flow.set_params(alpha=0.05)
    assert flow.predict([[1e3, 1e5]]) == [-1]


def test_alpha_is_a_false_alarm_rate(plane):
    assert 0.005 < (plane.predict(of_plane(2000, seed=1)) == -1).mean() < 0.12


@pytest.mark.parametrize(
    ("settings", "least", "most"),
    [({"steps": 12}, 12, 12), ({"minutes": 0.01}, 4, 600)],  # 0.6 s; the default has 900 steps
)
def test_steps_and_minutes_are_those_of_all_phases_together(settings, least, most):
    flow = ManifoldFlow(**settings, random_state=0).fit(normal(60, 1.0, 2.0, 3.0))
    trained = [phase for phase in flow.model_.notes["phases"] if "rotated" not in phase]
    assert least <= sum(phase["step"] for phase in trained) <= most


def test_pipelines_and_searches_accept_it(flowers):
    model = make_pipeline(StandardScaler(), ManifoldFlow(**FEW))
    name = "manifoldflow__n_components"
    search = GridSearchCV(model, {name: [1, 3]}, cv=2).fit(flowers)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.transform(flowers).shape == (150, search.best_params_[name])


def test_images_are_rows(digits, of_digits):
    assert of_digits.transform(digits).shape == (220, 5)
    for images in (
        of_digits.project(digits),
        of_digits.sample(3),
        of_digits.inverse_transform(of_digits.transform(digits)),
    ):
        assert images.dtype == np.uint8
        assert images.shape[1:] == (1, 8, 8)
    p_values = of_digits.p_values(digits)
    assert np.array_equal(of_digits.predict(digits) == -1, p_values <= 0.05)
    flagged = false_discovery_control(p_values) <= 0.3
    assert np.array_equal(of_digits.select(digits, fdr=0.3), flagged)
    with pytest.raises(UserError, match=r"^fdr: expected a rate below 1, .* got 30"):
        of_digits.select(digits, fdr=30)
    assert np.array_equal(of_digits.decision_function(digits) < 0, p_values <= 0.05)
    again = pickle.loads(pickle.dumps(of_digits))
    assert np.array_equal(again.transform(digits), of_digits.transform(digits))


def test_the_file_is_that_of_a_model(flowers, of_flowers, tmp_path):
    of_flowers.save(tmp_path / "model")
    loaded = ManifoldFlow.load(tmp_path / "model")
    assert loaded.get_params() == of_flowers.get_params()
    assert loaded.offset_ == of_flowers.offset_
    assert [each.name for each in loaded.preprocessor_.columns] == list(flowers)
    for method in ("transform", "score_samples", "predict", "project"):
        found, expected = (getattr(each, method)(flowers) for each in (loaded, of_flowers))
        assert np.array_equal(found, expected)


def test_names_of_columns_are_known_after_load_if_they_were(plane, of_flowers, flowers, tmp_path):
    named, unnamed = (opened(flow, tmp_path) for flow in (of_flowers, plane))
    assert [*named.feature_names_in_] == [*flowers]
    assert not hasattr(unnamed, "feature_names_in_")
    assert (named.n_features_in_, unnamed.n_features_in_) == (4, 2)


def test_columns_of_a_fit_to_an_array_are_matched_by_position(plane):
    rows = of_plane(20)
    with pytest.warns(UserWarning, match="fitted without feature names"):
        found = plane.score_samples(pd.DataFrame(rows, columns=["width", "length"]))
    np.testing.assert_array_equal(found, plane.score_samples(rows))


def test_columns_of_one_name_are_refused(flowers):
    with pytest.raises(UserError, match=r"columns of different names, got \['a'\]"):
        ManifoldFlow(**FEW).fit(flowers.set_axis(["a", "b", "a", "c"], axis=1))


def test_decimals_are_sampled_as_numbers():
    decimals = pd.ArrowDtype(pa.decimal128(8, 2))
    frame = pd.DataFrame(of_plane(60).round(2), columns=["a", "b"]).astype({"b": decimals})
    sample = ManifoldFlow(n_components=1, **FEW).fit(frame).sample(3)
    assert sample.dtype == np.float64
    assert np.isfinite(sample).all()


def test_that_values_are_missing_is_no_anomaly():
    """Without an offset, the scores of rows with missing values differ by 0.9 deviations."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 3))
    rows[rng.random(300) < 0.3, 1] = np.nan
    scores, is_missing = ManifoldFlow(**FEW).fit(rows).decision_function(rows), np.isnan(rows[:, 1])
    difference = np.median(scores[is_missing]) - np.median(scores[~is_missing])
    assert abs(difference) < 0.3 * scores.std()


def opened(model, folder):
    model.save(folder / "model")
    return ManifoldFlow.load(folder / "model")


def test_rows_of_mixed_columns_are_dataframes():
    frame = pd.DataFrame({"a": normal(60, 1.0)[:, 0], "city": ["Bern", "Rome", "Oslo"] * 20})
    flow = ManifoldFlow(n_components=1, **FEW).fit(frame)
    for rows in (flow.sample(3), flow.project(frame), flow.inverse_transform([[0.0]])):
        assert rows.dtypes.tolist() == frame.dtypes.tolist()
        assert [*rows] == ["a", "city"]


def test_it_opens_models_of_pipelines(plane, pipeline_model, tmp_path):
    loaded = opened(pipeline_model, tmp_path)
    rows = pd.DataFrame(of_plane(50), columns=["x0", "x1"])
    for method in ("score_samples", "p_values", "predict"):
        found, expected = (getattr(flow, method) for flow in (loaded, plane))
        np.testing.assert_array_equal(found(rows), expected(rows.to_numpy()))
    assert loaded.n_components == 1


def test_rows_without_a_finite_score_are_outliers(plane):
    rows = np.array([[1e300, 7.0], [7.0, -1e300], [7.0, 7.0]])
    with np.errstate(over="ignore"):
        assert plane.predict(rows).tolist() == [-1, -1, 1]
        assert (plane.decision_function(rows) >= 0).tolist() == [False, False, True]
        assert plane.score_samples(rows)[:2].tolist() == [-np.inf, -np.inf]


def test_models_of_points_are_refused(pipeline_model, tmp_path):
    points = pipeline_model.with_facts(data={})
    with pytest.raises(UserError, match="expected a model of a table or of images"):
        opened(points, tmp_path)


def test_the_global_generator_is_left_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    ManifoldFlow(**FEW).fit(normal(40, *range(1, 8)))  # the first fit of seven columns
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seed", [None, 0])
def test_the_number_of_threads_is_left_alone(monkeypatch, flowers, seed):
    """Also while it trains: other threads of the process may need their own number."""
    changes, settings, step = [], set(), Trainer.step

    def watched_step(*args):
        settings.add(threads._setting)
        return step(*args)

    monkeypatch.setattr(threads, "_most", lambda: 2)
    monkeypatch.setattr(threads, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(torch, "set_num_threads", changes.append)
    monkeypatch.setattr(Trainer, "step", watched_step)
    ManifoldFlow(steps=20, random_state=seed).fit(flowers)
    assert (changes, settings) == ([], {None})


@pytest.mark.parametrize(("count", "held_out"), [(300, 30), (100, 20)])
def test_held_out_rows_validate_and_calibrate(monkeypatch, count, held_out):
    splits = []

    def watch(name, *positions):
        function = getattr(sklearn, name)

        def watched(*arguments, **options):
            splits.extend(arguments[position].x for position in positions)
            return function(*arguments, **options)

        monkeypatch.setattr(sklearn, name, watched)

    watch("train_phases", 2, 3)
    watch("calibrate", 1)
    rows = normal(count, 1.0, 2.0, 3.0).astype(np.float32)
    ManifoldFlow(scale="none", calibration="split", **FEW).fit(rows)
    trained, validated, calibrated = ({tuple(row) for row in split.tolist()} for split in splits)
    assert validated == calibrated
    assert (len(trained), len(validated)) == (count - held_out, held_out)
    assert trained | validated == {tuple(row) for row in rows.tolist()}


def test_every_row_is_calibrated_by_a_model_that_has_not_seen_it():
    """Of 50 rows of ten columns a model memorizes those that train it."""
    rows = normal(2050, *[1.0] * 10)
    flow = ManifoldFlow(steps=200, calibration="cross", alpha=0.2, random_state=0).fit(rows[:50])
    assert flow._predictor.calibrated().count == 50
    low, high = false_alarm_range(0.2, 2000, 50)
    assert low <= (flow.predict(rows[50:]) == -1).mean() <= high


def test_a_row_does_not_train_a_model_that_scores_its_copy(monkeypatch):
    splits, train_phases = [], sklearn.train_phases

    def watched(phases, model, train, valid, *rest):
        splits.extend([train.x[:, 0].tolist(), valid.x[:, 0].tolist()])
        return train_phases(phases, model, train, valid, *rest)

    monkeypatch.setattr(sklearn, "train_phases", watched)
    rows = np.repeat(normal(100, 1.0, 2.0), 2, axis=0)
    flow = ManifoldFlow(scale="none", calibration="split", **FEW).fit(rows)
    train, valid = splits
    assert len(valid) == 20
    assert not {*train} & {*valid}
    assert flow._predictor.calibrated().groups == len({*valid})


def test_copies_do_not_break_the_promise_of_p_values():
    """A model that is calibrated by copies of its training rows would flag too many new rows."""
    rows = normal(2050, *[1.0] * 10)
    twice = np.repeat(rows[:50], 2, axis=0)
    flow = ManifoldFlow(steps=200, calibration="cross", alpha=0.2, random_state=0).fit(twice)
    assert flow._predictor.calibrated().groups == 50
    low, high = false_alarm_range(0.2, 2000, 50)
    assert low <= (flow.predict(rows[50:]) == -1).mean() <= high


@pytest.mark.parametrize("calibration", ["cross", "split"])
def test_another_value_of_a_constant_column_is_anomalous(calibration, tmp_path, caplog):
    table = pd.DataFrame(normal(900, 1.0, 2.0), columns=["a", "b"]).assign(c=5.0, d="on", e=np.nan)
    flow = ManifoldFlow(calibration=calibration, **FEW).fit(table[:400])
    rows = table[400:].reset_index(drop=True)
    before = flow.p_values(rows)
    assert not caplog.messages
    changed = rows.astype({"d": object})
    changed.loc[0, "c"], changed.loc[1, "d"], changed.loc[2, "e"] = 5.1, "off", 7.0
    after = flow.p_values(changed)
    assert (after[:3] < before[:3] / 2).all()
    assert after[:3].max() < 0.05
    np.testing.assert_allclose(after[3:], before[3:], atol=1e-6)
    explained = flow._predictor.explain(changed[:4])
    assert explained.groupby(level=0)["column"].first()[:3].tolist() == ["c", "d", "e"]
    assert explained["value"][0].tolist()[0] == "5.1"
    # if a fifth of the rows of another calibration have such values, they are no anomalies
    flow.save(tmp_path / "model.safetensors")
    changed.loc[::5, "c"] = 6.0
    changed.to_csv(tmp_path / "other.csv", index=False)
    arguments = tmp_path / "model.safetensors", tmp_path / "other.csv"
    succeed("calibrate", *arguments, "--out", tmp_path / "other.safetensors")
    found = Predictor(Model.load(tmp_path / "other.safetensors")).score(changed)["p_value"]
    assert found[::5].quantile(0.9) > 0.1


@pytest.mark.parametrize("is_trained", [True, False])
def test_anomalies_of_the_calibration_are_named_and_set_aside(tmp_path, is_trained):
    columns, planted = ["a", "b", "c"], {"17", "203", "280"}
    rows = pd.DataFrame(normal(700, 1.0, 2.0, 3.0), columns=columns)
    normal_rows, others, new = rows[:300], rows[300:600].reset_index(drop=True), rows[600:].copy()
    others.loc[[17, 203, 280], "a"], new.iloc[:4, 0] = [60.0, 70.0, 80.0], 20.0
    model, other, scores = (tmp_path / name for name in ("a.safetensors", "b.safetensors", "s.csv"))
    ManifoldFlow(**FEW).fit(others if is_trained else normal_rows).save(model)
    others.to_csv(tmp_path / "others.csv", index=False)
    new.to_csv(tmp_path / "new.csv", index=False)
    if not is_trained:
        succeed("calibrate", model, tmp_path / "others.csv", "--out", other)
        model = other
    score = (tmp_path / "new.csv", "--fdr=10%", "--out", scores)
    output = succeed("score", model, *score)
    assert "0 of 100 rows are flagged" in output
    named = re.search(r"rows of the calibration: (.*)\. If these are anomalies", output)[1]
    assert {*named.split(", ")} == planted
    option = f"--without={named.replace(', ', ',')}"
    assert f"set them aside: submanifold calibrate {model} {option}\n" in output
    output = succeed("calibrate", model, option, "--out", tmp_path / "c.safetensors")
    assert "calibrated on 297 rows; the smallest p-value is 0.336%" in output
    output = succeed("score", tmp_path / "c.safetensors", *score)
    assert "rows of the calibration:" not in output
    assert {0, 1, 2, 3} <= {*np.flatnonzero(pd.read_csv(scores)["ood"])}
    result = run("calibrate", tmp_path / "c.safetensors", option)
    assert "--without: expected rows of the table that calibrate MODEL, got 17" in result.stderr


def test_commands_read_the_file_of_a_cross_calibrated_estimator(tmp_path):
    rows = pd.DataFrame(normal(80, 1.0, 2.0, 3.0), columns=["a", "b", "c"])
    flow = ManifoldFlow(**FEW).fit(rows)
    flow.save(tmp_path / "model.safetensors")
    rows.to_csv(tmp_path / "rows.csv", index=False)
    model, table = tmp_path / "model.safetensors", tmp_path / "rows.csv"
    assert "cross_fitted, with the densities of 5 folds" in succeed("info", model)
    assert "log-determinant" in succeed("info", model, "--audit")
    succeed("score", model, table, "--out", tmp_path / "scores.csv")
    scores = pd.read_csv(tmp_path / "scores.csv")
    np.testing.assert_allclose(scores["p_value"], flow.p_values(rows), atol=1e-5)  # float32
    loaded = ManifoldFlow.load(model)
    np.testing.assert_array_equal(loaded.score_samples(rows), flow.score_samples(rows))


def test_kedro_and_mlflow_are_not_imported():
    code = """
import sys
import time
from sklearn.datasets import load_iris
from submanifold.sklearn import ManifoldFlow
ManifoldFlow(steps=2).fit(load_iris().data).predict(load_iris().data)
print([name for name in ("kedro", "mlflow") if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
    assert found.stderr == ""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_components": 0}, "n_components"),
        ({"n_components": True}, "^n_components: expected at most 4, .* got True"),
        (
            {"n_components": 5},
            r"^n_components: expected at most 4, the number of columns that vary",
        ),
        ({"alpha": 1.0}, "alpha"),
        (
            {"alpha": 0.04, "calibration": "split"},
            r"^alpha: expected at least 1/21, .*got 0.04. .* at least 240 rows",
        ),
        ({"alpha": 0.006}, r"^alpha: expected at least 1/151, .* at least 166 rows"),
        ({"scale": "minmax"}, "scale"),
        ({"device": "gpu"}, "^device: expected auto, cpu"),
        ({"steps": 3, "minutes": 1}, "^minutes: expected None with steps"),
    ],
)
def test_mistakes_are_refused_before_training(flowers, settings, message):
    with pytest.raises(ValueError, match=message):
        ManifoldFlow(**settings).fit(flowers)


def test_errors_advise_nothing_that_the_estimator_does_not_have(flowers, of_flowers):
    with pytest.raises(UserError, match=r"^fdr: expected at least .* or train with more rows\.$"):
        of_flowers.select(flowers, 0.001)
    far = flowers + 1e12
    with pytest.raises(UserError, match=r"float32 cannot represent \(scale=none\)") as caught:
        ManifoldFlow(scale="none").fit(far)
    assert "data." not in str(caught.value)


def test_data_that_are_no_rows_are_refused(digits, of_digits, of_flowers):
    for rows in (digits.astype(float), digits[..., :7], digits[:1]):
        with pytest.raises(UserError, match=r"^X: expected at least 2 images, uint8 \(n, 1 or 3"):
            ManifoldFlow().fit(rows)
    for rows, fix in (
        (np.zeros((9, 1, 28, 28), np.uint8), "Pad images"),
        (np.zeros((9, 8, 8, 3), np.uint8), "Move the channels"),
        (np.zeros((9, 8, 8), np.uint8), "Add an axis of channels"),
        (np.zeros((9, 1, 8, 8)), "Convert images in"),
        (np.zeros((1, 1, 8, 8), np.uint8), "Pass more images"),
    ):
        with pytest.raises(UserError, match=rf"size divisible by 8, or a table, got .*\. {fix}"):
            ManifoldFlow().fit(rows)
    with pytest.raises(NotFittedError):
        ManifoldFlow().project(np.zeros((3, 64)))
    for rows in (digits[..., :4, :4], np.zeros((3, 64))):
        with pytest.raises(UserError, match=r"^events: expected uint8 of shape \(N, 1, 8, 8\)"):
            of_digits.transform(rows)
    with pytest.raises(ValueError, match=r"dim 4"):
        of_flowers.transform(digits)
    with pytest.raises(ValueError, match=r"^X: expected a column with several values"):
        ManifoldFlow().fit(np.ones((30, 3)))


def test_preprocessing_does_not_depend_on_held_out_rows(monkeypatch):
    """Held-out rows do not change how training rows are standardized, nor the weights."""
    held_out, train_phases = [], sklearn.train_phases

    def watched(phases, model, train, valid, *rest):
        held_out.append(valid.x)
        return train_phases(phases, model, train, valid, *rest)

    monkeypatch.setattr(sklearn, "train_phases", watched)
    rows = normal(60, 1.0, 2.0, 3.0)
    ManifoldFlow(scale="none", calibration="split", **FEW).fit(rows)
    is_held_out = np.isclose(rows[:, :1], held_out[0][:, 0]).any(1)
    assert is_held_out.sum() == 20
    flows = [
        ManifoldFlow(calibration="split", **FEW).fit(rows + 100 * changed)
        for changed in (0, is_held_out[:, None])
    ]
    first, second = (flow.preprocessor_.to_dict() for flow in flows)
    assert first == second


def test_scores_follow_the_model(of_flowers, flowers):
    flow = copy.deepcopy(of_flowers)
    before = flow.score_samples(flowers)
    with torch.no_grad():
        for weight in flow.model_.parameters():
            weight.add_(0.1)
    assert not np.allclose(flow.score_samples(flowers), before)


def test_a_failed_fit_leaves_the_estimator_as_it_was(flowers):
    flow = ManifoldFlow(**FEW).fit(flowers)
    expected = flow.score_samples(flowers)
    for rows in (flowers.rename(columns=str.upper), flowers.assign(more=1.0), load_digits().data):
        with pytest.raises(ValueError, match="n_components"):
            flow.set_params(n_components=100).fit(rows)
        flow.set_params(n_components=None)
        assert np.array_equal(flow.score_samples(flowers), expected)


def test_a_failed_first_fit_leaves_the_estimator_unfitted(flowers):
    flow = ManifoldFlow(n_components=5)
    with pytest.raises(ValueError, match="n_components"):
        flow.fit(flowers)
    assert not hasattr(flow, "n_features_in_")


@pytest.mark.parametrize("rows", [slice(0), slice(1)])
def test_a_table_of_less_than_two_rows_is_refused(flowers, rows):
    with pytest.raises(UserError, match=r"^X: expected at least 2 rows of .*, got \([01], 4\)"):
        ManifoldFlow(**FEW).fit(flowers[rows])


def test_parameters_that_were_changed_after_the_fit_are_checked(of_flowers, flowers):
    flow = copy.deepcopy(of_flowers).set_params(alpha=None)
    for method in (flow.predict, flow.decision_function):
        with pytest.raises(ValueError, match="'alpha' parameter"):
            method(flowers)


class CountedCopies:
    """A note of a model, which is copied whenever it is."""

    count = 0

    def __deepcopy__(self, memo):
        self.count += 1
        return self


def test_a_method_copies_the_model_at_most_once(of_flowers, flowers, of_digits, digits):
    for fitted, rows, copies in ((of_flowers, flowers, 1), (of_digits, digits, 0)):
        flow = ManifoldFlow(device="cpu")
        vars(flow).update({name: value for name, value in vars(fitted).items() if name[-1] == "_"})
        for call in (flow.decision_function, flow.predict, lambda x: flow.select(x, 0.3)):  # noqa: B023
            counted = CountedCopies()
            flow.model_ = fitted.model_.with_facts(notes={"counted": counted})
            call(rows)
            assert counted.count == copies


def test_fits_in_threads_equal_fits_one_by_one(monkeypatch):
    table, seed_generators = normal(60, 1.0, 2.0, 3.0), torch.manual_seed

    def densities(seed):
        return ManifoldFlow(steps=6, random_state=seed).fit(table).score_samples(table)

    def interrupted(seed):
        seed_generators(seed)
        time.sleep(0.1)  # other threads run

    monkeypatch.setattr(torch, "manual_seed", interrupted)
    with use_threads(1), ThreadPoolExecutor(3) as pool:
        in_threads = [*pool.map(densities, range(3))]
        one_by_one = [*map(densities, range(3))]
    np.testing.assert_allclose(in_threads, one_by_one, rtol=1e-5)


def test_offset_is_the_log_density_below_which_rows_are_outliers(plane):
    assert plane.offset_ is None, "the score has a distance to neighbors"
    flow = ManifoldFlow(1, calibration="split", **FEW).fit(of_plane(300))
    rows = of_plane(200, seed=1)
    log_density = flow.score_samples(rows)
    np.testing.assert_allclose(
        flow.decision_function(rows), log_density - flow.offset_, rtol=0, atol=1e-2
    )
    assert (flow.predict(rows) == -1).sum() > 0
    assert log_density[flow.predict(rows) == -1].max() < flow.offset_ + 1e-2


def test_scores_join_the_density_and_the_distance_to_rows_of_other_folds():
    rows, new = normal(150, 1.0, 2.0, 3.0)[:100], normal(150, 1.0, 2.0, 3.0)[100:]
    flow, scaler = ManifoldFlow(**FEW).fit(rows), StandardScaler().fit(rows)
    fold, distances = flow.model_.neighbors.fold.numpy(), []
    for number in range(5):
        outside = torch.from_numpy(scaler.transform(rows[fold != number]))
        of_rows, of_new = (
            torch.cat([each, normal_scores(each, outside)], 1)
            for each in (outside, torch.from_numpy(scaler.transform(new)))
        )
        fitted = NearestNeighbors(n_neighbors=3).fit(of_rows)
        distances.append(fitted.kneighbors(of_new)[0])
    scores = score(flow.model_, flow.preprocessor_.transform(new), SUMMED)
    expected = np.mean(distances, axis=(0, 2))
    np.testing.assert_allclose(scores["neighbor_distance"], expected, rtol=1e-4)
    joined = Calibration.from_dict(flow.model_.calibration).complete(scores)["combination"]
    assert np.ptp(flow.decision_function(new) + joined) < 5e-3


def test_missing_values_are_means_for_neighbors(tmp_path):
    rows = pd.DataFrame(normal(200, 1.0, 2.0, 3.0), columns=["a", "b", "c"])
    rows.iloc[::5, 1] = np.nan
    flow = ManifoldFlow(**FEW).fit(rows)
    neighbors = flow.model_.neighbors
    blank = neighbors.rows[:, 1] == 0
    assert blank.sum() == 40
    flow.save(tmp_path / "model")
    rows.to_csv(tmp_path / "rows.csv", index=False)
    succeed("score", tmp_path / "model", tmp_path / "rows.csv", "--out", tmp_path / "scores.csv")
    found = pd.read_csv(tmp_path / "scores.csv")["p_value"]
    np.testing.assert_allclose(found, flow.p_values(rows), atol=1e-5)
