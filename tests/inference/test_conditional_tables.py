"""Commands and functions of a model of a table that is conditional on other columns."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from calibrated import (
    COVARIANCE,
    MATRIX,
    MEAN,
    conditional_log_prob,
    conditional_rows,
    conditional_table_model,
    mixed_conditional_model,
    mixed_rows,
)
from commands import run, succeed
from submanifold import Predictor
from submanifold.common.errors import UserError
from submanifold.runs.information import usage_commands

ROWS = 40


@pytest.fixture(scope="module")
def model():
    return conditional_table_model()


@pytest.fixture(scope="module")
def predictor(model):
    return Predictor(model)


@pytest.fixture(scope="module")
def model_file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "hierarchy.safetensors"
    model.save(path)
    return path


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.csv"
    conditional_rows(ROWS, 2).to_csv(path, index=False)
    return path


def refused(*arguments):
    result = run(*arguments)
    assert result.exit_code
    assert "Traceback" not in result.output
    return result.output


def test_the_density_is_exact_in_the_units_of_the_table(predictor):
    table = conditional_rows(500, 3)
    scores = predictor.score(table)
    np.testing.assert_allclose(scores["log_prob"], conditional_log_prob(table), atol=1e-4)
    assert stats.kstest(scores["p_value"], "uniform").pvalue > 1e-3


def test_codes_and_projections_are_given_the_condition(predictor):
    table = conditional_rows(ROWS, 2)
    residual = table[["weight", "height"]] - MEAN - table[["age", "dose"]].to_numpy() @ MATRIX.T
    whitened = np.linalg.solve(np.linalg.cholesky(COVARIANCE), residual.T).T
    np.testing.assert_allclose(np.hstack(predictor.encode(table)), whitened, atol=1e-4)
    projected, _ = predictor.project(table)
    _, v = predictor.encode(projected.join(table[["age", "dose"]]))
    np.testing.assert_allclose(v, 0, atol=1e-4)


def test_rows_of_all_kinds_have_results_of_their_own():
    """Those of a row do not depend on other rows, of which the first one has no density."""
    predictor, table = Predictor(mixed_conditional_model()), mixed_rows(30, 2)
    table.loc[0, ["weight", "age", "ward"]] = 1e12, None, None
    table.loc[1, "city"] = "nowhere"
    order = np.random.default_rng(0).permutation(len(table))
    for result in (
        predictor.score,
        lambda rows: predictor.project(rows)[0],
        lambda rows: predictor.sample(2, condition=rows.reset_index(drop=True)).loc[
            lambda samples: samples.index.to_series().duplicated().to_numpy()
        ][["dose", "ward"]],
    ):
        whole, shuffled = result(table), result(table.iloc[order])
        pd.testing.assert_frame_equal(
            shuffled.reset_index(drop=True),
            whole.iloc[order].reset_index(drop=True),
            rtol=1e-3,
            atol=1e-3,
        )
    scores = predictor.score(table)
    assert scores["p_value"][:2].tolist() == [scores["p_value"].min()] * 2
    assert np.isfinite(scores["log_prob"][2:]).all()


def test_samples_are_drawn_for_each_row_of_the_condition(predictor):
    given = pd.DataFrame({"dose": [1.0, 5.0], "age": [30.0, 60.0]}, index=["a", "b"])
    samples = predictor.sample(2000, condition=given)
    assert list(samples) == ["dose", "age", "weight", "height"]
    again = predictor.sample(2000, condition=samples[::2000].assign(weight=0.0))
    pd.testing.assert_frame_equal(again, samples)
    expected = MEAN + given[["age", "dose"]].to_numpy() @ MATRIX.T
    for name, mean in zip("ab", expected, strict=True):
        of_row = samples.loc[name, ["weight", "height"]]
        np.testing.assert_allclose(of_row.mean(), mean, atol=0.1)
        assert np.linalg.matrix_rank(of_row - mean, tol=0.1) == 1  # on the manifold


def test_commands_find_the_condition_in_the_table(predictor, model_file, table, tmp_path):
    succeed("score", model_file, table, "--out", tmp_path / "scores.csv")
    scores = pd.read_csv(tmp_path / "scores.csv")
    np.testing.assert_allclose(
        scores["log_prob"], conditional_log_prob(conditional_rows(ROWS, 2)), atol=1e-4
    )
    for name in ("codes.csv", "codes.npz"):
        succeed("encode", model_file, table, table, "--out", tmp_path / name)
    codes, arrays = pd.read_csv(tmp_path / "codes.csv"), np.load(tmp_path / "codes.npz")
    expected = np.hstack(predictor.encode(conditional_rows(ROWS, 2)))
    for found in (codes[["u0", "v0"]], np.concatenate([arrays["u"], arrays["v"]], 1)):
        np.testing.assert_allclose(found, np.tile(expected, (2, 1)), atol=1e-5)
    succeed("project", model_file, table, "--out", tmp_path / "projections.csv")
    projections = pd.read_csv(tmp_path / "projections.csv")
    assert list(projections) == ["row", "weight", "height", "mse"]
    np.testing.assert_allclose(
        projections[["weight", "height"]],
        predictor.project(conditional_rows(ROWS, 2))[0],
        rtol=1e-5,
    )


def test_commands_at_the_end_of_a_training_work(model, model_file, table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table.rename("new.csv")
    for command, _ in usage_commands(model, str(model_file)):
        succeed(*command.replace("TABLE", "new.csv").split()[1:])


def test_the_command_sample_reads_only_the_condition(
    predictor, model_file, table, tmp_path, caplog
):
    given, out = tmp_path / "given.csv", tmp_path / "samples.csv"
    conditional_rows(ROWS, 2)[["age", "dose"]].to_csv(given)
    succeed("sample", model_file, given, "--out", out)
    found = pd.read_csv(out)
    assert list(found) == ["row", "age", "dose", "weight", "height"]
    np.testing.assert_allclose(found[["age", "dose"]], conditional_rows(ROWS, 2)[["age", "dose"]])
    succeed("sample", model_file, table, "-n", 3, "--seed=1", "--out", out)
    found = pd.read_csv(out)
    assert found["row"].tolist() == [n // 3 for n in range(3 * ROWS)]
    expected = predictor.sample(3, seed=1, condition=conditional_rows(ROWS, 2))
    pd.testing.assert_frame_equal(found.drop(columns="row"), expected.reset_index(drop=True))
    assert "unknown" not in caplog.text
    succeed("score", model_file, out, "--out", tmp_path / "scores.csv")


def test_mistakes_have_one_message(model_file, table, tmp_path):
    bad = tmp_path / "bad.csv"
    conditional_rows(ROWS, 2).drop(columns="dose").to_csv(bad, index=False)
    for command in ("score", "encode", "project", "sample"):
        output = refused(command, model_file, bad)
        assert "got a table without dose" in output
    conditional_rows(ROWS, 2).assign(age="old").to_csv(bad, index=False)
    for command in ("score", "sample"):
        assert "text or infinities in age (40, such as 'old'" in refused(command, model_file, bad)
    assert "conditional on (age, dose), got none" in refused("sample", model_file)
    assert "label: expected none" in refused("score", model_file, table, "--label=1")
    with pytest.raises(UserError, match=r"^table: expected a DataFrame, .*condition, got ndarray"):
        Predictor.load(model_file).log_prob(conditional_rows(ROWS, 2).to_numpy())
    np.save(tmp_path / "rows.npy", conditional_rows(ROWS, 2).to_numpy())
    assert "got a table without weight" in refused("score", model_file, tmp_path / "rows.npy")
    (tmp_path / "empty.csv").write_text("age,dose\n")
    assert "expected rows, got none" in refused("sample", model_file, tmp_path / "empty.csv")
