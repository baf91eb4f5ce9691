"""Commands of a model of a table: results by row and in the units of the table."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy
import torch

from calibrated import png, smooth_images, table_model
from calibrated import table_rows as rows
from commands import run, succeed
from submanifold import Predictor
from submanifold.data.tables import Preprocessor
from submanifold.flows import Glow, RealNVP
from submanifold.inference.training_events import training_hashes
from submanifold.models import Hierarchy, Model, Stage

ROWS = 90


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return table_model(RealNVP(4), 3, rows(500, 0), rows(200, 1))


@pytest.fixture(scope="module")
def model_file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "hierarchy.safetensors"
    model.save(path)
    return path


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.csv"
    rows(ROWS, 2).to_csv(path, index=False)
    return path


def test_densities_of_categories_sum_to_one_and_are_frequencies_of_samples():
    rng, names = np.random.default_rng(0), ["Bern", "Rome", "Oslo"]
    table = pd.DataFrame(
        {"city": rng.choice(names, 900, p=[0.1, 0.6, 0.3]), "weight": rng.normal(70, 12, 900)}
    )
    torch.manual_seed(0)
    model = table_model(RealNVP(2), 2, table, table)
    weights = np.linspace(-60, 200, 5001)  # each has another noise of the category
    grid = pd.DataFrame({"weight": np.tile(weights, 3), "city": np.repeat(names, len(weights))})
    density = np.exp(Predictor(model).score(grid)["log_prob"].to_numpy()).reshape(3, -1)
    shares = scipy.integrate.trapezoid(density, weights)
    assert shares.sum() == pytest.approx(1, abs=0.01)
    drawn = Predictor(model).sample(5000)["city"].value_counts(normalize=True)
    np.testing.assert_allclose(shares, drawn[names], atol=0.02)


def test_unknown_categories_are_flagged(model, model_file, tmp_path):
    table = rows(40, 2).assign(city=lambda t: t["city"].replace("Rome", "Oslo"))
    unknown, least = table["city"] == "Oslo", 1 / 201
    scores = Predictor(model).score(table)
    assert (scores["unknown_category"] == unknown).all()
    assert scores["p_value"][unknown].to_numpy() == pytest.approx(least)
    assert scores["p_value"][~unknown].median() > 0.1
    assert scores["anomaly_score"][unknown].min() > scores["anomaly_score"][~unknown].max()
    assert np.isfinite(scores["log_prob"]).all()
    table.to_csv(tmp_path / "new.csv", index=False)
    for name, read in (("s.csv", pd.read_csv), ("s.parquet", pd.read_parquet)):
        succeed("score", model_file, tmp_path / "new.csv", "--alpha=5%", "--out", tmp_path / name)
        found = read(tmp_path / name)
        assert (found["unknown_category"] == unknown).all()
        assert found["ood"][unknown].all()


def test_an_extreme_number_is_more_anomalous_than_a_misspelled_category(model):
    table = rows(4, 2)
    table.loc[0, "city"] = "Bren"
    table.loc[1, "weight"] = 1e6
    table.loc[2, "weight"] = 1e38
    predictor = Predictor(model)
    scores = predictor.score(table)
    assert [*scores["anomaly_score"].argsort()] == [3, 0, 1, 2]
    assert scores.notna().all(axis=None)
    np.testing.assert_allclose(scores["log_prob"], predictor.log_prob(table), rtol=1e-4)
    expected = predictor.log_prob(table.replace("Bren", predictor.columns.columns[3].names[-1]))
    assert scores["log_prob"][0] == pytest.approx(expected[0] - np.log(1e6), rel=1e-4)


@pytest.mark.parametrize(("count", "moved"), [(40, 5), (40, 4), (19, 19)])
def test_many_rows_beyond_those_of_the_training_are_a_warning(
    model_file, tmp_path, caplog, count, moved
):
    table = rows(count, 2)
    high = rows(500, 0)["weight"].max()
    table["weight"] = table["weight"].clip(upper=high).mask(table.index < moved, high + 1)
    table.to_csv(tmp_path / "new.csv", index=False)
    succeed("score", model_file, tmp_path / "new.csv", "--out", tmp_path / "scores.csv")
    texts = [text for text in caplog.messages if "beyond those of the training" in text]
    assert ["weight: 12% of the rows" in text for text in texts] == [True] * (moved == 5)


def test_scores_of_files_are_those_of_the_frame(model, model_file, table, tmp_path):
    output = succeed("score", model_file, table, "--alpha=10%", "--out", tmp_path / "scores.csv")
    found = pd.read_csv(tmp_path / "scores.csv")
    expected = Predictor(model).score(rows(ROWS, 2))
    assert list(found)[:2] == ["row", "log_prob"]
    assert found["row"].tolist() == list(range(ROWS))
    for name in ("log_prob", "code_log_prob", "encoder_mse", "p_value"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)
    assert "rows are flagged" in output
    assert "p-value  row, the most anomalous first" in output
    assert (found["ood"] == (found["p_value"] <= 0.1)).all()


def test_a_column_of_identifiers_is_the_first_of_the_scores(model, model_file, tmp_path):
    ids = [f"C{number}" for number in range(ROWS)]
    rows(ROWS, 2).assign(user=ids).to_csv(tmp_path / "t.csv", index=False)
    succeed("score", model_file, tmp_path / "t.csv", "--id=user", "--out", tmp_path / "s.csv")
    scores = pd.read_csv(tmp_path / "s.csv")
    assert next(iter(scores)) == "user"
    assert scores["user"].tolist() == ids
    model = Model.load(model_file)
    model.with_facts(data={**model.data, "id": "user"}).save(tmp_path / "m")
    for command in ("score", "encode"):
        succeed(command, tmp_path / "m", tmp_path / "t.csv", "--out", tmp_path / "again.csv")
        assert pd.read_csv(tmp_path / "again.csv")["user"].tolist() == ids


def test_text_of_csv_files_is_no_formula_of_a_spreadsheet(tmp_path):
    torch.manual_seed(0)
    rng, names = np.random.default_rng(0), ["=HYPERLINK(A1)", "+a", "-b", "@c", "-3", "plain"]
    table = pd.DataFrame({"city": rng.choice(names, 300), "weight": rng.normal(size=300)})
    path = tmp_path / "model"
    table_model(RealNVP(2), 2, table, table).save(path)
    table[:60].to_csv(tmp_path / "t.csv", index=False)
    written = {"sample": ("-n", 200), "project": (tmp_path / "t.csv",)}
    for command, options in written.items():
        out = tmp_path / f"{command}.csv"
        succeed(command, path, *options, "--out", out)
        texts = set(pd.read_csv(out)["city"])
        assert texts <= {f"'{name}" for name in names[:4]} | {*names[4:]}
        assert len(texts) > 3
        parquet = out.with_suffix(".parquet")
        succeed(command, path, *options, "--out", parquet)
        assert set(pd.read_parquet(parquet)["city"]) <= {*names}
        numbers = pd.read_csv(out)["weight"]
        assert (numbers < 0).any(), "negative numbers are numbers"
    options = "--explain", "--out", tmp_path / "s.csv"
    succeed("score", path, tmp_path / "t.csv", *options)
    explained = pd.read_csv(tmp_path / "s_columns.csv")[["value", "usual"]].to_numpy().ravel()
    starts = {str(text)[:2] for text in explained}
    assert starts & {"'=", "'+", "'-", "'@"}
    assert not starts & {"=H", "+a", "-b", "@c"}


@pytest.mark.parametrize(
    ("command", "options", "outputs"),
    [
        ("score", (), "scores.csv"),
        ("score", ("--explain",), "scores.csv scores_columns.csv"),
        ("encode", (), "codes.csv"),
        ("project", (), "projections.csv"),
        ("sample", None, "samples.csv"),
        ("calibrate", (), "calibrated.safetensors"),
    ],
)
def test_a_default_output_does_not_replace_a_file(
    model_file, tmp_path, monkeypatch, command, options, outputs
):
    monkeypatch.chdir(tmp_path)
    rows(ROWS, 5).to_csv("table.csv", index=False)
    *_, mine = outputs.split()
    Path(mine).write_text("mine")
    inputs = () if options is None else ("table.csv", *options)
    output = succeed(command, model_file, *inputs)
    assert Path(mine).read_text() == "mine"
    stem = Path(outputs.split()[0]).stem
    new = {name.replace(stem, f"{stem}-2", 1) for name in outputs.split()}
    assert {path.name for path in tmp_path.iterdir()} == {"table.csv", mine, *new}
    assert new <= {*output.splitlines()}
    succeed(command, model_file, *inputs, f"--out={mine}")
    assert Path(mine).read_bytes() != b"mine", "the user has named it"


def test_flagged_rows_are_explained_by_their_columns(model, model_file, tmp_path):
    table = rows(60, 2).assign(user=[f"C{number}" for number in range(60)])
    table.loc[3, "weight"], table.loc[8, "city"] = 12_300.5, "Oslo"
    table.to_csv(tmp_path / "t.csv", index=False)
    arguments = "score", model_file, tmp_path / "t.csv", "--id=user", "--explain"
    for name, read in (("s.csv", pd.read_csv), ("s.parquet", pd.read_parquet)):
        output = succeed(*arguments, "--alpha=2%", "--out", tmp_path / name)
        columns = read(tmp_path / f"s_columns.{name[2:]}")
        assert list(columns) == ["user", "column", "value", "contribution", "usual"]
        first = columns.groupby("user").first()
        assert tuple(first.loc["C8", ["column", "value"]]) == ("city", "Oslo")
        assert first["contribution"]["C8"] >= np.log(1e6)
        assert tuple(first.loc["C3", ["column", "value"]]) == ("weight", "12300.5")
        flagged = read(tmp_path / name).query("ood")["user"]
        assert set(first.index) == set(flagged)
        assert f"of the {len(flagged)} flagged rows\nC3: weight = 12300.5 (+" in output
        assert "\nC8: city = Oslo (+" in output
    output = succeed(*arguments, "--out", tmp_path / "s.csv")
    assert len(pd.read_csv(tmp_path / "s_columns.csv")) == 3 * 16
    heading = "anomaly of the 16 most anomalous rows, the first 5\n"
    lines = output.partition(heading)[2].splitlines()
    assert [line.partition(":")[0].startswith("C") for line in lines] == [True] * 5 + [False]
    scores = pd.read_csv(tmp_path / "s.csv")["anomaly_score"]
    assert scores.nlargest(2).index.tolist() == [3, 8]
    expected = Predictor(model).explain(table.drop(columns="user")[3:4].set_axis(["x"]))
    assert expected.index.tolist() == ["x"] * 3
    gain = expected.iloc[0]
    other = table[3:4].assign(weight=float(gain["usual"]))
    before, after = (Predictor(model).log_prob(t)[0] for t in (table[3:4], other))
    assert after - before == pytest.approx(gain["contribution"], rel=0.05)


def test_missing_values_are_shown_as_missing():
    table = rows(500, 0)[["weight", "age", "city"]]
    table.loc[::10, "weight"] = np.nan
    torch.manual_seed(0)
    model = table_model(RealNVP(3), 2, table, table[:200])
    shown = Predictor(model).explain(table[:2])
    assert shown.groupby(level=0)["column"].agg(set).tolist() == [{*table}] * 2
    missing, weight = shown.query("column == 'weight'")["value"]
    assert missing == "missing"
    assert float(weight) == pytest.approx(table["weight"][1], rel=1e-5)


def test_missing_values_are_given_and_stay_missing(tmp_path):
    """Age is missing only of heavy people, and income at random."""
    table = rows(900, 0)
    table["age"] = table["age"].astype(float).mask(table["weight"] > 80)
    table["income"] = table["income"].mask(np.random.default_rng(0).random(900) < 0.3)
    torch.manual_seed(0)
    model = table_model(RealNVP(4), 2, table[:600], table[600:])
    predictor, held_out = Predictor(model), table[600:].reset_index(drop=True)
    projected, _ = predictor.project(held_out)
    assert (projected.isna() == held_out.isna()).all(axis=None)
    np.testing.assert_allclose(predictor.sample(3000).isna().mean(), table.isna().mean(), atol=0.03)
    model.save(tmp_path / "model")
    light = held_out["weight"] < 70
    held_out.loc[light, "age"] = np.nan
    held_out.to_csv(tmp_path / "t.csv", index=False)
    succeed("score", tmp_path / "model", tmp_path / "t.csv", "--out", tmp_path / "s.csv")
    scores = pd.read_csv(tmp_path / "s.csv")
    assert (scores["p_value_mask"][light] <= 0.05).mean() > 0.95
    assert scores["log_prob_mask"][light].max() < scores["log_prob_mask"][~light].median()
    assert not scores["log_prob"].isna().any()
    values = held_out.fillna({"age": 40, "income": 3000})  # the density is that of the others
    assert (predictor.log_prob(values) < predictor.log_prob(held_out))[light].mean() > 0.9


@pytest.mark.parametrize("suffix", ["parquet", "feather", "csv"])
def test_columns_are_found_by_name_in_any_order_type_and_format(
    model_file, table, tmp_path, suffix
):
    succeed("score", model_file, table, "--out", tmp_path / "a.csv")
    other = rows(ROWS, 2)[["city", "age", "weight", "income"]].astype({"age": float})
    path = tmp_path / f"other.{suffix}"
    getattr(other, f"to_{suffix}")(path, **({"index": False} if suffix == "csv" else {}))
    succeed("score", model_file, path, "--out", tmp_path / "b.parquet")
    a, b = pd.read_csv(tmp_path / "a.csv"), pd.read_parquet(tmp_path / "b.parquet")
    pd.testing.assert_frame_equal(a, b, rtol=1e-5)


@pytest.mark.parametrize("share", [0, 0.3, 1])
def test_scored_training_rows_are_a_warning(model, tmp_path, caplog, share):
    preprocessor, train = Predictor(model).preprocessor, rows(2000, 5)
    x = preprocessor.transform(train, salt=np.arange(2000))
    hashes = training_hashes(model, x, preprocessor.transform(rows(99, 6)))
    assert len(hashes) == 1024
    trained = model.with_facts(calibration={**model.calibration, "training": hashes})
    trained.save(tmp_path / "model")
    count = round(400 * share)
    scored = pd.concat([rows(400 - count, 7), train[-count:] if count else train[:0]])
    scored.astype({"age": float}).to_parquet(tmp_path / "some.parquet")
    succeed("score", tmp_path / "model", tmp_path / "some.parquet", "--out", tmp_path / "out.csv")
    percent = re.findall(r"got about (\d+)% training rows", caplog.text)
    assert [int(each) for each in percent] == pytest.approx([100 * share][: share > 0], abs=10)


def test_rows_that_equal_training_rows_by_chance_are_no_warning():
    preprocessor = Preprocessor.fit(table := pd.DataFrame({"a": range(100), "b": [0, 1] * 50}))
    discrete = Hierarchy([Stage(RealNVP(2), dim=1)])
    discrete = discrete.with_facts(data={"table": preprocessor.to_dict()})
    rng = np.random.default_rng(0)
    train, valid = (
        preprocessor.transform(table.iloc[rng.integers(100, size=n)], np.arange(n))
        for n in (900, 100)
    )
    assert training_hashes(discrete, train, valid) == []


def test_several_files_have_their_names_in_the_rows(model_file, table, tmp_path):
    second = tmp_path / "zwei.csv"
    rows(3, 5).to_csv(second, index=False)
    succeed("score", model_file, table, second, "--out", tmp_path / "scores.csv")
    labels = pd.read_csv(tmp_path / "scores.csv")["row"]
    assert labels.iloc[0] == f"{table}:0"
    assert labels.iloc[-1] == f"{second}:2"
    assert len(labels) == ROWS + 3


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("index", "label"),
    [
        (pd.Index([7, 5, 9]), "row"),
        (pd.Index(["a", "b\nc", "ü"], name="id"), "id"),
    ],
)
def test_results_have_the_index_of_the_table(model_file, tmp_path, suffix, index, label):
    table = rows(3, 2).set_axis(index)
    path = tmp_path / f"table.{suffix}"
    getattr(table, f"to_{suffix}")(path)
    expected = [str(each).replace("\n", r"\n") for each in index]
    label = label if suffix != "csv" or index.name is None else "row"  # CSV: a column like others
    expected = expected if label == (index.name or "row") else ["0", "1", "2"]
    for command, name in (("score", "s.parquet"), ("encode", "c.csv"), ("project", "p.parquet")):
        succeed(command, model_file, path, "--out", tmp_path / name)
        read = pd.read_csv if name.endswith("csv") else pd.read_parquet
        assert read(tmp_path / name)[label].astype(str).tolist() == expected


@pytest.mark.parametrize("name", ["i,d", "p_value", "u0", "anomaly_score", '"', "row"])
def test_the_name_of_an_index_is_that_of_one_column(model_file, tmp_path, name):
    index = pd.Index(["=1+1", "-2", "c"], name=name)
    rows(3, 2).set_axis(index).to_parquet(tmp_path / "t.parquet")
    for command, out in (("score", "s.csv"), ("score", "s.PARQUET"), ("encode", "c.csv")):
        succeed(command, model_file, tmp_path / "t.parquet", "--out", tmp_path / out)
        read = pd.read_csv if out.endswith("csv") else pd.read_parquet
        found = read(tmp_path / out)
        label = found.columns[0]
        assert label in (name, f"{name}_")
        assert found[label].tolist() == [r"\x3d1+1", r"\x2d2", "c"]
        if command == "score":
            assert found["p_value"].between(0, 1).all()


def test_codes_are_columns_or_arrays(model_file, table, tmp_path):
    for name in ("codes.csv", "codes.parquet"):
        succeed("encode", model_file, table, "--out", tmp_path / name)
    codes = pd.read_csv(tmp_path / "codes.csv")
    assert list(codes) == ["row", "u0", "u1", "u2", "v0"]
    pd.testing.assert_frame_equal(
        codes, pd.read_parquet(tmp_path / "codes.parquet"), check_dtype=False
    )
    succeed("encode", model_file, table, "--out", tmp_path / "codes.npz")
    arrays = np.load(tmp_path / "codes.npz")
    np.testing.assert_allclose(codes[["u0", "u1", "u2"]], arrays["u"], rtol=1e-5)


def test_projections_have_the_columns_of_the_table(model, model_file, table, tmp_path):
    output = succeed("project", model_file, table, "--out", tmp_path / "p.csv", "--nearest")
    found = pd.read_csv(tmp_path / "p.csv")
    expected, errors = Predictor(model).project(rows(ROWS, 2), nearest=True)
    assert list(found) == ["row", "weight", "income", "age", "city", "mse"]
    np.testing.assert_allclose(found["mse"], errors, rtol=1e-3)
    assert found["city"].tolist() == expected["city"].tolist()
    printed = re.search(r"mean squared error ([0-9.]+), standardized columns", output)
    assert float(printed[1]) == pytest.approx(errors.mean(), rel=1e-2)


def test_samples_are_rows_of_the_table(model_file, tmp_path):
    succeed("sample", model_file, "-n", 50, "--out", tmp_path / "s.parquet")
    found = pd.read_parquet(tmp_path / "s.parquet")
    assert list(found) == ["weight", "income", "age", "city"]
    assert {*found["city"]} <= {"Bern", "Rome"}
    assert found["age"].dtype == np.int64
    assert 40 < found["weight"].median() < 100


def test_arrays_are_matched_by_position(tmp_path):
    numbers = rows(300, 0)[["weight", "income"]]
    table_model(RealNVP(2), 1, numbers, numbers).save(tmp_path / "m.safetensors")
    np.save(tmp_path / "rows.npy", numbers.to_numpy())
    numbers.to_csv(tmp_path / "rows.csv", index=False)
    tables = []
    for name in ("rows.npy", "rows.csv"):
        succeed("score", tmp_path / "m.safetensors", tmp_path / name, "--out", tmp_path / "s.csv")
        tables.append(pd.read_csv(tmp_path / "s.csv"))
    pd.testing.assert_frame_equal(*tables, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["calibrate", "{model}"], "INPUTS: expected either these or --without, got neither"),
        (["calibrate", "{model}", "{table}", "--without=3"], "either these or --without, got both"),
        (["calibrate", "{model}", "--without=3"], "--without: expected none for a model whose"),
        (["score", "{model}", "{folder}/image.png"], "image.png: expected a CSV, Parquet, Feather"),
        (["score", "{images}", "{table}"], "table.csv: expected a folder, a zip, or a file with"),
        (["score", "{points}", "{table}"], "a model of images or of a table, got one of points"),
        (["score", "{model}", "{folder}/missing.csv"], "got a table without age"),
        (["project", "{model}", "{folder}/nan.csv"], "got missing values in weight (1)"),
        (["score", "{model}", "{folder}/empty.csv"], "got an error: No columns to parse"),
        (["score", "{model}", "{folder}/header.csv"], "expected rows, got none"),
        (["score", "{model}", "nowhere.csv"], "got no such file"),
        (["score", "{model}", "{table}", "--id=ages"], "--id: expected columns of the table"),
        (["score", "{images}", "{table}", "--id=age"], "--id: expected none for a model of images"),
        (["score", "{model}", "{table}", "--sheet", "{folder}/s.png"], "--sheet: expected none"),
        (["score", "{model}", "{table}", "--out", "{table}"], "a path other than the inputs"),
        (
            ["project", "{model}", "{table}", "--out", "{folder}/p.npz"],
            "expected .csv or .parquet,",
        ),
        (["sample", "{model}", "--out", "{folder}/s.png"], "expected .csv or .parquet, got .png"),
        (["sample", "{points}", "--out", "{folder}/s.csv"], "expected .png or .npz, got .csv"),
    ],
)
def test_mistakes_are_reported_in_one_line(
    model_file, table, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    given = rows(20, 2)
    given.drop(columns="age").to_csv("missing.csv", index=False)
    given.replace({"weight": {given["weight"][3]: np.nan}}).to_csv("nan.csv", index=False)
    given[:0].to_csv("header.csv", index=False)
    (tmp_path / "empty.csv").touch()
    (tmp_path / "image.png").write_bytes(png(smooth_images(1, 0)[0]))
    places = {"model": model_file, "table": table, "folder": tmp_path}
    points = Model.load(model_file).with_facts(data={})
    images = Hierarchy([Stage(Glow((3, 8, 8), levels=1, steps=1, width=4), dim=10)])
    data = {"size": 8, "channels": 3, "crop": "square"}
    images = images.with_facts(data=data, calibration=points.calibration)
    for name, model in (("points", points), ("images", images)):
        places[name] = tmp_path / f"{name}.safetensors"
        model.save(places[name])
    before = sorted(tmp_path.iterdir())
    result = run(*(each.format(**places) for each in arguments))
    assert result.exit_code == 1, result.output
    assert message in result.stderr
    assert result.stderr.strip().count("\n") == 0
    assert sorted(tmp_path.iterdir()) == before
