"""The preprocessor of tables: kinds of columns, exact round trips, densities, and mistakes."""

import datetime
import json
import math
import shlex

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrated import table_rows
from submanifold.common.errors import UserError
from submanifold.data.tables import Preprocessor
from submanifold.data.tables.preprocessor import uniform_by_content

RNG = np.random.default_rng(0)
N = 500
NORMAL = RNG.normal(size=N)
KINDS = {
    "normal": (NORMAL, "continuous", None),
    "timestamps": (1.7e9 + NORMAL * 1e-3, "continuous", None),
    "large integers": (RNG.integers(0, 10**7, N), "continuous", None),
    "nanoseconds": (1_700_000_000_000_000_000 + RNG.integers(0, 10**14, N), "continuous", None),
    "zeros and others": (np.where(RNG.random(N) < 0.9, 0, NORMAL), "continuous", None),
    "integers": (RNG.integers(-5, 90, N), "quantized", 1),
    "tenths": (RNG.integers(0, 900, N) / 10, "quantized", 0.1),
    "small steps": (np.round(7e-6 * RNG.integers(0, 90, N), 6), "quantized", 7e-6),
    "booleans": (RNG.random(N) < 0.3, "quantized", 1),
    "two values": (np.where(RNG.random(N) < 0.3, -1 / 3, math.pi), "quantized", math.pi + 1 / 3),
    "three values": (RNG.choice([-1.3, math.pi, 9.0], N), "quantized", math.pi + 1.3),
    "sorted": (np.repeat([1.5, 2.0], [2000, 3000]), "quantized", 0.5),
    "rounding errors": (1000 + 1e-13 * NORMAL, "constant", None),
    "one value": (np.full(N, 3.25), "constant", None),
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds_and_steps_are_found(name):
    values, kind, step = KINDS[name]
    (column,) = Preprocessor.fit(pd.DataFrame({"a": values})).columns
    assert column.kind == kind
    assert column.step == pytest.approx(step)


@pytest.mark.parametrize("scale", ["standard", "none"])
@pytest.mark.parametrize("name", KINDS)
def test_rows_come_back_with_their_type(name, scale):
    frame = pd.DataFrame({"a": KINDS[name][0], "b": np.arange(len(KINDS[name][0]))})
    if scale == "none" and name in ("timestamps", "nanoseconds"):
        with pytest.raises(UserError, match="that float32 cannot represent"):
            Preprocessor.fit(frame, scale=scale)
        return
    preprocessor = Preprocessor.fit(frame, scale=scale)
    found = preprocessor.inverse_transform(preprocessor.transform(frame))
    assert (found.dtypes == frame.dtypes).all()
    if KINDS[name][1] == "continuous":
        spread = float(np.std(frame["a"].astype(float)))
        assert np.allclose(
            found["a"] - frame["a"].iloc[0], frame["a"] - frame["a"].iloc[0], atol=1e-5 * spread
        )
    else:
        rounding = 1e-15 if name == "rounding errors" else 0
        assert np.allclose(found["a"].astype(float), frame["a"].astype(float), rounding, 0)
    assert (found["b"] == frame["b"]).all()


@settings(max_examples=60, deadline=None)
@given(
    start=st.integers(-(10**6), 10**6),
    decimals=st.integers(0, 6),
    steps=st.lists(st.integers(0, 65_000), min_size=3, max_size=60, unique=True),
    scale=st.sampled_from(["standard", "none"]),
)
def test_numbers_with_decimals_come_back_exactly(start, decimals, steps, scale):
    """Printing and reading a number gives the float nearest to the decimal; so must the inverse."""
    values = [float(f"{(start + each) / 10**decimals:.{decimals}f}") for each in steps]
    frame = pd.DataFrame({"a": values})
    try:
        preprocessor = Preprocessor.fit(frame, scale=scale)
    except UserError as error:
        assert (scale, "float32" in str(error)) == ("none", True)  # noqa: PT017
        return
    x = preprocessor.transform(frame)
    if preprocessor.columns[0].kind == "quantized":
        assert list(preprocessor.inverse_transform(x)["a"]) == values


def test_the_log_determinant_is_that_of_the_transformation():
    """Of a normal variable in its own units, log-density = standard log-density + log_det."""
    values = 1e6 + 250 * RNG.normal(size=(4000, 2))
    preprocessor = Preprocessor.fit(values)
    assert preprocessor.log_det == pytest.approx(-2 * math.log(250), abs=0.05)


def test_the_density_of_a_quantized_column_bounds_its_probability():
    """A uniform density over the dequantized values of a fair die gives each face 1/6."""
    die = pd.DataFrame({"a": RNG.integers(1, 7, 6000)})
    preprocessor = Preprocessor.fit(die)
    (column,) = preprocessor.columns
    assert column.bits == pytest.approx(math.log2(6))
    x = preprocessor.transform(die, salt=np.arange(6000))[:, 0]
    ends = column.standardize(np.array([0.0, 6.0]))
    assert x.min() == pytest.approx(ends[0], abs=0.01)
    assert x.max() == pytest.approx(ends[1], abs=0.01)
    log_density = -math.log(ends[1] - ends[0]) + preprocessor.log_det
    assert np.exp(log_density) == pytest.approx(1 / 6)


def test_other_draws_stay_in_the_cells_of_their_rows():
    frame = pd.DataFrame(
        {
            "a": NORMAL,
            "n": RNG.integers(0, 5, N),
            "d": RNG.integers(0, 9, N) / 10,
            "level": RNG.choice([1.0, 2.5, 7.0], N),
            "city": RNG.choice(["x", "y", "z"], N),
        }
    )
    preprocessor = Preprocessor.fit(frame)
    x = preprocessor.transform(frame, salt=np.arange(N))
    draws, _ = zip(*(preprocessor.redraw(x, salt) for salt in range(-50, 0)), strict=True)
    for drawn in draws[:3]:
        pd.testing.assert_frame_equal(
            preprocessor.inverse_transform(drawn), preprocessor.inverse_transform(x)
        )
        assert (drawn[:, 0] == x[:, 0]).all()
    assert (np.std(draws, axis=0)[:, 1:].mean(0) > 0.01).all()
    # they depend on the row alone, not on the noise that it has already
    again, _ = preprocessor.redraw(preprocessor.transform(frame), -50)
    np.testing.assert_array_equal(again, draws[0])


def test_noise_does_not_depend_on_units():
    frame = pd.DataFrame({"a": NORMAL, "n": RNG.integers(0, 5, N), "d": RNG.integers(0, 9, N) / 10})
    grams = frame.assign(a=1000 * frame["a"], d=1000 * frame["d"])
    x, in_grams = (Preprocessor.fit(table).transform(table) for table in (frame, grams))
    np.testing.assert_allclose(in_grams, x, rtol=0, atol=1e-6)


def test_noise_is_uniform_and_determined_by_the_row():
    values = RNG.integers(0, 3, (3000, 4)).astype(float)
    noise = uniform_by_content(values, np.arange(3000))
    assert abs(np.sort(noise, axis=0) - np.linspace(0, 1, 3000)[:, None]).max() < 0.04
    assert abs(np.corrcoef(noise.T) - np.eye(4)).max() < 0.06
    assert np.array_equal(uniform_by_content(values[7:9], np.arange(7, 9)), noise[7:9])
    without = uniform_by_content(values)
    assert len(np.unique(without)) == without.shape[1] * len(np.unique(values, axis=0))
    frame = pd.DataFrame(values, columns=list("abcd"))
    preprocessor = Preprocessor.fit(frame)
    x = preprocessor.transform(frame)
    assert np.array_equal(preprocessor.transform(frame[5:6]), x[5:6])
    assert np.array_equal(preprocessor.transform(frame.astype("int8")[5:6]), x[5:6])


def test_columns_are_found_by_name(caplog):
    frame = pd.DataFrame({"a": NORMAL, "b": NORMAL**2, "c": RNG.integers(0, 9, N)})
    preprocessor = Preprocessor.fit(frame)
    x = preprocessor.transform(frame)
    assert np.array_equal(preprocessor.transform(frame[["c", "a", "b"]]), x)
    assert not caplog.messages
    assert np.array_equal(preprocessor.transform(frame.assign(d=1)), x)
    assert "columns d are unknown to the model" in caplog.text
    assert np.array_equal(preprocessor.transform(frame.astype(str)), x)
    assert np.array_equal(preprocessor.transform(frame.to_numpy()), x)
    with pytest.raises(UserError, match="got a table without b"):
        preprocessor.transform(frame[["a", "c"]])
    with pytest.raises(UserError, match=r"table without width. Did you mean widht\?"):
        Preprocessor.fit(pd.DataFrame({"width": NORMAL})).transform(pd.DataFrame({"widht": [1]}))
    with pytest.raises(UserError, match="expected an array of 3 columns"):
        preprocessor.transform(frame.to_numpy()[:, :2])


def test_categories_become_intervals_of_one_coordinate():
    """The most frequent one is the first; the intervals cover the line."""
    city = RNG.choice(["Rome", "Oslo", "Lima"], N, p=[0.2, 0.5, 0.3])
    frame = pd.DataFrame({"city": city, "a": NORMAL})
    preprocessor = Preprocessor.fit(frame)
    assert preprocessor.features == ("city", "a")
    x = preprocessor.transform(frame)
    assert x.mean(0) == pytest.approx(0, abs=0.1)
    assert x.std(0) == pytest.approx(1, abs=0.1)
    assert (preprocessor.inverse_transform(x)["city"] == frame["city"]).all()
    line = np.stack([np.linspace(-20, 20, 9), np.zeros(9)], 1)
    cities = list(preprocessor.inverse_transform(line)["city"])
    assert list(dict.fromkeys(cities)) == ["Oslo", "Lima", "Rome"]
    numbers = pd.DataFrame({"zip": RNG.choice([101, 205], N), "a": NORMAL})
    found = Preprocessor.fit(numbers, columns={"zip": "category"})
    assert found.features == ("zip", "a")
    assert (found.inverse_transform(found.transform(numbers))["zip"] == numbers["zip"]).all()


def test_vectors_that_are_not_finite_are_rows_of_missing_values():
    frame = table_rows(50, 0)
    preprocessor = Preprocessor.fit(frame)
    x = preprocessor.transform(frame)
    x[3], x[7, 1] = np.nan, np.inf
    rows = preprocessor.inverse_transform(x)
    assert rows.index[rows.isna().all(axis=1)].tolist() == [3, 7]
    others = [number for number in range(50) if number not in (3, 7)]
    assert (rows["city"][others] == frame["city"][others]).all()
    assert (rows["age"][others] == frame["age"][others]).all()


def test_the_weight_of_a_category_is_the_inverse_density_of_its_noise():
    frame = pd.DataFrame({"city": ["a"] * 3 + ["b"] * 2 + ["c"]})
    (column,) = Preprocessor.fit(frame).columns
    noise = np.concatenate([np.linspace(1e-9, 1 - 1e-9, 1001), [0.1999, 0.2001]])
    for category in range(3):
        start, end = (
            column.standardize(column.dequantize(np.full(len(noise), category), noise + change))
            for change in (-1e-10, 1e-10)
        )
        weight = column.log_weight(column.dequantize(np.full(len(noise), category), noise))
        slope = np.log((end - start) / 2e-10 * column.scale)
        np.testing.assert_allclose(slope, weight, atol=1e-2)
        assert (column.cell(column.restore((start + end) / 2)) == category).all()


def test_categories_of_a_condition_are_indicators():
    frame = pd.DataFrame({"city": RNG.choice(["Rome", "Oslo"], N, p=[0.2, 0.8]), "a": NORMAL})
    inputs, given = Preprocessor.fit(frame).split(["city"])
    assert (inputs.features, given.features) == (("a",), ("city=Oslo", "city=Rome"))
    x = given.transform(frame[["city"]])
    assert x.std(0) == pytest.approx(1, abs=1e-3)
    assert x.mean(0) == pytest.approx(0, abs=1e-3)
    assert (given.inverse_transform(x)["city"] == frame["city"]).all()


def test_unknown_categories_are_found(caplog):
    frame = pd.DataFrame({"city": RNG.choice(["Rome", "Oslo"], N), "country": "IT", "a": NORMAL})
    preprocessor = Preprocessor.fit(frame)
    assert not preprocessor.unknown(frame).any(axis=None)
    frame.loc[0, "city"] = None
    preprocessor = Preprocessor.fit(frame)
    rows = frame[:4].assign(city=["Rome", "Bonn", None, "Oslo"], country=["IT", "IT", "IT", "FR"])
    assert preprocessor.unknown(rows).any(axis=1).tolist() == [False, True, False, True]
    assert np.isfinite(preprocessor.transform(rows)).all()
    assert "column city: the training data have no category Bonn" in caplog.text
    assert "column country: the training data have no category FR" in caplog.text
    given = preprocessor.split(["city"])[1]
    assert given.unknown(rows[["city"]])["city"].tolist() == [False, True, False, False]


def table_with_gaps(count=2000):
    """Columns of every kind with a tenth of missing values, and the same without them."""
    rng = np.random.default_rng(1)
    whole = pd.DataFrame(
        {
            "normal": rng.normal(5, 20, count),
            "tenths": rng.integers(0, 900, count) / 10,
            "city": rng.choice(["Rome", "Oslo"], count),
            "one": 3.25,
            "day": rng.choice(["31.12.2024", "01.02.2025", "17.02.2025"], count),
            "full": rng.normal(size=count),
        }
    )
    gaps = (rng.random(whole.shape) < 0.1) & (whole.columns != "full")
    return whole.mask(gaps), whole, gaps


def test_missing_values_are_flags_and_noise_and_come_back():
    frame, _, gaps = table_with_gaps()
    preprocessor = Preprocessor.fit(frame)
    assert preprocessor.features == (
        "normal",
        "normal=missing",
        "tenths",
        "tenths=missing",
        "city",
        "one=missing",
        "day",
        "day=missing",
        "full",
    )
    x = preprocessor.transform(frame, np.arange(len(frame)))
    assert np.isfinite(x).all()
    pd.testing.assert_frame_equal(preprocessor.inverse_transform(x), frame, atol=1e-4)
    noise = x[gaps[:, 0], 0]
    assert (noise.mean(), noise.std()) == pytest.approx((0, 1), abs=0.15)
    again = preprocessor.transform(frame[5:9], np.arange(5, 9))
    np.testing.assert_array_equal(again, x[5:9])
    given = preprocessor.split(["normal", "city"])[1]  # in a condition there is no noise
    assert given.features[:2] == ("normal", "normal=missing")
    assert (given.transform(frame)[gaps[:, 0], 0] == 0).all()
    found = given.inverse_transform(given.transform(frame))
    pd.testing.assert_frame_equal(found, frame[["normal", "city"]], atol=1e-4)


def test_numbers_among_text_come_back_as_numbers():
    frame = pd.DataFrame({"a": [*map(str, range(30)), "?"], "b": RNG.normal(size=31)})
    preprocessor = Preprocessor.fit(frame)
    found = preprocessor.inverse_transform(preprocessor.transform(frame))["a"]
    np.testing.assert_array_equal(found, [*range(30), np.nan])


def test_constant_columns_that_vary_later_are_one_warning(caplog):
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0, 4.5], "b": 5.0, "c": 7, "day": "2024-02-29"})
    preprocessor = Preprocessor.fit(frame)
    preprocessor.transform(frame)
    assert not caplog.messages
    preprocessor.transform(frame.assign(b=[5, 5, 5, 6], c=8, day="2024-03-01"))
    assert [text.partition(": ")[2] for text in caplog.messages] == ["b, c, day"]


def test_weights_of_missing_values_are_inverse_densities_of_their_noise():
    frame, _, gaps = table_with_gaps()
    frame, gaps = frame[["normal", "full"]], gaps[:, :1]
    preprocessor = Preprocessor.fit(frame)
    drawn, log_weights = preprocessor.redraw(preprocessor.transform(frame), -1)
    flag = preprocessor.varying[1]
    expected = flag.log_weight(flag.restore(drawn[:, 1].astype(float)))
    expected += gaps[:, 0] * (drawn[:, 0] ** 2 + math.log(2 * math.pi)) / 2
    np.testing.assert_allclose(log_weights, expected, atol=1e-4)
    in_units = preprocessor.log_dets(drawn) - preprocessor.log_det
    scale = preprocessor.varying[0].scale
    assert in_units.tolist() == pytest.approx((gaps[:, 0] * math.log(scale)).tolist())


def test_missing_values_that_the_training_rows_do_not_have_are_refused():
    frame, whole, _ = table_with_gaps()
    with pytest.raises(UserError, match=r"missing values in normal \(\d+\), tenths .*, day"):
        Preprocessor.fit(whole).transform(frame)


COLUMNS = {
    "number": (NORMAL, "numbers, -", "ignore"),
    "integer": (RNG.integers(0, 90, N), "numbers, 0 to 89, in steps of 1", "ignore"),
    "large": (
        RNG.choice([50_000, 1_250_000, 50_100], N),
        "50000 to 1250000, in steps of 100",
        "ignore",
    ),
    "levels": (KINDS["three values"][0], "numbers, -1.3 to 9, 3 values", "ignore"),
    "text": (RNG.choice(["Rome", "Oslo"], N, p=[0.2, 0.8]), "2 categories: Oslo, Rome", "ignore"),
    "coded": (pd.Categorical(RNG.choice([*"bc"], N, p=[0.1, 0.9])), "2 categories: c, b", "ignore"),
    "gaps": (np.where(np.arange(N) % 5, NORMAL, np.nan), "; 20.0% missing", "ignore"),
    "unknown": (np.where(np.arange(N) % 5, NORMAL, "?"), "; 20.0% text (?)", "ignore"),
    "grade": (
        [*"1123AB2", None] * 60 + [None] * 20,
        "numbers, 1 to 3, in steps of 1; 24.0% text (A, B); 16.0% missing",
        "category",
    ),
    "code": (RNG.integers(1, 6, N), "numbers, 1 to 5, in steps of 1", "category"),
    "hash": (2**63 + np.arange(N, dtype=np.uint64), "integers beyond 2^53", "category"),
    "key": (
        2**63 + (np.arange(N, dtype=np.uint64) + 1) % 3,
        "3 categories: 9223372036854775809, 92",
        "ignore",
    ),
    "infinite": (np.where(np.arange(N) % 5, NORMAL, np.inf), "; 20.0% missing", "ignore"),
    "text gaps": (
        np.where(np.arange(N) % 5, RNG.choice(["x", "y", "z"], N), None),
        "4 categories",
        "ignore",
    ),
    "dates": (["31.12.2024", "01.02.2025"] * (N // 2), "dates, 31.12.2024 to 01.02.2025", "ignore"),
    "american": (["12/31/2024", "02/01/2025"] * (N // 2), "dates, 12/31/2024 to 02/01", "ignore"),
    "times": (
        pd.date_range("2020", periods=N, freq="97min", tz="Asia/Tokyo"),
        "dates, 2020-01-01 00:00:00+09:00 to",
        "ignore",
    ),
    "durations": (pd.to_timedelta(RNG.integers(0, 99, N), "s"), "in steps of 1", "ignore"),
    "user_id": (range(N), "identifiers", "integer"),
    "visit_id": (np.arange(N) // 2, "numbers, 0 to 249, in steps of 1", "ignore"),
    "some dates": (["31.12.2024", "unknown"] * (N // 2), "2 categories: 31.12.2024, un", "ignore"),
    "row": (map("a{}".format, range(N)), "identifiers", "category"),
    "comment": (map("text {}".format, range(N)), "text of 500 different values", "category"),
    "empty": ([None] * N, "no values", ""),
    "complex": (NORMAL + 1j, "complex numbers", ""),
    "one": (["x"] * N, "one value: x", ""),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_of_a_raw_table_are_described_and_used_or_ignored(name):
    values, found, kind = COLUMNS[name]
    frame = pd.DataFrame({name: values, "other": RNG.normal(size=N)})
    preprocessor = Preprocessor.fit(frame)
    row = preprocessor.description.iloc[0]
    assert found in row["found"]
    assert row["change"] == (kind and shlex.quote(f"data.columns.{name}={kind}"))
    is_used = any(column.name == name for column in preprocessor.varying)
    assert is_used == (row["used"] != "not used")
    back = preprocessor.inverse_transform(preprocessor.transform(frame))
    if is_used and name not in ("unknown", "infinite", "grade"):
        pd.testing.assert_frame_equal(back[[name]], frame[[name]], check_freq=False, atol=1e-4)
    if is_used and kind:
        assert name not in Preprocessor.fit(frame, columns={name: "ignore"}).inputs


def test_the_largest_integers_of_a_type_do_not_overflow():
    values = np.linspace(0, 2**64 - 2**12, N).astype(np.uint64)
    frame = pd.DataFrame({"a": values, "b": (values // 2).astype(np.int64)})
    kinds = {"a": "number", "b": "number"}
    preprocessor = Preprocessor.fit(frame, columns=kinds)
    beyond = preprocessor.inverse_transform(preprocessor.transform(frame) * 1.01)
    assert beyond.dtypes.tolist() == frame.dtypes.tolist()
    assert (np.diff(beyond.to_numpy(float), axis=0) >= 0).all()


def test_copies_and_multiples_of_columns_are_ignored():
    km = RNG.integers(100, 9000, N) / 100
    frame = pd.DataFrame(
        {
            "km": km,
            "m": np.round(1000 * km),
            "miles": np.round(km / 1.609, 2),
            "decades": np.floor(km / 10),
            "city": RNG.choice(["Rome", "Oslo"], N),
            "x": NORMAL,
            "y": 5 - NORMAL / 3,
        }
    )
    frame["code"] = frame["city"].map({"Rome": 3, "Oslo": 1})
    frame["almost"] = frame["x"].where(frame.index != 7, 2.0)
    frame.loc[3:9, ["x", "y"]] = np.nan
    ignored = {
        column.name: column.reason
        for column in Preprocessor.fit(frame).columns
        if column.kind == "ignored"
    }
    assert ignored == {
        "m": "a multiple of km",
        "miles": "a multiple of km",
        "y": "a multiple of x",
        "code": "a copy of city",
    }
    kept = Preprocessor.fit(frame, columns={"m": "integer"})
    assert "m" in kept.features


def test_json_keeps_everything():
    frame = pd.DataFrame(
        {
            "a": NORMAL,
            "b": KINDS["three values"][0],
            "c": KINDS["tenths"][0],
            "d": RNG.choice(["x", "y"], N),
            "e": 1,
        }
    )
    preprocessor = Preprocessor.fit(frame)
    again = Preprocessor.from_dict(json.loads(json.dumps(preprocessor.to_dict())))
    assert again == preprocessor
    assert np.array_equal(again.transform(frame), preprocessor.transform(frame))


MISTAKES = {
    "huge": ({"a": [1e200, 1.5, 2]}, {}, r"values beyond 1e\+150, .* in a"),
    "tiny": ({"a": NORMAL * 1e-310}, {}, "a range below 1e-150, in a"),
    "unknown column": (
        {"age": [1, 2]},
        {"columns": {"agee": "number"}},
        r"got agee. Did you mean age\?",
    ),
    "no step": ({"a": NORMAL}, {"columns": {"a": "integer"}}, "got no step, .* in a"),
    "many categories": (
        {"a": [f"name {i}" for i in range(999)]},
        {"columns": {"a": "category"}},
        "more than 256 categories in a",
    ),
    "rounded integers": (
        {"a": np.arange(2**63, 2**63 + 80, dtype=np.uint64)},
        {"columns": {"a": "number"}},
        r"integers beyond 2\^53, which are not kept exactly, in a.*or set another kind",
    ),
    "no numbers": ({"a": list("xyz")}, {"columns": {"a": "number"}}, "got no numbers in a"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name):
    values, options, message = MISTAKES[name]
    with pytest.raises(UserError, match=message):
        Preprocessor.fit(pd.DataFrame(values), **options)


RESTORED = {
    "years 1000 and 9999": (["1000-01-01", "9999-12-31", "2024-02-29"] * 12, {}),
    "days as objects": ([datetime.date(9999, 12, 31), datetime.date(2024, 2, 29)] * 9, {}),
    "seconds": (np.array(["9999-12-31", "2024-02-29"] * 9, "datetime64[s]"), {}),
    "nanoseconds with gaps": (pd.to_datetime(["2024-02-29", None, "2024-03-01"] * 9), {}),
    "milliseconds": (
        np.array(["2024-02-29T00:00:00.125", "2024-02-29T00:00:01"] * 9, "datetime64[ms]"),
        {},
    ),
    "continuous milliseconds": (np.datetime64("2024-02-29T00:00:00.125") + np.arange(100) ** 3, {}),
    "one day": (np.array(["2024-02-29T00:00:00.125"] * 18, "datetime64[ms]"), {}),
    "booleans with gaps": ([True, None, False] * 9, {"columns": {"a": "category"}}),
    "text that is missing": (["missing", None, "x", "x"] * 9, {}),
}


def plain(values):
    """Values of a column with None for missing ones, and one type for dates."""
    return [
        None
        if pd.isna(value)
        else pd.Timestamp(value)
        if isinstance(value, datetime.date)
        else value
        for value in values.astype(object)
    ]


@pytest.mark.parametrize("name", RESTORED)
def test_values_come_back(name, caplog):
    values, options = RESTORED[name]
    frame = pd.DataFrame({"a": values, "b": np.arange(len(values))})
    preprocessor = Preprocessor.fit(frame, **options)
    parts = [preprocessor]
    if "a" in preprocessor.categories:
        parts += preprocessor.split(["a"])[1:]
    for part in parts:
        restored = part.inverse_transform(part.transform(frame[[*part.inputs]]))
        assert plain(restored["a"]) == plain(frame["a"])
    assert not caplog.messages


def test_text_that_is_missing_is_unknown_where_only_blanks_were():
    frame = pd.DataFrame({"a": ["x", None] * 9})
    rows = pd.DataFrame({"a": ["missing", None]})
    assert Preprocessor.fit(frame).unknown(rows)["a"].tolist() == [True, False]


def test_only_training_rows_determine_the_columns_but_all_are_checked():
    frame = pd.DataFrame({"a": [1.5, 2, 3, 4, np.nan]})
    training = np.array([True, True, False, False, False])
    assert Preprocessor.fit(frame[:4], training=training[:4]).columns[0].high == 2
    assert Preprocessor.fit(frame, training=training).features == ("a", "a=missing")
    frame, training = pd.DataFrame({"a": [1, None, 2.5, None, None, None]}), np.arange(6) < 3
    flag = Preprocessor.fit(frame, training=training).columns[1]
    assert flag == Preprocessor.fit(frame[:3]).columns[1]
